"""Upper bounds on the epsilon of charged events, by RDP and by privacy-loss distributions (PLD).

The default adjacency is zero-out (Kairouz et al. 2021, Practical and Private (Deep) Learning without Sampling or Shuffling, definition
1.1): one unit's contribution is replaced by nothing, and counts stay public. All figures are memoised by composition, so a thousand
clients with a few different histories cost a few evaluations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Literal

import numpy as np

from fedray.errors import ConfigError, LedgerError
from fedray.privacy.accounting import pld, renyi
from fedray.privacy.accounting.event_json import canonical
from fedray.privacy.accounting.events import (
    Adjacency,
    Composed,
    Composition,
    DistributedGaussian,
    Event,
    Gaussian,
    Laplace,
    Poisson,
    PoissonGroup,
    PureDp,
    RepeatAndSelect,
    SelfComposed,
    Skellam,
    Tree,
    TruncatedPoisson,
    Unsupported,
    Wor,
    ZCdp,
)
from fedray.privacy.accounting.mixture import largest_counts, largest_group, single_records

Accountant = Literal["pld", "rdp"]
Charges = Mapping[Event, int]

#: Grid spacing of the privacy loss during a run, and for final figures. Discretisation makes epsilon larger, never smaller.
INTERVAL = 1e-3
FINAL_INTERVAL = 1e-4

_MARGIN = 1e-6
_DIGITS = 5
_LEAST, _MOST = 0.1, 1e6
_COARSE_INTERVAL = 1e-2
_PLD_LIMIT = 500.0
#: Epsilon above which a group's privacy-loss distribution would not fit memory, by the group's size squared times one record's figure.
_GROUP_LIMIT = 1e4


def accountant_version() -> str:
    """Name and version of the accounting library, as written beside every figure."""
    return f"dp-accounting {version('dp-accounting')}"


def flatten(spent: Charges) -> Composition:
    """The charges as elementary mechanisms with counts, in a fixed order.

    Several Gaussians on the same Poisson sample become one Gaussian (1/sigma^2 adds up), and sampling at rate 1 is removed.

    Raises:
        LedgerError: a count is negative.
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
        case PoissonGroup(q, 1, z):
            _unroll(Poisson(q, Gaussian(z)), count, into)
        case PoissonGroup(q, size, z) if q == 1:
            into[Gaussian(z / size)] += count
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


def unamplified(spent: Charges) -> Counter[Event]:
    """The charges against an adversary who knows the participants: every event without its sampling of clients.

    Use it for ledgers whose unit is the client only, because batches of records are secret from every adversary.

    Returns:
        each event's count. A Poisson sample becomes the event on it; a truncated sample and a draw without replacement become their Gaussian.
    """
    total: Counter[Event] = Counter()
    for event, count in flatten(spent):
        _strip(event, count, total)
    return total


def _strip(event: Event, count: int, into: Counter[Event]) -> None:
    match event:
        case SelfComposed(n, of):
            _strip(of, n * count, into)
        case Composed(events):
            for each in events:
                _strip(each, count, into)
        case Poisson(_, of) | Wor(_, _, of):
            _strip(of, count, into)
        case TruncatedPoisson(_, _, _, z):
            into[Gaussian(z)] += count
        case RepeatAndSelect(mean, shape, of):
            stripped = [unamplified({each: 1}).items() for each in of]
            into[RepeatAndSelect(mean, shape, tuple(Composed(tuple(SelfComposed(n, e) for e, n in each)) for each in stripped))] += count
        case _:
            into[event] += count


def epsilon(
    spent: Charges, delta: float, accountant: Accountant = "pld", interval: float = INTERVAL, adjacency: Adjacency = "zero_out"
) -> float:
    """An upper bound on epsilon at ``delta`` of all charges.

    Args:
        spent: how often each event was charged; no charges cost 0.
        delta: between 0 and 1, both excluded.
        accountant: ``pld`` (tight) or ``rdp`` (faster and looser).
        interval: grid spacing of the privacy loss, for PLD only. A coarser grid is faster and gives a larger figure.
        adjacency: neighbouring relation. ``replace_one`` doubles the sensitivity in units of the clip norm; RDP halves the noise multiplier
            for it, because dp-accounting 0.6 does not (google/differential-privacy#378).

    Returns:
        epsilon; infinite if one of the events is unbounded.

    Raises:
        LedgerError: the accountant does not bound one of the events under this adjacency.
        ConfigError: the accountant is unknown, or delta is not between 0 and 1.
    """
    _check(delta, accountant)
    return _epsilon(flatten(spent), delta, accountant, interval, adjacency)


def bound(spent: Charges, delta: float, interval: float = INTERVAL, adjacency: Adjacency = "zero_out") -> float:
    """The headline figure: the smaller one of the upper bounds that are valid for ``spent``.

    PLD gives it in most cases. RDP gives it for events that only RDP bounds, for so many steps that the grid costs more than RDP loses, and
    above an RDP epsilon of 500, at which PLD's arrays grow large and no figure protects anyone. Charges of Gaussians alone are one
    Gaussian, whose exact figure needs no grid (Balle & Wang 2018, Improving the Gaussian Mechanism, theorem 8).

    Raises:
        LedgerError: neither accountant bounds all events under this adjacency.
    """
    _check(delta, "pld")
    composition = flatten(spent)
    if composition and all(isinstance(event, Gaussian) for event, _ in composition):
        return _gaussian(composition, delta, adjacency)
    by_rdp = math.inf
    if bounded(composition, "rdp", adjacency):
        by_rdp = _epsilon(composition, delta, "rdp", interval, adjacency)
        if by_rdp > _PLD_LIMIT or not bounded(composition, "pld", adjacency):
            return by_rdp
    elif _hopeless(composition, delta, adjacency):
        return math.inf
    return min(by_rdp, _epsilon(composition, delta, "pld", interval, adjacency))


def _hopeless(composition: Composition, delta: float, adjacency: Adjacency) -> bool:
    """Whether groups of records leave so little privacy that no figure is worth its computation."""
    size, single = largest_group(composition), flatten(single_records(composition))
    return size > 1 and bounded(single, "rdp", adjacency) and size**2 * _epsilon(single, delta, "rdp", 0.0, adjacency) > _GROUP_LIMIT


def affordable(spent: Charges, delta: float, budget: float, interval: float = INTERVAL, adjacency: Adjacency = "zero_out") -> bool:
    """Whether :func:`bound` is at most ``budget``. PLD is computed only if the cached RDP figure is above the budget."""
    _check(delta, "pld")
    composition = flatten(spent)
    if bounded(composition, "rdp", adjacency) and _epsilon(composition, delta, "rdp", interval, adjacency) <= budget:
        return True
    return bound(spent, delta, interval, adjacency) <= budget


def person_epsilon(spents: Sequence[Charges], delta: float, silos: int, adjacency: Adjacency = "zero_out") -> float:
    """Epsilon for a person with records in up to ``silos`` clients, each of whose charges covers what the person has there.

    For one silo it is the largest client's figure (parallel composition). For more silos, the ``silos`` largest Renyi divergences of
    each order are added, and the sums are converted to epsilon. Where RDP does not bound an event, the ``silos`` largest counts of each
    event are added, which are at least the counts of any ``silos`` clients, and all are composed.

    Raises:
        LedgerError: neither accountant bounds all events.
    """
    if silos == 1:
        return max((bound(spent, delta, adjacency=adjacency) for spent in spents), default=0.0)
    if not spents:
        return 0.0
    distinct = Counter(flatten(spent) for spent in spents)
    if not all(bounded(composition, "rdp", adjacency) for composition in distinct):
        return bound(largest_counts(distinct, silos), delta, adjacency=adjacency)
    rows = [np.repeat(_divergences(c, adjacency)[None], min(n, silos), axis=0) for c, n in distinct.items()]
    largest = np.sort(np.concatenate(rows), axis=0)[-silos:]
    return renyi.epsilon(largest.sum(axis=0), delta)


def calibrate(
    event_of: Callable[[float], Event],
    count: int,
    delta: float,
    target: float,
    interval: float = INTERVAL,
    spent: Charges | None = None,
    adjacency: Adjacency = "zero_out",
) -> float:
    """The smallest noise multiplier, at least 0.1, at which ``count`` events cost at most ``target``.

    PLD gives the cost, or RDP if PLD does not bound the events. The result is rounded up to five digits. Its figure, at the same
    ``interval`` at which refusals are decided, is below ``target`` by a relative 1e-6, so that no machine refuses a planned round.

    Args:
        event_of: the event for a noise multiplier; its cost must fall with the noise multiplier.
        count: number of charges of the event.
        delta: between 0 and 1, both excluded.
        target: epsilon to reach.
        interval: grid spacing of the privacy loss.
        spent: earlier charges, which count towards the target.
        adjacency: neighbouring relation.

    Raises:
        LedgerError: neither accountant bounds all events under this adjacency.
        ConfigError: no noise multiplier up to a million reaches the target.
    """
    _check(delta, "pld")
    goal = target * (1.0 - _MARGIN)

    def composition(z: float) -> Composition:
        total = Counter(spent or {})
        total[event_of(z)] += count
        return flatten(total)

    def cost(z: float, by: Accountant, grid: float) -> float:
        return _epsilon(composition(z), delta, by, grid, adjacency)

    def near(z: float) -> float:
        return renyi.epsilon(_divergences(flatten(single_records(composition(z))), adjacency, whole=True), delta)

    by_rdp = bounded(flatten(single_records(composition(1.0))), "rdp", adjacency)
    by: Accountant = "pld" if bounded(composition(1.0), "pld", adjacency) else "rdp"
    if (not by_rdp or near(_LEAST) <= goal) and cost(_LEAST, by, interval) <= goal:
        return _LEAST
    found = 1.0
    if not spent:  # the looser figures of earlier charges alone may exceed the target
        if by_rdp:
            found = _root(near, goal, found, 0.05)
        found = _root(lambda z: cost(z, by, max(interval, _COARSE_INTERVAL)), goal, found, 0.01)
    found = _round_up(_root(lambda z: cost(z, by, interval), goal, found, 1e-6))
    while cost(found, by, interval) > goal:
        found = _round_up(found * (1.0 + 10.0 ** (1 - _DIGITS)))
    return found


def _root(cost: Callable[[float], float], goal: float, start: float, tolerance: float) -> float:
    """The point at which the falling ``cost`` equals ``goal``, up to a factor 1 + ``tolerance``; searched from ``start`` in logarithms."""
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
            f"accountant '{accountant}' is not offered; use pld or rdp (gdp gives no bound, and prv runs out of memory on long histories)."
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
        case Poisson(_, Laplace()) | TruncatedPoisson() | PoissonGroup():
            return zero_out and accountant == "pld"
        case Laplace():
            return zero_out
        case ZCdp() | Tree() | DistributedGaussian() | Skellam() | Poisson(_, DistributedGaussian() | Skellam()):
            return zero_out and accountant == "rdp"
        case Wor() | PureDp():
            return not zero_out
        case RepeatAndSelect(_, _, of):
            return accountant == "rdp" and all(_repeatable(each, adjacency) for each in of)
        case _:
            return False


def _repeatable(event: Event, adjacency: Adjacency) -> bool:
    composition = flatten({event: 1})
    return bounded(composition, "rdp", adjacency) and not any(isinstance(each, Unsupported | RepeatAndSelect) for each, _ in composition)


def _refuse(composition: Composition, accountant: Accountant, adjacency: Adjacency) -> None:
    for event, _ in composition:
        if not _valid(event, accountant, adjacency):
            other: Accountant = "rdp" if accountant == "pld" else "pld"
            hint = f"use {other}" if _valid(event, other, adjacency) else f"nor does {other}, so nothing more may be charged to this book"
            relation = adjacency.replace("_", "-")
            raise LedgerError(
                f"the accountant {accountant} does not bound the event {canonical(event)} under {relation} adjacency; {hint}."
            )


@lru_cache(maxsize=16384)
def _epsilon(composition: Composition, delta: float, accountant: Accountant, interval: float, adjacency: Adjacency) -> float:
    if not composition:
        return 0.0
    if accountant == "rdp":
        return renyi.epsilon(_divergences(composition, adjacency), delta)
    _refuse(composition, "pld", adjacency)
    if any(isinstance(event, Unsupported) for event, _ in composition):
        return math.inf
    return pld.epsilon(composition, delta, interval, adjacency)


@lru_cache(maxsize=16384)
def _gaussian(composition: Composition, delta: float, adjacency: Adjacency) -> float:
    from dp_accounting import get_epsilon_gaussian

    sigma = _joint_sigma(Composed(tuple(SelfComposed(count, event) for event, count in composition)))
    assert sigma is not None
    if sigma == 0:
        return math.inf
    return float(get_epsilon_gaussian(sigma if adjacency == "zero_out" else sigma / 2, delta))


def _divergences(composition: Composition, adjacency: Adjacency, whole: bool = False) -> renyi.Floats:
    _refuse(composition, "rdp", adjacency)
    if any(isinstance(event, Unsupported) for event, _ in composition):
        return np.full(len(renyi.orders()), np.inf)
    return renyi.divergences(composition, adjacency, whole)
