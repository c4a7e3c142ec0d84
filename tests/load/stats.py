"""Statistics: quantiles, medians with their spread, and ratios of paired rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of several rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def text(self, digits: int = 2) -> str:
        """Text for a table: the median, and in brackets the lowest and highest round."""
        if self.rounds == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of the rounds."""
    if not values:
        raise ValueError("no rounds")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile by nearest rank, which is a measured value.

    It is the smallest value that at least this share is not above.
    """
    if not values or not 0 < share <= 1:
        raise ValueError("a quantile needs values and a share above 0 and at most 1")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Ratios round by round.

    Both are measured in the same minute, so a slow minute affects both.
    """
    return spread([a / b for a, b in zip(above, below, strict=False)])


def halves(values: Sequence[float]) -> tuple[float, float]:
    """The 95th percentiles of a series' first and second half.

    What grows shows between the two. A memory that breathes is compared at its height, and a spike is in neither.
    """
    middle = len(values) // 2
    if not middle:
        raise ValueError("two halves need two values")
    return quantile(values[:middle], 0.95), quantile(values[-middle:], 0.95)
