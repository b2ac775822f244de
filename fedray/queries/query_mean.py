"""The statistic ``mean``."""

from __future__ import annotations

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
class MeanQuery(Statistic):
    """Mean of columns whose values are clipped to given bounds.

    Args:
        bounds: [low, high] of each column that is asked for, public constants; `label` stands for the target.
    """

    bounds: Bounds

    def __post_init__(self) -> None:
        checked_bounds(self.bounds)

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return len(self.bounds)

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return len(self.bounds) * GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        return np.stack([on_grid(scaled(column_of(facts, batch, c, where), *b)) for c, b in self.bounds.items()], axis=1)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        found = {}
        for (column, (low, high)), value in zip(self.bounds.items(), noised.values / noised.records, strict=True):
            half = (high - low) / 2
            mean = (low + high) / 2 + half * float(value)
            found[column] = {"value": mean, "interval": interval(mean, half * noised.margin() / noised.records, low, high)}
        return {"columns": found}


QUERIES = {"mean": MeanQuery}
