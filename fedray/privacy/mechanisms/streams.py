"""The noise that a trusted driver adds to each round's sum: independent, or correlated so that prefix sums contain less noise.

The noise has unit variance; the caller multiplies it by noise multiplier x clip norm. A stream exists in memory only and covers a fixed
number of rounds. After these rounds, and in a new process, a new stream is made and charged.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedray.errors import ClaimVoid
from fedray.updates.stage import Source

Floats = npt.NDArray[np.float64]


class NoiseStream(Protocol):
    """A sequence of noise vectors, one per round."""

    def next(self, source: Source) -> Floats:
        """The noise of the next round, a new array, float64 ``[size]``.

        Raises:
            ClaimVoid: the stream has no further round.
        """
        ...


class Independent:
    """Independent standard normal noise in each round."""

    def __init__(self, size: int) -> None:
        self._size = size

    def next(self, source: Source) -> Floats:
        """See :class:`NoiseStream`."""
        return source.normal(self._size)


class TreeNoise:
    """Differences of the noise of binary-tree aggregation: the noise up to round t sums to the tree's noise of prefix t.

    Every node is a standard normal vector. Prefix t sums the nodes of t's binary digits, which are at most log2(steps) + 1 instead of t. A
    unit that takes part in one round is in at most ceil(log2(steps + 1)) nodes. The stream holds one vector per binary one of the last t.

    Args:
        size: length of a vector.
        steps: number of rounds of the tree.

    Source: Kairouz et al. 2021, Practical and Private (Deep) Learning without Sampling or Shuffling, algorithm 1 and appendix B;
        Dwork, Naor, Pitassi & Rothblum 2010, Differential Privacy under Continual Observation
    """

    def __init__(self, size: int, steps: int) -> None:
        self._size = size
        self._steps = steps
        self._done = 0
        self._nodes: list[Floats] = []  # one node per binary one of _done, the largest first

    def next(self, source: Source) -> Floats:
        """See :class:`NoiseStream`."""
        self._done = _advance(self._done, self._steps)
        node = source.normal(self._size)
        noise = node.copy()
        closed = (self._done & -self._done).bit_length() - 1  # number of smaller nodes that the new node replaces
        for _ in range(closed):
            noise -= self._nodes.pop()
        self._nodes.append(node)
        return noise


class Banded:
    """Rows of C^-1 Z, with C the banded Toeplitz square root of the prefix-sum matrix, scaled to columns of norm at most 1.

    Columns of C that lie ``band`` or more rounds apart share no row, so a unit that takes part k times, ``band`` rounds
    apart, changes C x by at most sqrt(k) times its bound: see :func:`banded_event_noise`. The stream holds ``band`` - 1 vectors.

    Args:
        size: length of a vector.
        steps: number of rounds of the matrix.
        band: number of nonzero diagonals of C.

    Source: Kalinin & Lampert 2024, Banded Square Root Matrix Factorization for Differentially Private Model Training;
        Choquette-Choo et al. 2023, (Amplified) Banded Matrix Factorization (participations at least ``band`` apart)
    """

    def __init__(self, size: int, steps: int, band: int) -> None:
        self._size = size
        self._steps = steps
        self._done = 0
        self.coefficients = band_coefficients(steps, band)
        self._past: deque[Floats] = deque(maxlen=max(len(self.coefficients) - 1, 1))

    def next(self, source: Source) -> Floats:
        """See :class:`NoiseStream`."""
        self._done = _advance(self._done, self._steps)
        noise = source.normal(self._size)
        if len(self.coefficients) > 1:
            term = np.empty(self._size)
            for coefficient, past in zip(self.coefficients[1:], self._past, strict=False):
                np.multiply(past, coefficient, out=term)
                noise -= term
        noise /= self.coefficients[0]
        if len(self.coefficients) > 1:
            self._past.appendleft(noise.copy())
        return noise


def band_coefficients(steps: int, band: int) -> Floats:
    """First column of C: binom(2j, j) / 4**j for j < min(band, steps), scaled to a norm of at most 1; float64.

    Source: Kalinin & Lampert 2024, Banded Square Root Matrix Factorization for Differentially Private Model Training (no momentum, no weight decay)
    """
    j = np.arange(1.0, min(band, steps))
    column = np.concatenate([[1.0], np.cumprod((2.0 * j - 1.0) / (2.0 * j))])
    return column / (max_column_norm(column) * (1.0 + 2.0**-48))  # never above 1 after rounding


def max_column_norm(coefficients: Floats) -> float:
    """Largest L2 norm of a column of the lower triangular Toeplitz matrix with this first column: the first column's own."""
    return math.sqrt(math.fsum(coefficients**2))


def banded_event_noise(noise_multiplier: float, participations: int) -> float:
    """The multiplier z / sqrt(k) of the one Gaussian event that a unit of ``participations`` rounds, ``band`` apart, is charged.

    Source: Choquette-Choo et al. 2023, (Amplified) Banded Matrix Factorization (banded matrices, b-min-separated participation)
    """
    return noise_multiplier / math.sqrt(participations)


def _advance(done: int, steps: int) -> int:
    if done >= steps:
        raise ClaimVoid(f"the noise of {steps} rounds is used up; a new stream must be made and charged before round {done + 1}.")
    return done + 1
