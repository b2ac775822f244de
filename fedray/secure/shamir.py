"""Shamir's secret sharing of keys, over the integers modulo the prime 2**521 - 1.

Shamir 1979, How to Share a Secret, Communications of the ACM 22. The field holds every secret of 32 bytes as it is; modulo 2**255 - 19, some
X25519 keys would not come back.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod

PRIME = 2**521 - 1
#: Bytes of a secret, and of a share.
SECRET, SHARE = 32, 66


def share(secret: bytes, threshold: int, points: Iterable[int]) -> dict[int, bytes]:
    """Share a secret so that any ``threshold`` shares give it back, and fewer say nothing about it.

    Args:
        secret: 32 bytes.
        threshold: shares that give the secret back, at least 1.
        points: one for each share: distinct integers from 1 to below 2**521 - 1, at least ``threshold`` of them.

    Returns:
        66 bytes for each point: the value there of a polynomial of degree ``threshold`` - 1 with random coefficients, whose constant is the
        secret.

    Raises:
        ValueError: wrong length, threshold or points.
    """
    places = list(points)
    if len(secret) != SECRET:
        raise ValueError(f"a secret has {SECRET} bytes, not {len(secret)}")
    if not 1 <= threshold <= len(places) or len(set(places)) < len(places) or not all(0 < x < PRIME for x in places):
        raise ValueError(
            f"{threshold} of {len(places)} shares: the threshold is not one of them, or a point is repeated or not in the field"
        )
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "little")
    return {x: _value(coefficients, constant, x).to_bytes(SHARE, "little") for x in places}


def reconstruct(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of exactly ``threshold`` shares, 32 bytes.

    Args:
        shares: by point. Which points they are decides about most of the work, which is kept for the points of the last calls.

    Raises:
        ValueError: a share is malformed, or the shares are not all of one secret of 32 bytes (wrong shares pass with a probability of about
            2**-265, unless they were made to).
    """
    points = tuple(sorted(shares))
    values = [int.from_bytes(shares[x], "little") for x in points]
    if not points or any(len(shares[x]) != SHARE for x in points) or max(values) >= PRIME:
        raise ValueError("a share is not a number of the field")
    secret = sum(weight * value for weight, value in zip(_weights(points), values, strict=True)) % PRIME
    if secret >= 1 << 8 * SECRET:
        raise ValueError("the shares do not belong to one secret")
    return secret.to_bytes(SECRET, "little")


def _value(coefficients: list[int], constant: int, x: int) -> int:
    """Value at ``x``, by Horner's rule."""
    value = 0
    for coefficient in coefficients:
        value = (value + coefficient) * x % PRIME
    return (value + constant) % PRIME


@lru_cache(maxsize=16)
def _weights(points: tuple[int, ...]) -> list[int]:
    """What Lagrange's interpolation multiplies the values with to get the value at 0.

    The weight of x is the product of y / (y - x) over all other points y. All divisions take a single modular inverse (Montgomery 1987,
    Speeding the Pollard and Elliptic Curve Methods of Factorization, section 10.3.1).
    """
    if any(not 0 < x < PRIME for x in points):
        raise ValueError("a point is not in the field")
    whole = prod(points) % PRIME
    below = [x * prod(y - x for y in points if y != x) % PRIME for x in points]
    before = [1]
    for number in below:
        before.append(before[-1] * number % PRIME)
    inverse = pow(before[-1], -1, PRIME)
    weights = [0] * len(points)
    for i in reversed(range(len(points))):
        weights[i] = whole * inverse * before[i] % PRIME
        inverse = inverse * below[i] % PRIME
    return weights
