"""Epsilon of what was spent: upper bounds by RDP and by privacy-loss distributions.

Adjacency is zero-out (Kairouz et al. 2021, Practical and Private (Deep) Learning without Sampling or
Shuffling, definition 1.1: one unit's contribution is replaced by nothing, counts stay public), unless a
function is told otherwise. Everything is memoised by composition, so that a thousand clients with a
handful of different histories cost a handful of evaluations.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError, LedgerError
from fedray.privacy.events import (
    Composed,
    Event,
    Gaussian,
    Laplace,
    Poisson,
    SelfComposed,
    Tree,
    TruncatedPoisson,
    Unsupported,
    Wor,
    ZCdp,
    canonical,
    to_dp_event,
)

Accountant = Literal["pld", "rdp"]
Adjacency = Literal["zero_out", "replace_one"]
Spent = Mapping[Event, int]
#: Elementary mechanisms with how often each ran, in a fixed order: the key of every cache here.
Composition = tuple[tuple[Event, int], ...]
Floats = npt.NDArray[np.float64]

#: Grid of the privacy loss while a run goes on, and for the final report. Discretisation errs upwards.
INTERVAL = 1e-3
FINAL_INTERVAL = 1e-4

_RDP_FLOOR = 1e-15
_MARGIN = 1e-6
_DIGITS = 5
_LEAST, _MOST = 0.1, 1e6
_COARSE_INTERVAL = 1e-2
_PLD_LIMIT = 500.0


def accountant_version() -> str:
    """The accounting library with its version, as written beside every figure."""
    return f"dp-accounting {version('dp-accounting')}"


def flatten(spent: Spent) -> Composition:
    """Compositions unrolled into elementary mechanisms with counts, sorted.

    Gaussians on the same Poisson sample are joined into one (1/sigma^2 adds up); a sample at rate 1 is no sample.
    """
    total: Counter[Event] = Counter()
    for event, count in spent.items():
        if count < 0:
            raise LedgerError(f"a count of {count} for the event {canonical(event)} is negative; a charge is never taken back.")
        _unroll(event, count, total)
    return tuple(sorted(((e, n) for e, n in total.items() if n), key=lambda item: canonical(item[0])))


def _unroll(event: Event, count: int, into: Counter[Event]) -> None:
    match event:
        case SelfComposed(n, of):
            _unroll(of, n * count, into)
        case Composed(events):
            for each in events:
                _unroll(each, count, into)
        case Poisson(q, of) if q == 1:
            _unroll(of, count, into)
        case Poisson(q, of):
            sigma = _joint_sigma(of)
            into[event if sigma is None else Poisson(q, Gaussian(sigma))] += count
        case _:
            into[event] += count


def _joint_sigma(event: Event) -> float | None:
    match event:
        case Gaussian(z):
            return z
        case SelfComposed(n, of):
            sigma = _joint_sigma(of)
            return None if sigma is None else sigma / math.sqrt(n)
        case Composed(events) if events:
            sigmas = [_joint_sigma(e) for e in events]
            known = [s for s in sigmas if s is not None]
            if len(known) < len(sigmas):
                return None
            return 0.0 if min(known) == 0 else 1.0 / math.sqrt(math.fsum(1.0 / s**2 for s in known))
        case _:
            return None


def epsilon(
    spent: Spent, delta: float, accountant: Accountant = "pld", interval: float = INTERVAL, adjacency: Adjacency = "zero_out"
) -> float:
    """An upper bound on epsilon at ``delta`` of everything in ``spent``.

    Args:
        spent: event to how often it was charged; empty costs 0.
        delta: above 0, below 1.
        accountant: ``pld`` (tight) or ``rdp`` (fast, looser).
        interval: grid of the privacy loss; PLD only. Coarser is faster and larger, never too small.
        adjacency: ``replace_one`` doubles the sensitivity; under RDP the noise multiplier is halved here,
            because dp-accounting 0.6 does not (google/differential-privacy#378).

    Returns:
        epsilon; infinite where something unbounded was released.

    Raises:
        LedgerError: the accountant does not bound one of the events.
        ConfigError: no such accountant, or a delta outside (0, 1).
    """
    _check(delta, accountant)
    return _epsilon(flatten(spent), delta, accountant, interval, adjacency)


def epsilon_many(spents: Iterable[Spent], delta: float, accountant: Accountant = "pld", interval: float = INTERVAL) -> list[float]:
    """:func:`epsilon` of each; equal compositions are evaluated once."""
    _check(delta, accountant)
    return [_epsilon(flatten(spent), delta, accountant, interval, "zero_out") for spent in spents]


def bound(spent: Spent, delta: float, interval: float = INTERVAL) -> float:
    """The headline figure: the smaller of those of the two upper bounds that are valid for ``spent``.

    That is PLD's, but for events that only RDP bounds, for so many steps that the grid costs more than RDP
    loses, and above an RDP epsilon of 500, where PLD's arrays grow large and no figure means anything.

    Raises:
        LedgerError: neither accountant bounds all events.
    """
    _check(delta, "pld")
    composition = flatten(spent)
    by_rdp = math.inf
    if bounded(composition, "rdp"):
        by_rdp = _epsilon(composition, delta, "rdp", interval, "zero_out")
        if by_rdp > _PLD_LIMIT or not bounded(composition, "pld"):
            return by_rdp
    return min(by_rdp, _epsilon(composition, delta, "pld", interval, "zero_out"))


def affordable(spent: Spent, delta: float, budget: float, interval: float = INTERVAL) -> bool:
    """Whether :func:`bound` is at most ``budget``: the cached RDP vectors first, PLD only where they do not decide."""
    _check(delta, "pld")
    composition = flatten(spent)
    if bounded(composition, "rdp") and _epsilon(composition, delta, "rdp", interval, "zero_out") <= budget:
        return True
    return bound(spent, delta, interval) <= budget


def person_epsilon(spents: Sequence[Spent], delta: float, silos: int) -> float:
    """Epsilon for a person with a record in each of up to ``silos`` clients.

    With one silo this is the largest client's figure (parallel composition); with more, the ``silos``
    largest Renyi divergences are added up order by order and converted.

    Raises:
        LedgerError: RDP does not bound one of the events (two silos or more).
    """
    if silos == 1:
        return max((bound(spent, delta) for spent in spents), default=0.0)
    if not spents:
        return 0.0
    distinct = Counter(flatten(spent) for spent in spents)
    rows = [np.repeat(_rdp_total(c, "zero_out")[None], min(n, silos), axis=0) for c, n in distinct.items()]
    largest = np.sort(np.concatenate(rows), axis=0)[-silos:]
    return _convert(largest.sum(axis=0), delta)


def calibrate(
    event_of: Callable[[float], Event],
    count: int,
    delta: float,
    target: float,
    interval: float = INTERVAL,
    spent: Spent | None = None,
) -> float:
    """The smallest noise multiplier (not below 0.1) at which ``count`` events cost at most ``target``.

    The result is rounded up to five digits, and its figure at the same ``interval`` that refusals use is
    below ``target`` by a hair, so that a planned round is never refused, on any machine.

    Args:
        event_of: the event for a noise multiplier; must cost less for larger ones.
        count: how often it is charged.
        delta: above 0, below 1.
        target: epsilon.
        interval: grid of the privacy loss.
        spent: what was spent before and counts towards the target.

    Raises:
        ConfigError: no noise multiplier up to a million reaches the target.
    """
    _check(delta, "pld")
    goal = target * (1.0 - _MARGIN)

    def cost(z: float, by: Accountant, grid: float) -> float:
        total = Counter(spent or {})
        total[event_of(z)] += count
        return _epsilon(flatten(total), delta, by, grid, "zero_out")

    if cost(_LEAST, "rdp", interval) <= goal and cost(_LEAST, "pld", interval) <= goal:
        return _LEAST
    found = 1.0
    if not spent:  # the looser figures bring the search near, but may exceed the target by what was spent alone
        found = _root(lambda z: cost(z, "rdp", interval), goal, found, 0.05)
        found = _root(lambda z: cost(z, "pld", max(interval, _COARSE_INTERVAL)), goal, found, 0.01)
    found = _round_up(_root(lambda z: cost(z, "pld", interval), goal, found, 1e-6))
    while cost(found, "pld", interval) > goal:
        found = _round_up(found * (1.0 + 10.0 ** (1 - _DIGITS)))
    return found


def _root(cost: Callable[[float], float], goal: float, start: float, tolerance: float) -> float:
    """Where the falling ``cost`` meets ``goal``, to a factor 1 + ``tolerance``; searched from ``start`` in logarithms."""
    from scipy.optimize import brentq

    def excess(x: float) -> float:
        value = cost(math.exp(x))
        return math.log(min(max(value / goal, 1e-20), 1e20))

    least, most = math.log(_LEAST), math.log(_MOST)
    low = high = math.log(start)
    step = 0.05
    while excess(low) <= 0:
        if low <= least:
            return _LEAST
        high, low, step = low, max(low - step, least), step * 2
    while excess(high) > 0:
        if high >= most:
            raise ConfigError(
                f"privacy.target_epsilon: no noise multiplier up to {_MOST:g} reaches {goal:g}; "
                "raise the target or delta, or plan fewer steps."
            )
        low, high, step = high, min(high + step, most), step * 2
    return math.exp(brentq(excess, low, high, xtol=tolerance))


def _round_up(z: float) -> float:
    places = _DIGITS - 1 - math.floor(math.log10(z))
    rounded = round(z, places)
    return rounded if rounded >= z else round(rounded + 10.0**-places, places)


def _check(delta: float, accountant: str) -> None:
    if accountant not in ("pld", "rdp"):
        raise ConfigError(
            f"accountant '{accountant}' is not offered; use pld or rdp (gdp is no bound, and prv runs out of memory on long histories)."
        )
    if not 0 < delta < 1:
        raise ConfigError(f"privacy.delta: must lie between 0 and 1, but is {delta}.")


def bounded(composition: Composition, accountant: Accountant, adjacency: Adjacency = "zero_out") -> bool:
    """Whether ``accountant`` bounds every event of ``composition``."""
    return all(_valid(event, accountant, adjacency) for event, _ in composition)


def _valid(event: Event, accountant: Accountant, adjacency: Adjacency) -> bool:
    zero_out = adjacency == "zero_out"
    match event:
        case Unsupported() | Gaussian():
            return True
        case Poisson(_, Gaussian()):
            return zero_out or accountant == "pld"
        case Poisson(_, Laplace()) | TruncatedPoisson():
            return zero_out and accountant == "pld"
        case Laplace():
            return zero_out
        case ZCdp():
            return accountant == "rdp" and zero_out
        case Tree():
            return accountant == "rdp" and zero_out
        case Wor():
            return accountant == "rdp" and not zero_out
        case _:
            return False


def _refuse(composition: Composition, accountant: Accountant, adjacency: Adjacency) -> None:
    for event, _ in composition:
        if not _valid(event, accountant, adjacency):
            other: Accountant = "rdp" if accountant == "pld" else "pld"
            hint = f"use {other}" if _valid(event, other, adjacency) else "nor does the other, so nothing more may be charged to this book"
            relation = adjacency.replace("_", "-")
            raise LedgerError(
                f"the accountant {accountant} does not bound the event {canonical(event)} under {relation} adjacency; {hint}."
            )


@lru_cache(maxsize=16384)
def _epsilon(composition: Composition, delta: float, accountant: Accountant, interval: float, adjacency: Adjacency) -> float:
    if not composition:
        return 0.0
    _refuse(composition, accountant, adjacency)
    if any(isinstance(event, Unsupported) for event, _ in composition):
        return math.inf
    if accountant == "rdp":
        return _convert(_rdp_total(composition, adjacency), delta)
    return _pld_epsilon(composition, delta, interval, adjacency)


def _relation(adjacency: Adjacency) -> Any:
    from dp_accounting import NeighboringRelation

    return NeighboringRelation.REPLACE_SPECIAL if adjacency == "zero_out" else NeighboringRelation.REPLACE_ONE


def _pld_epsilon(composition: Composition, delta: float, interval: float, adjacency: Adjacency) -> float:
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_relation(adjacency), interval)
    for event, count in composition:
        accountant.compose(to_dp_event(event), count)
    figure = float(accountant.get_epsilon(delta))
    return math.inf if math.isnan(figure) else max(0.0, figure)


@lru_cache(maxsize=4096)
def _rdp_vector(event: Event, adjacency: Adjacency) -> Floats:
    """Renyi divergences of one event at dp-accounting's default orders; infinite where they cannot be computed."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=_relation(adjacency))
    with _quiet():
        accountant.compose(to_dp_event(_halved(event) if adjacency == "replace_one" else event))
    vector = np.array(accountant.rdp, dtype=np.float64)
    # A negative or undefined divergence is a cancellation at that order, not a free release: dp-accounting would convert it to epsilon 0.
    vector[np.isnan(vector) | (vector < -_RDP_FLOOR)] = np.inf
    vector = np.maximum(vector, _RDP_FLOOR)
    vector.flags.writeable = False
    return vector


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dp-accounting's line for each fractional order that it leaves out (such an order is infinite, so it is not used)."""
    logger = logging.getLogger("absl")
    logger.addFilter(_converged)
    try:
        yield
    finally:
        logger.removeFilter(_converged)


def _converged(record: logging.LogRecord) -> bool:
    return "failed to converge" not in record.getMessage()


def _halved(event: Event) -> Event:
    """The event with half the noise: under replace-one the sensitivity is 2C, which dp-accounting's RDP overlooks."""
    match event:
        case Gaussian(z):
            return Gaussian(z / 2)
        case Wor(n, m, Gaussian(z)):
            return Wor(n, m, Gaussian(z / 2))
        case _:
            return event


def _rdp_total(composition: Composition, adjacency: Adjacency) -> Floats:
    _refuse(composition, "rdp", adjacency)
    if any(isinstance(event, Unsupported) for event, _ in composition):
        return np.full(len(_orders()), np.inf)
    total: Floats = np.zeros(len(_orders()))
    for event, count in composition:
        total += count * _rdp_vector(event, adjacency)
    return total


@lru_cache(maxsize=1)
def _orders() -> Floats:
    from dp_accounting.rdp import RdpAccountant

    return np.array(RdpAccountant().orders, dtype=np.float64)


def _convert(rdp: Floats, delta: float) -> float:
    """RDP to epsilon: min over orders a of rdp + log(1 - 1/a) - log(delta a)/(a - 1), and 0 where the KL bound gives it.

    Source: Canonne, Kamath & Steinke 2020, The Discrete Gaussian for Differential Privacy, proposition 12
    """
    if not rdp.any():
        return 0.0
    orders = _orders()
    figures = rdp + np.log1p(-1.0 / orders) - np.log(delta * orders) / (orders - 1.0)
    figures = np.where(delta**2 + np.expm1(-rdp) > 0, 0.0, figures)
    return float(max(0.0, figures.min()))
