"""Centered clipping around the previous aggregate.

Karimireddy, He, Jaggi 2021, Learning from History for Byzantine Robust Optimization, ICML, centered clipping (CC).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedray.aggregation.each import Each
from fedray.aggregation.rule import Memory, Rule
from fedray.errors import ConfigError
from fedray.parameters import Values, Vector

_PREVIOUS = "previous"


@dataclass(frozen=True)
class CenteredClipping(Rule[Each]):
    """Mean of the updates, each counting once, after its distance from the previous round's aggregate is clipped.

    Source: Karimireddy, He, Jaggi 2021, Learning from History for Byzantine Robust Optimization, centered clipping (CC)

    What it remembers makes small biases visible that add up over rounds. The paper clips the workers' momentum; here it is what clients
    send.

    Attributes:
        radius: largest distance of an update from the centre that counts fully, in the updates' norm, above 0.
        iterations: how often the centre is moved and the updates clipped again, at least 1.
    """

    radius: float
    iterations: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ConfigError(f"aggregation.radius: {self.radius} is not above 0.")
        if self.iterations < 1:
            raise ConfigError(f"aggregation.iterations: {self.iterations} is below 1.")

    def begin(self, clients: int, size: int) -> Memory:
        """``previous``: the last aggregate, float32 zeros ``[size]`` at first."""
        return {_PREVIOUS: np.zeros(size, dtype=np.float32)}

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The aggregate, which is also what is remembered."""
        centre = kept[_PREVIOUS].astype(np.float64)
        for _ in range(self.iterations):
            squares = np.zeros(got.count)
            for start, stop, columns in got.blocks():
                squares += [float(np.square(row - centre[start:stop]).sum()) for row in columns]
            with np.errstate(divide="ignore"):
                factors = np.minimum(1.0, self.radius / np.sqrt(squares))
            for start, stop, columns in got.blocks():
                middle, moved = centre[start:stop], np.zeros(stop - start)
                for factor, row in zip(factors, columns, strict=True):  # one after the other, in one order everywhere
                    moved += factor * (row - middle)
                middle += moved / got.count
        found = centre.astype(np.float32)
        return found, {_PREVIOUS: found}


AGGREGATORS = {"centered_clipping": CenteredClipping}
