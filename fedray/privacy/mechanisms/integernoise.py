"""Exact integer noise: the discrete Gaussian and the Skellam distribution, from tables of 128-bit cumulative probabilities.

A draw compares uniform random bits with the table, so it is an integer of the distribution and not a rounded real number.
:func:`table_error` bounds the difference of the table from the distribution.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError
from fedray.updates.stage import Source

Kind = Literal["ddg", "skellam"]
Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

#: Largest standard deviation of a table, which has a million entries and takes a second to make.
MAX_SIGMA = 2.0**16
_TABLE_BITS = 128
_WORK_BITS = 256
_TAIL = 118.0  # the tail beyond the table is below exp(-118) < 2**-170


class _Table(NamedTuple):
    """Entry k: 2**128 P(|X| <= k), its upper and lower 64 bits; without the last, which is 2**128."""

    upper: Words
    lower: Words


def integer_noise(kind: Kind, sigma: float, n: int, source: Source) -> Integers:
    """``n`` independent draws of an integer distribution with mean 0, int64.

    ddg: P(k) proportional to exp(-k**2 / (2 sigma**2)). skellam: the difference of two Poisson numbers of mean
    sigma**2 / 2 each, whose variance is sigma**2. A draw takes 64 bits, or 128 if 64 do not decide, and one bit for its sign.

    Raises:
        ConfigError: ``sigma`` is negative, not a number, or above ``MAX_SIGMA``.

    Source: Canonne, Kamath & Steinke 2020, The Discrete Gaussian for Differential Privacy; Agarwal, Kairouz & Liu 2021,
        The Skellam Mechanism for Differentially Private Federated Learning
    """
    _check(sigma)
    if sigma == 0.0:
        return np.zeros(n, dtype=np.int64)
    table = _table(kind, sigma)
    draws = source.u64(n)
    size = np.searchsorted(table.upper, draws, side="left")
    undecided = np.flatnonzero(table.upper[np.minimum(size, len(table.upper) - 1)] == draws)
    for at, low in zip(undecided.tolist(), source.u64(len(undecided)).tolist(), strict=True):
        size[at] = _count(table, int(draws[at]), low)
    negative = np.unpackbits(source.u64((n + 63) // 64).view(np.uint8), count=n).view(np.bool_)
    values = size.astype(np.int64, copy=False)
    np.negative(values, out=values, where=negative)
    return values


def table_error(kind: Kind, sigma: float) -> float:
    """Upper bound of the total variation distance between one draw and its distribution.

    Rounding down moves each cumulative probability by less than 2**-128, the working precision of 2**-256 by less than
    that once more, and the tail that is cut, with what the cut does to the recurrence, is below 2**-128 in all.
    ``n`` draws differ from their distribution by at most ``n`` times as much. By it a mechanism's delta grows by at most
    (1 + exp(epsilon)) times the distance of all its draws.

    Raises:
        ConfigError: ``sigma`` is negative, not a number, or above ``MAX_SIGMA``.
    """
    _check(sigma)
    return 0.0 if sigma == 0.0 else (2.0 * _last(kind, sigma) + 3.0) * 2.0**-_TABLE_BITS


def _check(sigma: float) -> None:
    if not 0.0 <= sigma <= MAX_SIGMA:
        raise ConfigError(
            f"privacy.mechanism.scale: noise of {sigma:g} grid units is not between 0 and {MAX_SIGMA:g}; use a smaller scale."
        )


@lru_cache(maxsize=4)  # 16 MB each at most
def _table(kind: Kind, sigma: float) -> _Table:
    last = _last(kind, sigma)
    weights = _gaussian_weights(sigma, last) if kind == "ddg" else _skellam_weights(sigma, last)
    total = weights[0] + 2 * sum(weights[1:])
    upper, lower = np.empty(last, dtype=np.uint64), np.empty(last, dtype=np.uint64)
    below, mask, most = weights[0], (1 << 64) - 1, (1 << _TABLE_BITS) - 1
    for k in range(last):
        threshold = min((below << _TABLE_BITS) // total, most)
        upper[k], lower[k] = threshold >> 64, threshold & mask
        below += 2 * weights[k + 1]
    return _Table(upper, lower)


def _last(kind: Kind, sigma: float) -> int:
    """The largest magnitude k in the table, for which P(|X| > k) is below 2 exp(-_TAIL).

    Source: Canonne, Kamath & Steinke 2020 (the discrete Gaussian is subgaussian); the Chernoff bound of the Skellam law
    """
    if kind == "ddg":
        return max(1, math.ceil(sigma * math.sqrt(2.0 * _TAIL)))
    variance = sigma * sigma
    k = max(1, math.ceil(sigma * math.sqrt(2.0 * _TAIL)))
    while k * math.asinh(k / variance) - k * k / (math.hypot(k, variance) + variance) < _TAIL:
        k += max(1, k >> 7)
    return k


def _gaussian_weights(sigma: float, last: int) -> list[int]:
    """2**256 exp(-k**2 / (2 sigma**2)) for k = 0 ... last, by w(k+1) = w(k) r(k), r(k+1) = r(k) exp(-1 / sigma**2)."""
    exact = Context(prec=120)  # operators would round to the 28 digits of the thread's own context
    exponent = exact.divide(Decimal(-1), exact.multiply(Decimal(sigma), Decimal(sigma)))
    step = _fixed(exact.exp(exponent), exact)
    ratio = _fixed(exact.exp(exact.divide(exponent, Decimal(2))), exact)
    weights = [1 << _WORK_BITS]
    for _ in range(last):
        weights.append(weights[-1] * ratio >> _WORK_BITS)
        ratio = ratio * step >> _WORK_BITS
    return weights


def _fixed(value: Decimal, exact: Context) -> int:
    return int(exact.multiply(value, Decimal(1 << _WORK_BITS)))


def _skellam_weights(sigma: float, last: int) -> list[int]:
    """Multiples of exp(-v) I_k(v), v = sigma**2, for k = 0 ... last, by I(k-1) = I(k+1) + (2 k / v) I(k) downwards.

    All terms are positive, so nothing cancels; beginning with I(last + 1) = 0 moves no probability by more than that of
    last + 1, which is below exp(-_TAIL).
    Source: Miller 1952 (backward recurrence); Gil, Segura & Temme 2007, Numerical Methods for Special Functions, chapter 4
    """
    factor = int(Fraction(2 << _WORK_BITS) / Fraction(sigma) ** 2)
    above, weight = 0, 1 << _WORK_BITS
    weights = [weight]
    for k in range(last, 0, -1):
        above, weight = weight, above + (k * factor * weight >> _WORK_BITS)
        weights.append(weight)
    weights.reverse()
    return weights


def _count(table: _Table, high: int, low: int) -> int:
    """How many of the table's entries are at most ``high`` * 2**64 + ``low``."""
    start = int(np.searchsorted(table.upper, np.uint64(high), side="left"))
    end = int(np.searchsorted(table.upper, np.uint64(high), side="right"))
    return start + bisect_right(table.lower[start:end].tolist(), low)
