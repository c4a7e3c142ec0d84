"""What a model's numbers mean, and the probabilities that they stand for.

A model with one number for two labels gives the second one's: 1 - p stands beside a probability, and 0 beside a logit,
whose softmax is the same as the sigmoid of the one number. So each label has a score, and each kind one activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from clothing_contract.contract import AUTO, INDEPENDENT, LOGITS, SIGMOID, SOFTMAX, Output

Scores = npt.NDArray[np.floating[Any]]

# Steps of an int8 head's softmax (LiteRT's scale of 1/256); each probability may be one step off, and 1 is 255/256.
_STEP = 1 / 256
# Of a sum of float32 or bfloat16 probabilities from 1: half a step of bfloat16's 8 bits for each half of the sum.
_SUM_TOLERANCE = 2**-8
# Beyond 0 and 1, from rounding alone.
_RANGE_TOLERANCE = 1e-3
# Of a sum's tolerance, where nothing but the numbers tells: 100 independent probabilities in steps of 1/256 have a sum
# within 101 steps of 1 easily.
_SURE_TOLERANCE = 1 / 16
# With these numbers logits of 1e-5 leave 0 to 1; MobileNet's ReLU6 and layer normalisation keep them in it.
_EXTREME = np.float32(1e6)
# A sigmoid of float32 far from 0: within rounding of 1, or 0 where the exponential ends.
_NEAR_ONE, _NEAR_ZERO = 1 - 2**-20, 1e-30


def decide(scores: Scores, labels: int, extreme: Scores | None = None) -> str | None:
    """The kind of scores (photos, width), where it can't be another; else None.

    ``extreme`` are scores (inputs, width) of inputs a million times a photo's: there a logit is far from 0 to 1, and a
    sigmoid is 0 or 1, unless the network bounds it before.

    Outside 0 to 1 are logits. Several numbers that sum to 1 for each input are a softmax's; one number is a sigmoid's
    where all extreme ones are 0 or 1. What is left may be probabilities, or small logits.
    """
    wide = scores.astype(np.float64)
    far = wide[:0] if extreme is None else extreme.astype(np.float64)
    if not (_in_range(wide).all() and _in_range(far).all()):
        return LOGITS
    if wide.shape[1] == 1:
        is_sigmoid = len(far) > 0 and labels <= 2 and _is_saturated(far).all() and not (wide == wide[0]).all()
        return SIGMOID if is_sigmoid else None
    return SOFTMAX if all(_is_distribution(row, _SURE_TOLERANCE) for row in (*wide, *far)) else None


def extremes(shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.float32]]:
    """Inputs of a shape for ``decide``: numbers a million times a photo's."""
    random = np.random.default_rng(0)
    yield np.full(shape, _EXTREME)
    yield np.full(shape, -_EXTREME)
    for _ in range(2):
        yield random.standard_normal(shape, np.float32) * _EXTREME


def contradiction(scores: Scores, kind: str) -> str | None:
    """Why scores (photos, width) can't be of a kind; None where they can."""
    wide = scores.astype(np.float64)
    if kind == LOGITS:
        return None
    if not _in_range(wide).all():
        return f"gives {_shown(wide)}, outside of 0 to 1, which no probability is: {LOGITS} are"
    if kind == SOFTMAX and wide.shape[1] > 1 and not all(_is_distribution(row) for row in wide):
        return f"gives {_shown(wide)}, which sum to {wide[-1].sum():.3g}, not 1: {INDEPENDENT} probabilities do"
    return None


def undecided(scores: Scores) -> str:
    """Why ``decide`` gave None, and what to say instead of auto."""
    if scores.shape[1] == 1:
        return f"gives {_shown(scores)}, one number from 0 to 1: {SIGMOID} (a probability) or {LOGITS} (a small one)"
    return (
        f"gives {_shown(scores)}: each from 0 to 1, and no distribution: {INDEPENDENT} (each label's own probability) "
        f"or {LOGITS}"
    )


def expanded(scores: Scores, kind: str, labels: int) -> Scores:
    """Scores (photos, labels) from (photos, width): of one number for two, both."""
    if labels != 2 or scores.shape[1] != 1:
        return scores
    other = np.zeros_like(scores) if kind == LOGITS else 1 - scores
    return np.concatenate([other, scores], axis=1)


def probabilities(scores: Scores, kind: str) -> npt.NDArray[np.float64]:
    """Probabilities (…, labels) of scores (…, labels).

    Logits are put through a softmax, one logit through a sigmoid; all else stays as it is.
    Probabilities of an independent kind need not sum to 1.
    """
    wide = np.asarray(scores, np.float64)
    if kind == AUTO:
        raise ValueError("auto is no kind: decide() first")
    if kind != LOGITS:
        return wide
    if wide.shape[-1] == 1:
        return np.asarray(1 / (1 + np.exp(-np.clip(wide, -700, 700))))
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def holding(chances: npt.NDArray[np.floating[Any]], output: Output) -> list[int] | None:
    """Labels above the threshold, of probabilities (labels,), likeliest first.

    None for kinds without a threshold. Of one probability for two labels always one holds: the second above the
    threshold, else the first.
    """
    limit = output.limit
    if limit is None:
        return None
    if output.scores == SIGMOID and len(chances) == 2:
        return [int(chances[1] > limit)]
    return [int(label) for label in np.argsort(-chances, kind="stable") if chances[label] > limit]


def _in_range(wide: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return (wide >= -_RANGE_TOLERANCE) & (wide <= 1 + _RANGE_TOLERANCE)


def _is_saturated(wide: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return (wide >= _NEAR_ONE) | (np.abs(wide) <= _NEAR_ZERO)


def _is_distribution(row: npt.NDArray[np.float64], most: float = 1.0) -> bool:
    is_quantised = bool(np.all(row / _STEP == np.round(row / _STEP)))
    tolerance = (len(row) + 1) * _STEP if is_quantised else _SUM_TOLERANCE
    return abs(float(row.sum()) - 1) <= min(tolerance, most)


def _shown(scores: Scores) -> str:
    last = scores[-1]
    return ", ".join(f"{number:.3g}" for number in last[:5]) + (", …" if len(last) > 5 else "")
