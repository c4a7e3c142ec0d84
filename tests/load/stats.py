"""The numbers' numbers: quantiles, medians with their spread, and ratios of rounds that belong together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """What several rounds gave."""

    median: float
    low: float
    high: float
    rounds: int

    def text(self, digits: int = 2) -> str:
        """For a table: the median, and in brackets the lowest and the highest of several rounds."""
        if self.rounds == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """The median, and how far the rounds lie apart."""
    if not values:
        raise ValueError("no rounds")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all is not above (nearest rank): one that was really measured."""
    if not values or not 0 < share <= 1:
        raise ValueError("a quantile needs values and a share above 0 and at most 1")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Round by round, as the two were measured in the same minute; a machine's slow minute slows both."""
    return spread([a / b for a, b in zip(above, below, strict=False)])


def halves(values: Sequence[float]) -> tuple[float, float]:
    """What 95 % of a series' first and of its second half stay below.

    What grows shows between the two. A memory that breathes is compared at its height, and a spike is in neither.
    """
    middle = len(values) // 2
    if not middle:
        raise ValueError("two halves need two values")
    return quantile(values[:middle], 0.95), quantile(values[-middle:], 0.95)
