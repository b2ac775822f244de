"""Stochastic rounding to a few levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.updates.download import Arrays, Coder, Uniform
from fedray.updates.stage import At, Passed, Place, Stage


@dataclass(frozen=True)
class Qsgd(Stage, Coder):
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
        return Passed(self._values(*self._rounded(x, at.source.uniform)))

    def encode(self, x: Vector, uniform: Uniform) -> Arrays:
        """The levels, each counted from the lowest in so many bits, and each block's scale."""
        level, scales = self._rounded(x, uniform)
        level += self.levels
        counted = level.astype(np.uint8)
        if self.bits < 8:
            counted = np.packbits(np.unpackbits(counted[:, None], axis=1)[:, 8 - self.bits :])
        return counted, scales

    def decode(self, arrays: Arrays, size: int) -> Vector:
        """The values of the levels."""
        counted, scales = arrays
        if self.bits < 8:
            bits = np.zeros((size, 8), dtype=np.uint8)
            bits[:, 8 - self.bits :] = np.unpackbits(counted, count=size * self.bits).reshape(size, self.bits)
            counted = np.packbits(bits)
        level = counted.astype(np.float64)
        level -= self.levels
        return self._values(level, scales)

    def _rounded(self, x: Vector, uniform: Uniform) -> tuple[npt.NDArray[np.float64], Vector]:
        """The levels of the values, whole numbers of either sign, and each block's scale, float32."""
        largest = np.maximum.reduceat(np.abs(x), np.arange(0, len(x), self.block))
        scales = np.where(largest > 0, largest, np.float32(1.0))  # a block of zeros has any scale
        exact = x.astype(np.float64)
        exact *= self.levels
        exact /= self._each(scales, len(x))
        level = np.floor(exact)
        level += uniform(len(x)) < exact - level
        return level, scales

    def _values(self, level: npt.NDArray[np.float64], scales: Vector) -> Vector:
        level *= self._each(scales, len(level))
        level /= self.levels
        return level.astype(np.float32)

    def _each(self, scales: Vector, size: int) -> Vector:
        return np.repeat(scales, self.block)[:size]

    def sent(self, size: int, before: int) -> int:
        """A level for each value, and each block's scale."""
        return -(-size * self.bits // 8) + 4 * -(-size // self.block)


COMPRESSIONS = DOWNLOADS = {"qsgd": Qsgd}
