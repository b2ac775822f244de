"""A random rotation that spreads a vector evenly over its coordinates, so that a small ring or one bit can hold them.

The signs come from a public seed. Privacy does not depend on them, because a rotation preserves the norm.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedray import rng

Floats = npt.NDArray[np.float64]


def padded_dimension(dimension: int) -> int:
    """The power of two that a vector of ``dimension`` >= 1 values is padded to."""
    return 1 << (dimension - 1).bit_length()


def rotate(vector: Floats, seed: int) -> Floats:
    """H D v / sqrt(n): signs D from ``seed``, then the Walsh-Hadamard matrix H.

    Args:
        vector: float64 ``[d]``; padded with zeros to the next power of two n.
        seed: public seed of the round.

    Returns:
        float64 ``[n]`` of the same norm.

    Source: Ailon & Chazelle 2009, The Fast Johnson-Lindenstrauss Transform; Kairouz, Liu & Steinke 2021, The Distributed Discrete
        Gaussian Mechanism for Federated Learning with Secure Aggregation
    """
    n = padded_dimension(len(vector))
    values = np.zeros(n)
    np.multiply(vector, random_signs(n, seed)[: len(vector)], out=values[: len(vector)])
    walsh_hadamard(values)
    values *= 1.0 / math.sqrt(n)
    return values


def unrotate(vector: Floats, dimension: int, seed: int) -> Floats:
    """The inverse of :func:`rotate`: float64 ``[n]`` to float64 ``[dimension]``."""
    values = vector * (1.0 / math.sqrt(len(vector)))
    walsh_hadamard(values)
    return np.asarray(values[:dimension] * random_signs(len(vector), seed)[:dimension])


def walsh_hadamard(values: Floats) -> None:
    """Multiply each row by the Walsh-Hadamard matrix (entries +-1) in place; contiguous float64 ``[n]`` or ``[rows, n]``, n a power of two.

    Source: Fino & Algazi 1976, Unified Matrix Treatment of the Fast Walsh-Hadamard Transform
    """
    half = 1
    while half < values.shape[-1]:
        pairs = values.reshape(-1, 2, half)
        difference = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
        half *= 2


def random_signs(n: int, seed: int) -> Floats:
    """``n`` values of -1 and 1 from a public seed, float64."""
    bits = np.unpackbits(np.frombuffer(rng.generator(seed, "rotation").bytes((n + 7) // 8), dtype=np.uint8), count=n)
    return np.where(bits, -1.0, 1.0)
