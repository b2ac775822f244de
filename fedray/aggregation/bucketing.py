"""Bucketing.

Karimireddy, He, Jaggi 2022, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each
from fedray.aggregation.mixing import Mixing
from fedray.aggregation.rule import Memory
from fedray.errors import ConfigError
from fedray.parameters import Values
from fedray.rng import generator

_ROUND = "round"


@dataclass(frozen=True)
class Bucketing(Mixing):
    """Gives another rule the means of buckets of a few updates each, dealt at random anew each round, so that honest updates differ less.

    Source: Karimireddy, He, Jaggi 2022, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, Algorithm 1

    One attacker spoils its whole bucket: the other rule must hold against ``size`` times the share of attackers.

    Attributes:
        rule: section of the other rule, e.g. {kind: median}.
        size: updates in a bucket, at least 2; the last one may have fewer.
        seed: of the dealing, which attackers must not know.
    """

    rule: Mapping[str, Any]
    size: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ConfigError(f"aggregation.size: {self.size} is below 2, where nothing would be mixed.")
        if self.seed < 0:
            raise ConfigError(f"aggregation.seed: {self.seed} is below 0.")
        self.inner  # noqa: B018 (a wrong section is said at once)

    def begin(self, clients: int, size: int) -> Memory:
        """``round``: rounds so far, int64; and what the other rule remembers."""
        return {_ROUND: np.zeros(1, dtype=np.int64), **super().begin(clients, size)}

    def held(self, updates: int) -> int:
        """The matrix, and what the other rule holds of the updates' products."""
        return 8 * -(-updates // self.size) * updates + self.inner.held(updates)

    def mixed(self, got: Each, kept: Mapping[str, Values]) -> tuple[npt.NDArray[np.float64], Memory]:
        """The buckets of this round, and the number of the next."""
        (round_,) = kept[_ROUND].tolist()
        dealt = generator(self.seed, "buckets", round_).permutation(got.count)
        matrix = np.zeros((-(-got.count // self.size), got.count))
        for bucket, row in enumerate(matrix):
            members = dealt[bucket * self.size : (bucket + 1) * self.size]
            row[members] = 1.0 / len(members)
        return matrix, {_ROUND: np.array([round_ + 1], dtype=np.int64)}


AGGREGATORS = {"bucketing": Bucketing}
