"""The discrete Gaussian on the integers without an error, and what it may be charged as.

The sampler uses integer arithmetic only, so no rounding of floating-point numbers can show in the noise. Its running time varies with the
value that it draws: whoever can measure the time of a single draw learns something about it.

A discrete Gaussian satisfies the same concentrated DP as the Gaussian of its standard deviation, but its (epsilon, delta) curve is not
bounded by that Gaussian's curve. It is bounded by the curve of a slightly smaller Gaussian: let Y be normal with variance s**2 around an
integer, and draw K from the discrete Gaussian with parameter r around Y. By Poisson summation the normaliser of that draw is
r sqrt(2 pi) (1 + e) with |e| <= 2 exp(-2 pi**2 r**2) (1 + 1e-30), whatever Y is. Hence K, which is post-processing of the Gaussian
mechanism, has at every integer the probability of the discrete Gaussian with variance s**2 + r**2, up to a factor within (1 + e) / (1 - e).
With r = 2 that factor is within exp(+-3e-34), which no figure resolves even over a billion values. A discrete Gaussian with variance
:data:`EXTRA` = r**2 above that of a Gaussian may therefore be charged as that Gaussian, by every accountant and in every composition.

Source: Canonne, Kamath & Steinke 2020, The Discrete Gaussian for Differential Privacy, algorithms 1 to 3 and theorem 14; Peikert 2010, An
Efficient and Parallel Gaussian Sampler for Lattices, theorem 3.1 (the convolution)
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import numpy.typing as npt

from fedray.updates.stage import Source

#: Variance, in grid units, that the discrete Gaussian has above the Gaussian that it is charged as: r**2 of the module's text.
EXTRA = 4

_WORDS = 512


def exact_gaussian(variance: int, n: int, source: Source) -> npt.NDArray[np.int64]:
    """``n`` independent draws with P(k) proportional to exp(-k**2 / (2 ``variance``)), int64; zeros if ``variance`` is 0.

    Args:
        variance: the parameter sigma**2, an integer of at least 0 and below 2**100.
        n: number of draws.
        source: of random 64-bit words.

    Raises:
        ValueError: the variance is out of range.
    """
    if not 0 <= variance < 1 << 100:
        raise ValueError(f"the variance of a discrete Gaussian is between 0 and 2**100, but is {variance}.")
    draws = _Draws(source)
    return np.array([draws.gaussian(variance) if variance else 0 for _ in range(n)], dtype=np.int64)


class _Draws:
    """Exact draws from integers' laws, from a stream of words."""

    def __init__(self, source: Source) -> None:
        self._source, self._words = source, list[int]()

    def below(self, bound: int) -> int:
        """A uniform integer from 0 to ``bound`` - 1."""
        bits = (bound - 1).bit_length()
        while True:
            value, left = 0, bits
            while left > 0:
                if not self._words:
                    self._words = self._source.u64(_WORDS).tolist()
                value, left = value << 64 | self._words.pop(), left - 64
            value >>= -left
            if value < bound:
                return value

    def decays(self, numerator: int, denominator: int) -> bool:
        """True with probability exp(-numerator / denominator)."""
        while numerator > denominator:
            if not self._decays_once(1, 1):
                return False
            numerator -= denominator
        return self._decays_once(numerator, denominator)

    def _decays_once(self, numerator: int, denominator: int) -> bool:
        """:meth:`decays` for fractions of at most 1: the number of successes in a row of coins of probability fraction / k is even."""
        k = 1
        while self.below(denominator * k) < numerator:
            k += 1
        return k % 2 == 1

    def laplace(self, scale: int) -> int:
        """An integer x with probability proportional to exp(-|x| / ``scale``)."""
        while True:
            rest = self.below(scale)
            if not self._decays_once(rest, scale):
                continue
            whole = 0
            while self._decays_once(1, 1):
                whole += 1
            size, negative = rest + scale * whole, self.below(2)
            if size or not negative:
                return -size if negative else size

    def gaussian(self, variance: int) -> int:
        """An integer x with probability proportional to exp(-x**2 / (2 ``variance``)), by rejection from :meth:`laplace`."""
        scale = isqrt(variance) + 1
        while True:
            x = self.laplace(scale)
            if self.decays((abs(x) * scale - variance) ** 2, 2 * variance * scale * scale):
                return x
