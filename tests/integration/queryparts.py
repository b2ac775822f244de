"""A statistic that fails on private records."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedray.queries.statistic import GRID, Integers, NoisedSums, PublicFacts, RecordBatch, Statistic


class Failing(Statistic):
    """Fails, and quotes a record."""

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return 1

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        if len(batch.y) > 1:
            raise ValueError(f"a secret record: {batch.x[0]}")
        return np.zeros((len(batch.y), 1), dtype=np.int64)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        return {"value": float(noised.values[0])}
