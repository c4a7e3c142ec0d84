"""Figures of a classifier: confusion, precision and recall, calibration, latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Ten bins of confidence: fewer photos than some thousands leave more bins nearly empty.
BINS = 10


def confusion(targets: NDArray[np.int64], found: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts of ``(true class, class found)``: int64 ``(classes, classes)``."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (targets, found), 1)
    return table


def precisions(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of those found as a class, the share that is of it; NaN for a class that was never found."""
    return _share(table.diagonal(), table.sum(axis=0))


def recalls(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of a class's photos, the share that was found; NaN for a class without photos."""
    return _share(table.diagonal(), table.sum(axis=1))


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    result = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def probabilities(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores ``(n, classes)`` as probabilities, by the gateway's rule: softmax, unless a row is a distribution."""
    wide = scores.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    is_distribution = (wide >= 0).all(axis=1) & (np.abs(wide.sum(axis=1) - 1) < 1e-3)
    return np.where(is_distribution[:, None], wide, softmax)


@dataclass(frozen=True)
class Bin:
    """Photos whose best probability lies in ``(low, high]``."""

    low: float
    high: float
    photos: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """How often a confidence is right, in bins of equal width (arXiv:1706.04599); empty bins are left out."""
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
    """The mean difference between confidence and accuracy, over the bins, weighted by their photos."""
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
