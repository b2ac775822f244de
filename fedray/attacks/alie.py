"""A little is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each
from fedray.attacks.attack import Agreed, Collusion
from fedray.errors import ConfigError


@dataclass(frozen=True)
class LittleIsEnough(Collusion):
    """All malicious clients send the mean of their own honest updates, less some standard deviations of each value.

    Source: Baruch, Baruch, Goldberg 2019, A Little Is Enough: Circumventing Defenses For Distributed Learning, Algorithm 3

    They know no other client's update, as in the paper. A single one in a round knows no deviation, and sends what it has trained.

    Attributes:
        deviations: how many; null: as many as leave enough honest clients further away, by the paper's formula, from the numbers of a round.
    """

    deviations: float | None = None

    def __post_init__(self) -> None:
        if self.deviations is not None and not 0.0 < self.deviations < math.inf:
            raise ConfigError(f"attack.deviations: {self.deviations} is not above 0.")

    def agreed(self, got: Each, mine: npt.NDArray[np.bool_]) -> Agreed:
        """One vector for all."""
        some = unnoticed(got.count, int(mine.sum())) if self.deviations is None else self.deviations

        def send(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            own = columns[mine].astype(np.float64)
            found: npt.NDArray[np.float32] = (own.mean(axis=0) - some * own.std(axis=0)).astype(np.float32)
            return found

        return send


def unnoticed(clients: int, attackers: int) -> float:
    """The paper's z_max: the largest number of deviations at which enough honest clients are further away; 0 where there is none."""
    honest, needed = clients - attackers, clients // 2 + 1 - attackers
    share = (honest - needed) / honest if honest > 0 else 0.0
    return max(0.0, NormalDist().inv_cdf(min(share, 1 - 1e-6))) if share > 0 else 0.0


ATTACKS = {"alie": LittleIsEnough}
