"""Nearest-neighbour mixing.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023, Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity, AISTATS,
algorithm 2 (NNM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.assumed import assumed, check_assumed
from fedray.aggregation.each import Each, squared_distances
from fedray.aggregation.mixing import Mixing
from fedray.aggregation.rule import Memory
from fedray.parameters import Values


@dataclass(frozen=True)
class NearestNeighbourMixing(Mixing):
    """Gives another rule, in the place of each of n updates, the mean of its n - f nearest ones, itself among them.

    Source: Allouah et al. 2023, Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity, Algorithm 2

    Attributes:
        rule: section of the other rule, e.g. {kind: trimmed_mean, share: 0.2}.
        attackers: f; below 0.5 a share of a round's clients, rounded up to whole clients, from 1 their number. Always below n / 2.
    """

    rule: Mapping[str, Any]
    attackers: float = 0.2

    def __post_init__(self) -> None:
        check_assumed(self.attackers)
        self.inner  # noqa: B018 (a wrong section is said at once)

    def held(self, updates: int) -> int:
        """Products, distances and the matrix; then the other rule in the place of the distances."""
        return 2 * 8 * updates**2 + max(8 * updates**2, self.inner.held(updates))

    def mixed(self, got: Each, kept: Mapping[str, Values]) -> tuple[npt.NDArray[np.float64], Memory]:
        """The neighbours of each update, equally far ones in the order of the clients, and nothing remembered."""
        near = got.count - assumed(self.attackers, got.count, most=(got.count - 1) // 2)
        distances = squared_distances(got.products)
        np.fill_diagonal(distances, -1.0)  # the update itself comes first
        matrix = np.zeros_like(distances)
        for row, of_one in zip(matrix, distances, strict=True):
            row[np.argsort(of_one, kind="stable")[:near]] = 1.0 / near
        return matrix, {}


AGGREGATORS = {"nnm": NearestNeighbourMixing}
