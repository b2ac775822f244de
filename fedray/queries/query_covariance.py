"""The statistic ``covariance``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.errors import ConfigError
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
    on_grid,
    scaled,
)


@dataclass(frozen=True)
class CovarianceQuery(Statistic):
    """Covariance matrix and means of columns whose values are clipped to given bounds.

    With v the values scaled to [-1, 1], a record contributes all v(i), v(i)^2 - 1/2, and v(i) v(j) for i < j. The matrix is symmetric; noise can
    make it indefinite.

    Args:
        bounds: [low, high] of each column, public constants; `label` stands for the target.
    """

    bounds: Bounds

    def __post_init__(self) -> None:
        checked_bounds(self.bounds)
        if not 2 <= len(self.bounds) <= 200:
            raise ConfigError(f"bounds: should name 2 to 200 columns, but name {len(self.bounds)}.")

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        d = len(self.bounds)
        return d + d * (d + 1) // 2

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        d = len(self.bounds)
        return d * GRID**2 + d * (GRID // 2) ** 2 + d * (d - 1) // 2 * GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        v = np.stack([scaled(column_of(facts, batch, c, where), *b) for c, b in self.bounds.items()], axis=1)
        i, j = np.triu_indices(v.shape[1])
        return on_grid(np.concatenate([v, v[:, i] * v[:, j] - 0.5 * (i == j)], axis=1))

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        d, margin = len(self.bounds), noised.margin(3) / noised.records  # an entry rests on three sums
        halves = np.array([(high - low) / 2 for low, high in self.bounds.values()])
        moments = noised.values / noised.records
        mean, second = moments[:d], np.zeros((d, d))
        i, j = np.triu_indices(d)
        second[i, j] = second[j, i] = moments[d:] + 0.5 * (i == j)
        # |a b - a' b'| <= m |a| + m |b| + m^2 for a, b within m of a', b'.
        wide = margin + margin * (np.abs(mean)[:, None] + np.abs(mean)[None]) + margin**2
        scale = halves[:, None] * halves[None]
        matrix, wide = scale * (second - mean[:, None] * mean[None]), scale * wide
        middles = np.array([(low + high) / 2 for low, high in self.bounds.values()])
        return {
            "columns": list(self.bounds),
            "means": (middles + halves * mean).tolist(),
            "covariance": matrix.tolist(),
            "margins": wide.tolist(),
            "meaning": "each entry's interval is the entry less and plus its margin",
        }


QUERIES = {"covariance": CovarianceQuery}
