"""The statistic ``count``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedray.errors import ConfigError
from fedray.queries.statistic import GRID, Integers, NoisedSums, PublicFacts, RecordBatch, Statistic, column_of, interval


@dataclass(frozen=True)
class CountQuery(Statistic):
    """Number of records, or of those whose columns lie in given ranges.

    Args:
        where: for each column that must, its range [low, high), such as {age: [60, 200]}; `label` stands for the target. Empty: all records.
    """

    where: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column, (low, high) in self.where.items():
            if not low < high:
                raise ConfigError(f"where: the range of '{column}' should ascend, but is [{low:g}, {high:g}].")

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return 1

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        inside = np.ones(len(batch.y), dtype=np.bool_)
        for column, (low, high) in self.where.items():
            values = column_of(facts, batch, column, where)
            inside &= (values >= low) & (values < high)
        return GRID * inside.astype(np.int64)[:, None]

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        value = float(noised.values[0])
        return {"value": value, "interval": interval(value, noised.margin(), 0.0, noised.records)}


QUERIES = {"count": CountQuery}
