"""Krum and Multi-Krum.

Blanchard, El Mhamdi, Guerraoui, Stainer 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS, section 4
(Krum) and section 5 (Multi-Krum).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedray.aggregation.assumed import assumed, check_assumed
from fedray.aggregation.each import Each, squared_distances
from fedray.aggregation.rule import Memory, Rule
from fedray.errors import ConfigError
from fedray.parameters import Values, Vector


def scores(products: npt.NDArray[np.float64], attackers: int) -> npt.NDArray[np.float64]:
    """Krum's score of each of n updates: the sum of squared distances from its n - f - 2 nearest others (at least one), float64 ``[n]``.

    Args:
        products: inner products of all pairs of updates, float64 ``[n, n]``.
        attackers: the number f that is assumed.
    """
    near = max(len(products) - attackers - 2, 1)
    distances = squared_distances(products)
    np.fill_diagonal(distances, -1.0)  # the update itself comes first, and is left out
    distances.sort(axis=1)
    found: npt.NDArray[np.float64] = distances[:, 1 : near + 1].sum(axis=1)
    return found


def _best(got: Each, attackers: float) -> tuple[npt.NDArray[np.int64], int]:
    """The places of a round's updates from the best score on, equal ones in the order of the clients, and the assumed number of attackers."""
    number = assumed(attackers, got.count, most=(got.count - 3) // 2)
    return np.argsort(scores(got.products, number), kind="stable"), number


@dataclass(frozen=True)
class Krum(Rule[Each]):
    """The one update that is nearest to its neighbours, by the sum of squared distances from the n - f - 2 nearest of n updates.

    Source: Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, section 4

    It holds against f attackers where n > 2 f + 2. What all other clients learned in a round is not used.

    Attributes:
        attackers: f; below 0.5 a share of a round's clients, rounded up to whole clients, from 1 their number. Never more than (n - 3) / 2.
    """

    attackers: float = 0.2

    def __post_init__(self) -> None:
        check_assumed(self.attackers)

    def held(self, updates: int) -> int:
        """Products and distances of all pairs."""
        return 2 * 8 * updates**2

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The chosen update, and nothing remembered."""
        best, _ = _best(got, self.attackers)
        return got.weighted_sum(np.eye(1, got.count, best[0])[0]), {}


@dataclass(frozen=True)
class MultiKrum(Rule[Each]):
    """Mean of the m updates with the best scores of Krum, each counting once.

    Source: Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, section 5

    Attributes:
        attackers: f, as of krum.
        selected: m, at least 1 and never more than the round's updates; null: n - f, as in the paper's experiments.
    """

    attackers: float = 0.2
    selected: int | None = None

    def __post_init__(self) -> None:
        check_assumed(self.attackers)
        if self.selected is not None and self.selected < 1:
            raise ConfigError(f"aggregation.selected: {self.selected} is below 1.")

    def held(self, updates: int) -> int:
        """Products and distances of all pairs."""
        return 2 * 8 * updates**2

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The mean of the chosen updates, and nothing remembered."""
        best, attackers = _best(got, self.attackers)
        most = min(self.selected or got.count - attackers, got.count)
        factors = np.zeros(got.count)
        factors[best[:most]] = 1.0 / most
        return got.weighted_sum(factors), {}


AGGREGATORS = {"krum": Krum, "multi_krum": MultiKrum}
