"""The coordinate-wise median.

Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML, definition 1 and
algorithm 1, option I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedray.aggregation.each import Each
from fedray.aggregation.rule import Memory, Rule
from fedray.parameters import Values, Vector


@dataclass(frozen=True)
class CoordinateMedian(Rule[Each]):
    """Median of each coordinate over the clients, each counting once; of an even number the mean of the middle two.

    Source: Yin et al. 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, definition 1

    It holds against fewer than half of a round's clients, and drops what only a minority learns.
    """

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The median, and nothing remembered."""
        found, low, high = np.empty(got.size, dtype=np.float32), (got.count - 1) // 2, got.count // 2
        for start, stop, columns in got.blocks():
            columns.sort(axis=0)
            found[start:stop] = (columns[low].astype(np.float64) + columns[high]) / 2
        found += np.float32(0.0)  # which of equal zeros stands in the middle decides on no sign
        return found, {}


AGGREGATORS = {"median": CoordinateMedian}
