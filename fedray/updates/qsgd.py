"""Stochastic rounding to a few levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.updates.stage import At, Passed, Place, Stage


@dataclass(frozen=True)
class Qsgd(Stage):
    """Round each value at random, and without bias, to one of the few levels between plus and minus its block's largest magnitude.

    Source: Alistarh, Grubic, Li, Tomioka & Vojnovic 2017, QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, section 3
        (stochastic quantisation in buckets), with the maximum norm of their experiments in place of the L2 norm

    A block's levels are multiples of its largest magnitude divided by 2**(bits - 1) - 1. With the maximum norm the levels lie closer, so the
    variance is lower than with the L2 norm of the same number of bits.

    Attributes:
        bits: number of bits for each value, from 2 to 8.
        block: number of values that share a scale, at least 1.
    """

    bits: int = 4
    block: int = 512
    place: ClassVar[Place] = "lossy"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"compression.bits: should be from 2 to 8, but is {self.bits}; for 16 bits use compression.kind=half.")
        if self.block < 1:
            raise ConfigError(f"compression.block: should be at least 1, but is {self.block}.")

    @property
    def levels(self) -> int:
        """Number of levels above zero."""
        return (1 << (self.bits - 1)) - 1

    def out(self, x: Vector, at: At) -> Passed:
        """The rounded values, unbiased up to float32's own rounding; what is not finite as it came."""
        if not np.isfinite(x).all():  # the sum refuses it, or a clip makes zeros of it
            return Passed(x)
        largest = np.maximum.reduceat(np.abs(x), np.arange(0, len(x), self.block))
        scale = np.repeat(np.where(largest > 0, largest, 1.0), self.block)[: len(x)]  # a block of zeros has any scale
        exact = x.astype(np.float64)
        exact *= self.levels
        exact /= scale
        level = np.floor(exact)
        level += at.source.uniform(len(x)) < exact - level
        level *= scale
        level /= self.levels
        return Passed(level.astype(np.float32))

    def sent(self, size: int, before: int) -> int:
        """A level for each value, and each block's scale."""
        return -(-size * self.bits // 8) + 4 * -(-size // self.block)


COMPRESSIONS = {"qsgd": Qsgd}
