"""One bit for each value after a random rotation, without state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray import rng
from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.updates.rotation import padded_dimension, random_signs, walsh_hadamard
from fedray.updates.stage import At, Passed, Place, Stage


@dataclass(frozen=True)
class Drive(Stage):
    """Rotate blocks of the update at random, send the signs and a scale for each block, and let the receiver rotate them back.

    Source: Vargaftik, Ben-Basat, Portnoy, Mendelson, Ben-Itzhak & Mitzenmacher 2021, DRIVE: One-bit Distributed Mean Estimation, section 4
        (the scale that is unbiased) and section 6 (Hadamard rotations)

    A client's rotation follows from the run's seed, the round and the client. What arrives has the block's own length along the block, and
    an error at right angles to it. Under uniform rotations the error has the mean zero and pi/2 - 1 of the squared norm; Hadamard rotations
    come close to that for blocks of many values of similar size, and not for a few large ones.

    Attributes:
        block: number of values that are rotated together, a power of two; smaller updates are one block. The last block is filled up with
            zeros, whose signs are sent too.
    """

    block: int = 4096
    place: ClassVar[Place] = "lossy"

    def __post_init__(self) -> None:
        if self.block < 1 or self.block & (self.block - 1):
            raise ConfigError(f"compression.block: should be a power of two, but is {self.block}.")

    def shape(self, size: int) -> tuple[int, int]:
        """Number of blocks, and values in each."""
        width = min(self.block, padded_dimension(size))
        return -(-size // width), width

    def out(self, x: Vector, at: At) -> Passed:
        """The signs of the rotated update, scaled and rotated back; what is not finite as it came."""
        if not np.isfinite(x).all():  # the sum refuses it, or a clip makes zeros of it
            return Passed(x)
        shape = self.shape(len(x))
        flips = random_signs(shape[0] * shape[1], rng.derive(at.seed, "drive", at.round, at.client)).reshape(shape)
        values = np.zeros(shape)
        values.reshape(-1)[: len(x)] = x
        squares = np.square(values).sum(axis=1, keepdims=True)
        values *= flips
        walsh_hadamard(values)
        lengths = np.abs(values).sum(axis=1, keepdims=True)
        scales = np.divide(squares, lengths, out=np.zeros_like(squares), where=lengths > 0).astype(np.float32)
        values = np.where(values < 0, -scales, scales).astype(np.float64)
        walsh_hadamard(values)  # its own inverse, but for a factor that the scales have
        values *= flips
        return Passed(values.reshape(-1)[: len(x)].astype(np.float32))

    def sent(self, size: int, before: int) -> int:
        """A bit for each value of all blocks, and each block's scale."""
        blocks, width = self.shape(size)
        return -(-blocks * width // 8) + 4 * blocks


COMPRESSIONS = {"drive": Drive}
