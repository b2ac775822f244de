"""Renyi divergences of the ledger's events, and epsilon from them.

A vector holds one upper bound per default order of dp-accounting; the vectors of independent mechanisms add up. A mechanism without a
bound at an order has infinity there, so that the conversion to epsilon does not use that order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.privacy.accounting.events import (
    Adjacency,
    Composed,
    Composition,
    DistributedGaussian,
    Event,
    Gaussian,
    Laplace,
    Poisson,
    PureDp,
    RepeatAndSelect,
    SelfComposed,
    Skellam,
    Tree,
    Wor,
    ZCdp,
)
from fedray.privacy.accounting.repetition import Repetitions

Floats = npt.NDArray[np.float64]

_FLOOR = 1e-15


@lru_cache(maxsize=1)
def orders() -> Floats:
    """The Renyi orders, float64 (156,), increasing, all above 1."""
    from dp_accounting.rdp import RdpAccountant

    return np.array(RdpAccountant().orders, dtype=np.float64)


def divergences(composition: Composition, adjacency: Adjacency, whole: bool = False) -> Floats:
    """The summed divergences of a composition whose events RDP bounds under ``adjacency``, float64 ``[orders]``; ``whole``: see :func:`vector`."""
    total: Floats = np.zeros(len(orders()))
    for event, count in composition:
        total += count * vector(event, adjacency, whole)
    return total


@lru_cache(maxsize=4096)
def vector(event: Event, adjacency: Adjacency, whole: bool = False) -> Floats:
    """The divergences of one elementary event, float64 ``[orders]``, read-only; infinite at orders without a bound.

    With ``whole``, fractional orders that dp-accounting would compute are infinite as well, which is faster and gives a looser bound.
    """
    match event:
        case Laplace(0.0):
            found = np.full(len(orders()), np.inf)
        case PureDp(limit):
            found = _randomised_response(limit)
        case DistributedGaussian() | Skellam():
            found = _at_whole_orders(lambda order: float(_integer_noise(event, np.array([order]))[0]))
        case Poisson(q, DistributedGaussian() | Skellam() as of):
            every = _integer_noise(of, np.arange(2.0, orders()[-1] + 1.0))
            found = _at_whole_orders(lambda order: poisson_bound(float(q), every[: int(order) - 1]))
        case RepeatAndSelect(mean, shape, of):
            found = selected(np.max([_summed(each, adjacency, whole) for each in of], axis=0), Repetitions(mean, shape))
        case _:
            found = _by_library(event, adjacency, whole)
    # A negative or undefined divergence is a numerical cancellation, which dp-accounting would convert to epsilon 0.
    found[np.isnan(found) | (found < -_FLOOR)] = np.inf
    floored: Floats = np.maximum(found, _FLOOR)
    floored.flags.writeable = False
    return floored


def _summed(event: Event, adjacency: Adjacency, whole: bool) -> Floats:
    """The divergences of a composed event."""
    match event:
        case SelfComposed(count, of):
            return count * _summed(of, adjacency, whole)
        case Composed(of):
            return sum((_summed(each, adjacency, whole) for each in of), np.zeros(len(orders())))
        case _:
            return vector(event, adjacency, whole)


def selected(once: Floats, repetitions: Repetitions) -> Floats:
    """The divergences of the best of a random number of outputs of one mechanism, if nothing of the others is released.

    Source: Papernot & Steinke 2022, Hyperparameter Tuning with Renyi Differential Privacy, theorem 2; a divergence never exceeds that of
    a higher order (van Erven & Harremoes 2014, theorem 3)

    Args:
        once: the mechanism's divergences, float64 ``[orders]``.
        repetitions: the distribution of the number of outputs.
    """
    a = orders()
    cost = (1 + repetitions.shape) * float(np.min((1 - 1 / a) * once - math.log(repetitions.lowest_gamma) / a))
    found: Floats = once + math.log(repetitions.mean) / (a - 1) + cost
    return np.minimum.accumulate(found[::-1])[::-1]


def poisson_bound(q: float, inner: Floats) -> float:
    """The divergence of any mechanism on a Poisson sample, at one whole order.

    It is at most log(3)/(order - 1) above the exact divergence of a Gaussian, and never above the mechanism's without sampling.
    Source: Zhu & Wang 2019, Poisson Subsampled Renyi Differential Privacy, general upper bound; without sampling: van Erven &
    Harremoes 2014, Renyi Divergence and Kullback-Leibler Divergence, theorem 13 (joint quasi-convexity)

    Args:
        q: the sampling rate, above 0 and below 1.
        inner: the mechanism's divergences at the orders 2, 3, ... up to the wanted order, float64.
    """
    from scipy.special import gammaln, logsumexp

    order = len(inner) + 1
    k = np.arange(2, order + 1)
    chosen = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = chosen + k * math.log(q) + (order - k) * math.log1p(-q) + (k - 1) * inner + np.where(k > 2, math.log(3.0), 0.0)
    none_or_one = (order - 1) * math.log1p(-q) + math.log1p((order - 1) * q)
    return min(float(inner[-1]), float(logsumexp(np.append(terms, none_or_one))) / (order - 1))


def epsilon(summed: Floats, delta: float) -> float:
    """Epsilon of summed divergences: min over orders a of rdp + log(1 - 1/a) - log(delta a)/(a - 1), or 0 if the KL bound gives it.

    Source: Canonne, Kamath & Steinke 2020, The Discrete Gaussian for Differential Privacy, proposition 12
    """
    if not summed.any():
        return 0.0
    figures = summed + np.log1p(-1.0 / orders()) - np.log(delta * orders()) / (orders() - 1.0)
    figures = np.where(delta**2 + np.expm1(-summed) > 0, 0.0, figures)
    return float(max(0.0, figures.min()))


def _randomised_response(limit: float) -> Floats:
    """Divergences of randomised response with the odds exp(``limit``).

    Source: Mironov 2017, Renyi Differential Privacy, proposition 5
    """
    truth, lie = -math.log1p(math.exp(-limit)), -limit - math.log1p(math.exp(-limit))
    a = orders()
    found: Floats = np.logaddexp(a * truth + (1 - a) * lie, a * lie + (1 - a) * truth) / (a - 1)
    return found


def _at_whole_orders(bound: Callable[[float], float]) -> Floats:
    return np.array([bound(order) if order.is_integer() else math.inf for order in orders().tolist()])


def _integer_noise(event: DistributedGaussian | Skellam, order: Floats) -> Floats:
    """Divergences of a sum under integer noise at whole orders, float64 of the same shape.

    Source: DistributedGaussian and Skellam in :mod:`fedray.privacy.accounting.events`; both as in google-research/federated's accounting
    """
    match event:
        case Skellam(variance, l2, l1):
            if variance == 0:
                return np.full(order.shape, np.inf)
            tail = np.minimum(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
            return order * l2**2 / (2 * variance) + tail
        case DistributedGaussian(clients, sigma, _, _, d):
            if sigma == 0:
                return np.full(order.shape, np.inf)
            j = np.arange(1, clients)
            tau = 10.0 * float(np.exp(-2.0 * (math.pi * sigma) ** 2 * (j / (j + 1))).sum())
            l2, l1 = (norm / (math.sqrt(clients) * sigma) for norm in (event.l2, event.l1))
            half = order / 2
            crossed = np.minimum(half * (l2**2 + 2 * l1 * tau + tau**2 * d), half * (l2 + math.sqrt(d) * tau) ** 2)
            return np.minimum(half * l2**2 + tau * d, crossed)


def _by_library(event: Event, adjacency: Adjacency, whole: bool) -> Floats:
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    replace_one = adjacency == "replace_one"
    relation = NeighboringRelation.REPLACE_ONE if replace_one else NeighboringRelation.REPLACE_SPECIAL
    wanted = [order.is_integer() or not whole for order in orders().tolist()]
    accountant = RdpAccountant(orders()[wanted].tolist(), neighboring_relation=relation)
    with _quiet():
        accountant.compose(to_dp_event(_halved(event) if replace_one else event))
    found = np.full(len(orders()), np.inf)
    found[wanted] = accountant.rdp
    return found


def to_dp_event(event: Event) -> Any:
    """The dp-accounting event of the same meaning, for events that dp-accounting bounds by RDP; noise multipliers are passed unchanged."""
    import dp_accounting as dp

    match event:
        case Gaussian(z):
            return dp.GaussianDpEvent(z)
        case Laplace(z):
            return dp.LaplaceDpEvent(z)
        case ZCdp(rho, xi):
            return dp.ZCDpEvent(rho=rho, xi=xi)
        case Tree(z, steps):
            return dp.SingleEpochTreeAggregationDpEvent(z, steps)
        case Poisson(q, of):
            return dp.PoissonSampledDpEvent(float(q), to_dp_event(of))
        case Wor(n, m, gaussian):
            return dp.SampledWithoutReplacementDpEvent(n, m, to_dp_event(gaussian))
        case SelfComposed(count, of):
            return dp.SelfComposedDpEvent(to_dp_event(of), count)
        case _:
            raise TypeError(f"no event of dp-accounting for {event!r}")


def _halved(event: Event) -> Event:
    """The event with half the noise, because the sensitivity under replace-one is 2C, which dp-accounting's RDP ignores.

    Source: google/differential-privacy#378
    """
    match event:
        case Gaussian(z):
            return Gaussian(z / 2)
        case Wor(n, m, Gaussian(z)):
            return Wor(n, m, Gaussian(z / 2))
        case _:
            return event


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress dp-accounting's log line for every fractional order that it skips; a skipped order is infinite and not used."""
    logger = logging.getLogger("absl")
    logger.addFilter(_converged)
    try:
        yield
    finally:
        logger.removeFilter(_converged)


def _converged(record: logging.LogRecord) -> bool:
    return "failed to converge" not in record.getMessage()
