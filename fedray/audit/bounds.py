"""Lower bounds and estimates of epsilon from an adversary's success.

The functions :func:`one_run` to :func:`gaussian` give lower bounds: if the mechanism were (epsilon, delta)-DP with a smaller epsilon, so
many correct answers would occur with probability at most ``significance``. The functions :func:`from_scores` and
:func:`from_scores_alike` give estimates, which bound nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

Floats = npt.NDArray[np.float64]

#: Probability with which a lower bound holds; one in twenty lies above the true epsilon.
CONFIDENCE = 0.95
SIGNIFICANCE = 1.0 - CONFIDENCE
#: A larger epsilon is reported as infinite.
MOST = 1e3
_TOLERANCE = 1e-9


def one_run(canaries: int, guesses: int, correct: int, delta: float, significance: float = SIGNIFICANCE) -> float:
    """The largest epsilon that one training run refutes; 0 if it refutes none.

    One fair coin per canary decides whether the canary is in the training data. The adversary guesses some of the coins.

    Args:
        canaries: number m of coins.
        guesses: number r of guessed coins, fixed before the scores are seen; the order of the scores selects them.
        correct: number v of correct guesses.
        delta: delta of the audited claim.
        significance: probability with which the bound may exceed the true epsilon.

    Source: Steinke, Nasr & Jagielski 2023, Privacy Auditing with One (1) Training Run, theorem 5.2 and algorithm 1
    """

    def p_value(epsilon: float) -> float:
        right = 1.0 / (1.0 + math.exp(-epsilon))
        beta = float(stats.binom.sf(correct - 1, guesses, right))
        i = np.arange(1, correct + 1)
        if delta == 0 or not len(i):
            return beta
        slope = float(np.max((stats.binom.sf(correct - i - 1, guesses, right) - beta) / i, initial=0.0))
        return min(1.0, beta + 2.0 * canaries * delta * slope)

    return _largest_refuted(p_value, significance)


def one_run_gaussian(canaries: int, guesses: int, correct: int, delta: float, significance: float = SIGNIFICANCE) -> float:
    """As :func:`one_run` for mechanisms that are mu-GDP: tighter, but void for other mechanisms.

    Returns:
        epsilon at ``delta`` of the largest refuted mu.

    Source: Mahloujifar, Melis & Chaudhuri 2024, Auditing f-Differential Privacy in One Run, algorithm 3
    """
    if guesses == 0:
        return 0.0

    def refuted(mu: float) -> bool:
        share = significance * guesses / canaries
        r, h = share * correct / guesses, share * (guesses - correct) / guesses
        for i in range(correct - 1, -1, -1):
            higher = max(h, float(ndtr(stats.norm.ppf(r) - mu)))
            r += i / (guesses - i) * (higher - h)
            h = higher
        return r + h > guesses / canaries

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
        if high > MOST:
            return math.inf
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return gaussian_epsilon(low, delta)


def clopper_pearson(members: int, others: int, hits: int, alarms: int, delta: float, significance: float = SIGNIFICANCE) -> float:
    """A lower bound on epsilon from a membership test with a threshold that was fixed beforehand.

    Args:
        members: number of records (or runs) with the canary.
        others: number of records (or runs) without it.
        hits: number of members that the test calls members.
        alarms: number of others that the test calls members.
        delta: delta of the audited claim.
        significance: probability with which the bound may exceed the true epsilon; each of the two rates uses half of it.

    Source: Jagielski, Ullman & Oprea 2020, Auditing Differentially Private Machine Learning; Nasr et al. 2021,
    Adversary Instantiation. The observations are assumed to be independent.
    """
    low, high = _rates(members, others, hits, alarms, significance)
    miss_high, reject_low = 1.0 - low, 1.0 - high
    return max(0.0, _log_ratio(low - delta, high), _log_ratio(reject_low - delta, miss_high))


def gaussian(members: int, others: int, hits: int, alarms: int, delta: float, significance: float = SIGNIFICANCE) -> float:
    """As :func:`clopper_pearson` for mechanisms that are mu-GDP.

    Source: Nasr et al. 2023, Tight Auditing of Differentially Private Machine Learning, section 4
    """
    low, high = _rates(members, others, hits, alarms, significance)
    mu = float(stats.norm.ppf(1.0 - high) - stats.norm.ppf(1.0 - low))
    return gaussian_epsilon(mu, delta) if mu > 0 else 0.0


def from_scores(scores: Floats, null_mean: float, null_std: float, delta: float) -> float:
    """An estimate of epsilon from the distance of two Gaussians, of which one is fitted to the canaries' scores.

    Args:
        scores: scores of at least two canaries that took part, float64.
        null_mean, null_std: mean and standard deviation of the score of a canary that did not, known (N(0, 1/d) for cosines) or fitted.
        delta: delta of the audited claim.

    Returns:
        The smallest epsilon at which the two Gaussians are (epsilon, delta)-indistinguishable; infinite above 1000.

    Source: Andrew et al. 2023, One-shot Empirical Privacy Estimation for Federated Learning, algorithm 2
    """
    mean, std = float(np.mean(scores)), float(np.std(scores, ddof=1))
    if std == 0.0 or null_std == 0.0:
        return 0.0 if mean == null_mean and std == null_std else math.inf

    def delta_at(epsilon: float) -> float:
        there = _hockey_stick(epsilon, mean, std, null_mean, null_std)
        return max(there, _hockey_stick(epsilon, null_mean, null_std, mean, std))

    return _epsilon_at(delta_at, delta)


def from_scores_alike(inside: Floats, outside: Floats, delta: float, errors: float = 0.0) -> float:
    """As :func:`from_scores` with one standard deviation fitted to both sides, which is more stable if neither distribution is known.

    Args:
        inside: scores of canaries that took part, float64.
        outside: scores of canaries that did not, float64.
        delta: delta of the audited claim.
        errors: number of standard errors by which the difference of the means is reduced.
    """
    std = math.sqrt((float(np.var(inside)) + float(np.var(outside))) / 2)
    apart = float(np.mean(inside) - np.mean(outside))
    if std == 0.0:
        return math.inf if apart else 0.0
    return gaussian_epsilon(apart / std - errors * math.sqrt(1 / len(inside) + 1 / len(outside)), delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at ``delta`` of a mu-GDP mechanism.

    Source: Dong, Roth & Su 2022, Gaussian Differential Privacy, corollary 2.13
    """
    return _epsilon_at(lambda e: float(ndtr(mu / 2 - e / mu) - np.exp(e + log_ndtr(-mu / 2 - e / mu))), delta) if mu > 0 else 0.0


def _rates(members: int, others: int, hits: int, alarms: int, significance: float) -> tuple[float, float]:
    """Clopper-Pearson bounds, each at half the significance: the smallest true and the largest false positive rate."""
    least = float(stats.beta.ppf(significance / 2, hits, members - hits + 1)) if hits else 0.0
    most = float(stats.beta.ppf(1 - significance / 2, alarms + 1, others - alarms)) if alarms < others else 1.0
    return least, most


def _log_ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0 and below > 0 else -math.inf


def _largest_refuted(p_value: Callable[[float], float], significance: float) -> float:
    if p_value(0.0) > significance:
        return 0.0
    high = 1.0
    while p_value(high) < significance:
        high *= 2
        if high > MOST:
            return math.inf
    return float(brentq(lambda e: p_value(e) - significance, 0.0, high, xtol=_TOLERANCE))


def _epsilon_at(delta_at: Callable[[float], float], delta: float) -> float:
    if delta_at(0.0) <= delta:
        return 0.0
    if delta_at(MOST) > delta:
        return math.inf
    return float(brentq(lambda e: delta_at(e) - delta, 0.0, MOST, xtol=_TOLERANCE))


def _hockey_stick(epsilon: float, mean: float, std: float, other_mean: float, other_std: float) -> float:
    """P(S) - e^epsilon Q(S) for the set S on which the density ratio of two Gaussians P and Q exceeds e^epsilon."""
    a = 0.5 * (1 / other_std**2 - 1 / std**2)
    b = mean / std**2 - other_mean / other_std**2
    c = 0.5 * ((other_mean / other_std) ** 2 - (mean / std) ** 2) + math.log(other_std / std) - epsilon
    if abs(a) * std * other_std < 1e-12:
        if b == 0:
            return max(0.0, -math.expm1(epsilon)) if c > 0 else 0.0
        pieces = [(-c / b, math.inf)] if b > 0 else [(-math.inf, -c / b)]
    else:
        root = b * b - 4 * a * c
        if root <= 0:
            return 0.0 if a < 0 else max(0.0, -math.expm1(epsilon))
        ends = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))
        pieces = [(-math.inf, ends[0]), (ends[1], math.inf)] if a > 0 else [(ends[0], ends[1])]
    inside = sum(_mass(low, high, mean, std) for low, high in pieces)
    log_outside = [_log_mass(low, high, other_mean, other_std) for low, high in pieces]
    return max(0.0, inside - sum(math.exp(min(epsilon + value, 700.0)) for value in log_outside))


def _mass(low: float, high: float, mean: float, std: float) -> float:
    return math.exp(_log_mass(low, high, mean, std))


def _log_mass(low: float, high: float, mean: float, std: float) -> float:
    """Logarithm of a Gaussian's mass between two points, accurate in both tails."""
    x, y = (low - mean) / std, (high - mean) / std
    if x > 0:
        x, y = -y, -x
    upper, lower = float(log_ndtr(y)), float(log_ndtr(x))
    return upper + math.log1p(-math.exp(min(lower - upper, 0.0))) if lower < upper else -math.inf
