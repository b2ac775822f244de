"""The statistic ``histogram``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.errors import ConfigError
from fedray.queries.statistic import (
    GRID,
    LABEL,
    Integers,
    NoisedSums,
    PublicFacts,
    RecordBatch,
    Statistic,
    bin_of,
    checked_bounds,
    column_of,
    edges_of,
    interval,
    one_hot,
    rows,
)


@dataclass(frozen=True)
class HistogramQuery(Statistic):
    """Number of records in each bin of one column, or of each class.

    Values outside the bounds count in the outer bins.

    Args:
        column: of the records, or `label` for the target.
        bounds: [low, high] of the bins; not for the classes of `label`.
        bins: number of bins of equal width; not for the classes of `label`.
    """

    column: str
    bounds: tuple[float, float] | None = None
    bins: int | None = None

    def __post_init__(self) -> None:
        if (self.bounds is None) != (self.bins is None):
            raise ConfigError("bins: goes with bounds; give both, or neither for the classes of label.")
        if self.bounds is None and self.column != LABEL:
            raise ConfigError(
                f"bounds: are needed for the column '{self.column}', with bins; bins that depend on the records would reveal them."
            )
        if self.bounds is not None:
            checked_bounds({self.column: self.bounds})
        if self.bins is not None and not 1 <= self.bins <= 10_000:
            raise ConfigError(f"bins: should be between 1 and 10000, but is {self.bins}.")

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        if self.bins is None and classes is None:
            raise ConfigError("bounds: are needed with bins, because the targets are real numbers.")
        return self.bins or classes or 0

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        values = column_of(facts, batch, self.column, where)
        if self.bounds is None or self.bins is None:
            return one_hot(values.astype(np.int64), facts.classes or 0)
        return one_hot(bin_of(values, *self.bounds, self.bins), self.bins)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        margin = noised.margin()
        found = {"counts": rows(noised.values), "intervals": [interval(float(v), margin, 0.0, noised.records) for v in noised.values]}
        if self.bounds is None or self.bins is None:
            return {"labels": list(facts.labels), **found}
        return {"edges": rows(edges_of(*self.bounds, self.bins)), **found}


QUERIES = {"histogram": HistogramQuery}
