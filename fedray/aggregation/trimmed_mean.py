"""The coordinate-wise trimmed mean.

Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML, definition 2 and
algorithm 1, option II.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedray.aggregation.assumed import assumed
from fedray.aggregation.each import Each
from fedray.aggregation.rule import Memory, Rule
from fedray.errors import ConfigError
from fedray.parameters import Values, Vector


@dataclass(frozen=True)
class TrimmedMean(Rule[Each]):
    """Mean of each coordinate over the clients, each counting once, without the largest and the smallest values.

    Source: Yin et al. 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, definition 2

    It holds against at most ``share`` of a round's clients.

    Attributes:
        share: of the values that are cut off at each end, rounded up to whole clients, in [0, 0.5); at least one value stays.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 0.5:
            raise ConfigError(f"aggregation.share: {self.share} is not in [0, 0.5); at 0.5 nothing would be left, which is the median.")

    def cut(self, count: int) -> int:
        """Number of values that are cut off at each end of ``count``."""
        return assumed(self.share, count, most=(count - 1) // 2)

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The trimmed mean, and nothing remembered."""
        found, cut = np.empty(got.size, dtype=np.float32), self.cut(got.count)
        for start, stop, columns in got.blocks():
            columns.sort(axis=0)
            total = np.zeros(stop - start)
            for row in columns[cut : got.count - cut]:  # one after the other, so that the order of additions is the same everywhere
                total += row
            found[start:stop] = total / (got.count - 2 * cut)
        return found, {}


AGGREGATORS = {"trimmed_mean": TrimmedMean}
