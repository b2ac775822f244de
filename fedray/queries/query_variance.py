"""The statistic ``variance``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.queries.statistic import (
    GRID,
    Bounds,
    Integers,
    NoisedSums,
    PublicFacts,
    RecordBatch,
    Statistic,
    checked_bounds,
    column_of,
    interval,
    on_grid,
    scaled,
)


@dataclass(frozen=True)
class VarianceQuery(Statistic):
    """Mean, variance and standard deviation of columns whose values are clipped to given bounds.

    With v a value scaled to [-1, 1], a record contributes v and v^2 - 1/2, which lies in [-1/2, 1/2]. An interval of the variance holds
    wherever those of both sums do.

    Args:
        bounds: [low, high] of each column that is asked for, public constants; `label` stands for the target.
    """

    bounds: Bounds

    def __post_init__(self) -> None:
        checked_bounds(self.bounds)

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return 2 * len(self.bounds)

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return len(self.bounds) * (GRID**2 + (GRID // 2) ** 2)

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        first = [scaled(column_of(facts, batch, c, where), *b) for c, b in self.bounds.items()]
        return np.stack([on_grid(part) for v in first for part in (v, v * v - 0.5)], axis=1)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        found, sums, margin = {}, noised.values.reshape(-1, 2) / noised.records, noised.margin(2) / noised.records
        for (column, (low, high)), (first, second) in zip(self.bounds.items(), sums.tolist(), strict=True):
            half, second = (high - low) / 2, second + 0.5
            mean, variance = (low + high) / 2 + half * first, max(0.0, min(1.0, second) - first**2)
            ends = spread(first, second, margin)
            found[column] = {
                "mean": mean,
                "mean_interval": interval(mean, half * margin, low, high),
                "variance": half**2 * variance,
                "variance_interval": [half**2 * end for end in ends],
                "std": half * math.sqrt(variance),
                "std_interval": [half * math.sqrt(end) for end in ends],
                "bounds": [low, high],
            }
        return {"columns": found}


def spread(first: float, second: float, margin: float) -> list[float]:
    """The interval of a variance on [-1, 1] if the first and second moments are each within ``margin`` of these."""
    near = max(0.0, abs(first) - margin)
    far = min(1.0, abs(first) + margin)
    return [min(1.0, max(0.0, second - margin - far**2)), min(1.0, max(0.0, second + margin - near**2))]


QUERIES = {"variance": VarianceQuery}
