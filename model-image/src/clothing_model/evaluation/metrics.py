"""Figures of a classifier: confusion, precision and recall, calibration, latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clothing_contract.contract import INDEPENDENT
from clothing_contract.scores import decide
from clothing_contract.scores import probabilities as activated

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Ten bins of confidence: with fewer than some thousand photos, more bins would be nearly empty.
BINS = 10


def confusion(targets: NDArray[np.int64], found: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Confusion matrix: int64 ``(classes, classes)``, true class by predicted class."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (targets, found), 1)
    return table


def precisions(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Precision by class: float ``(classes,)``; NaN for a class never predicted."""
    return _share(table.diagonal(), table.sum(axis=0))


def recalls(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Recall by class: float ``(classes,)``; NaN for a class without photos."""
    return _share(table.diagonal(), table.sum(axis=1))


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    result = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def probabilities(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of scores ``(n, classes)``, by the gateway's rule.

    Logits are put through a softmax; a distribution, and what lies between 0 and 1 and is none, stays as it is.
    """
    kind = decide(scores, scores.shape[1]) or INDEPENDENT
    return np.asarray(activated(scores, kind), np.float64)


@dataclass(frozen=True)
class Bin:
    """Photos whose best probability lies in ``(low, high]``."""

    low: float
    high: float
    photos: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Reliability diagram: accuracy by confidence, in bins of equal width.

    Source: arXiv:1706.04599. Empty bins are omitted.
    """
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        Bin(
            number / bins,
            (number + 1) / bins,
            int(inside.sum()),
            float(confidence[inside].mean()),
            float(right[inside].mean()),
        )
        for number in range(bins)
        if (inside := index == number).any()
    ]


def expected_calibration_error(table: list[Bin]) -> float:
    """Mean of abs(confidence - accuracy) over the bins, weighted by photo count."""
    photos = sum(each.photos for each in table)
    return sum(each.photos * abs(each.confidence - each.accuracy) for each in table) / photos


def latency(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the median, the 99th percentile, the mean and the largest."""
    milliseconds = np.array(seconds) * 1000
    return {
        "p50": float(np.percentile(milliseconds, 50)),
        "p99": float(np.percentile(milliseconds, 99)),
        "mean": float(milliseconds.mean()),
        "max": float(milliseconds.max()),
    }
