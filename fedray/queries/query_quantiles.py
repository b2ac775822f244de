"""The statistic ``quantiles``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.errors import ConfigError
from fedray.queries.statistic import (
    GRID,
    Bounds,
    Floats,
    Integers,
    NoisedSums,
    PublicFacts,
    RecordBatch,
    Statistic,
    bin_of,
    checked_bounds,
    column_of,
    edges_of,
    one_hot,
)

_BRANCHES = 16


@dataclass(frozen=True)
class QuantilesQuery(Statistic):
    """Quantiles of columns, from a tree of counts over bins of equal width.

    Every node of the tree has 16 branches; a record counts in one branch of each level. The number of values below an edge is a sum of at most
    15 counts a level, and of at most 8 by the public number of records at the first one. The smallest edge is given that enough values
    lie below; with its interval, whose ends are edges too.

    Args:
        bounds: [low, high] of each column, public constants; values outside count in the outer bins; `label` stands for the target.
        quantiles: what part of the values lies below, each above 0 and below 1.
        levels: of the tree: 1, 2 or 3 for 16, 256 or 4,096 bins. Every level has its share of the budget.

    Source: Hay, Rastogi, Miklau & Suciu 2010, Boosting the Accuracy of Differentially Private Histograms Through Consistency; Qardaji, Yang & Li
        2013, Understanding Hierarchical Methods for Differentially Private Histograms (16 branches)
    """

    bounds: Bounds
    quantiles: Sequence[float] = (0.25, 0.5, 0.75)
    levels: int = 2

    def __post_init__(self) -> None:
        checked_bounds(self.bounds)
        if not self.quantiles or not all(0.0 < q < 1.0 for q in self.quantiles):
            raise ConfigError("quantiles: should be numbers between 0 and 1, such as [0.25, 0.5, 0.75].")
        if self.levels not in (1, 2, 3):
            raise ConfigError(f"levels: should be 1, 2 or 3, but is {self.levels}.")

    @property
    def _nodes(self) -> int:
        return sum(_BRANCHES**level for level in range(1, self.levels + 1))

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return len(self.bounds) * self._nodes

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return len(self.bounds) * self.levels * GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        parts = []
        for column, (low, high) in self.bounds.items():
            leaf = bin_of(column_of(facts, batch, column, where), low, high, _BRANCHES**self.levels)
            for level in range(1, self.levels + 1):
                above = _BRANCHES ** (self.levels - level)
                parts.append(one_hot(np.where(leaf < 0, -1, leaf // above), _BRANCHES**level))
        return np.concatenate(parts, axis=1)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        found = {}
        for (column, (low, high)), sums in zip(self.bounds.items(), noised.values.reshape(len(self.bounds), -1), strict=True):
            edges = edges_of(low, high, _BRANCHES**self.levels)
            below, parts = _below(sums, self.levels, noised.records)
            margin = noised.margin(len(below)) * np.sqrt(parts)
            found[column] = [_quantile(q, edges, below, margin, noised.records) for q in self.quantiles]
        return {"columns": found}


def _below(sums: Floats, levels: int, records: int) -> tuple[Floats, Floats]:
    """The noised number of values below each inner edge, and of how many noised counts each consists; float64 ``[bins - 1]``."""
    edges = np.arange(1, _BRANCHES**levels)
    below, parts, start = np.zeros(len(edges)), np.zeros(len(edges)), 0
    for level in range(1, levels + 1):
        counts = sums[start : start + _BRANCHES**level].reshape(-1, _BRANCHES)
        start += _BRANCHES**level
        node = edges // _BRANCHES ** (levels - level)  # whole nodes of this level that lie before the edge
        parent, branch = node // _BRANCHES, node % _BRANCHES
        before = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
        last = level == 1
        over = records - np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]  # of the root, whose total is public
        use = last & (branch > _BRANCHES // 2)
        below += np.where(use, over[parent, np.minimum(branch, _BRANCHES - 1)], before[parent, branch])
        parts += np.where(use, _BRANCHES - branch, branch)
    return below, parts


def _quantile(q: float, edges: Floats, below: Floats, margin: Floats, records: int) -> dict[str, Any]:
    inner, wanted = edges[1:-1], q * records
    surely_under, surely_reached = below + margin < wanted, below - margin >= wanted
    lower = inner[surely_under].max(initial=edges[0])
    upper = inner[surely_reached].min(initial=edges[-1])
    value = edges[1 + int((below < wanted).sum())]  # so many edges lie under the quantile, as counted without their order
    return {"quantile": q, "value": float(value), "interval": [float(min(lower, upper)), float(max(lower, upper))]}


QUERIES = {"quantiles": QuantilesQuery}
