"""The random number of trials of a sealed search: the truncated negative binomial distribution on 1, 2, 3, ...

The probability of k is proportional to (1 - gamma)^k times the product of (j + shape) / (j + 1) over j = 0 ... k - 1; with shape 0 it is
proportional to (1 - gamma)^k / k.

Source: Papernot & Steinke 2022, Hyperparameter Tuning with Renyi Differential Privacy, definition 1
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

#: Probability below which the rest of the distribution is not looked at; far below every delta.
_NEGLIGIBLE = 2.0**-80


@dataclass(frozen=True)
class Repetitions:
    """The distribution by its ``mean`` (at least 1) and its ``shape`` (0: logarithmic, 1: geometric, or any other above 0)."""

    mean: float
    shape: float

    @cached_property
    def _gammas(self) -> tuple[float, float]:
        """Two neighbouring values of gamma, whose means are at least and at most ``mean``."""
        low, high = math.log(2.0**-200), 0.0
        while high - low > 1e-13 * max(1.0, -low):
            middle = (low + high) / 2
            if self._mean(middle) > self.mean:
                low = middle
            else:
                high = middle
        return math.exp(low), math.exp(high)

    def _mean(self, log_gamma: float) -> float:
        """The mean for gamma = exp(``log_gamma``), which falls as gamma grows."""
        if log_gamma == 0:
            return 1.0
        odds = math.expm1(-log_gamma)
        if self.shape == 0:
            return odds / -log_gamma
        return self.shape * odds / -math.expm1(self.shape * log_gamma)

    @property
    def lowest_gamma(self) -> float:
        """The gamma with which the privacy cost is computed; the one that is drawn with is not below it."""
        return self._gammas[0]

    def probabilities(self) -> Iterator[float]:
        """The probabilities of 1, 2, 3, ..., without an end."""
        gamma = self._gammas[1]
        miss = 1.0 - gamma
        if miss == 0:
            p = 1.0
        elif self.shape == 0:
            p = miss / -math.log(gamma)
        else:
            p = miss * self.shape / math.expm1(-self.shape * math.log(gamma))
        k = 1
        while True:
            yield p
            p *= miss * (k + self.shape) / (k + 1)
            k += 1

    def number(self, u: float) -> int:
        """The number whose cumulative probability first exceeds ``u``, which is uniform in (0, 1); so it is also the quantile at ``u``.

        Float64 arithmetic changes a probability by less than 1e-12 of itself.
        """
        below = 0.0
        for k, p in enumerate(self.probabilities(), start=1):
            below += p
            if below > u or (p < _NEGLIGIBLE and k > self.mean):
                return k
        raise AssertionError
