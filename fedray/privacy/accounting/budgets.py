"""The cost of charges under a plan, and the rounds and steps that the plan's budget still allows.

All functions are pure; the expensive ones are memoised by composition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from fedray.errors import ConfigError, LedgerError
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Composition, Event
from fedray.privacy.queryplan import AnyPlan


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 1 to ``limit`` that fits, by bisection; 0 if none does. If a number fits, all smaller ones must."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def plus(composition: Composition, event: Event, count: int = 1) -> Composition:
    """The composition with ``count`` more charges of one event."""
    total = Counter(dict(composition))
    total[event] += count
    return accountant.flatten(total)


def bound(composition: Composition, plan: AnyPlan) -> float:
    """Epsilon of a composition at the plan's delta. Refusals are decided by this figure."""
    return accountant.bound(dict(composition), plan.delta, plan.interval, plan.adjacency)


def affordable(composition: Composition, plan: AnyPlan) -> bool:
    """Whether :func:`bound` is within the plan's budget; True if the plan has none."""
    return plan.budget is None or accountant.affordable(dict(composition), plan.delta, plan.budget, plan.interval, plan.adjacency)


def by_rdp(composition: Composition, plan: AnyPlan) -> float:
    """Epsilon of a composition by RDP at the plan's delta; infinite if RDP does not bound one of the events."""
    if not accountant.bounded(composition, "rdp", plan.adjacency):
        return float("inf")
    return accountant.epsilon(dict(composition), plan.delta, "rdp", plan.interval, plan.adjacency)


def unamplified(composition: Composition, plan: AnyPlan) -> float:
    """:func:`bound` without amplification by the sampling of clients: epsilon against an adversary who knows the cohorts."""
    return accountant.bound(accountant.unamplified(dict(composition)), plan.delta, plan.interval, plan.adjacency)


def participations_left(composition: Composition, participations: int, plan: AnyPlan) -> int | None:
    """Number of rounds that a subject's budget and ``max_participations`` still allow; None if neither limits it."""
    by_count = None if plan.max_participations is None else max(0, plan.max_participations - participations)
    if plan.budget is None:
        return by_count
    by_budget = _rounds_left(composition, plan)
    return by_budget if by_count is None else min(by_count, by_budget)


def _rounds_left(composition: Composition, plan: AnyPlan) -> int:
    """Number of rounds that the budget still allows. Subjects whose charges of the plan's event differ in number share one search."""
    round_ = accountant.flatten({plan.event(): 1})
    if len(round_) != 1:
        return _most(composition, round_, plan)
    ((unit, per_round),) = round_
    others, used = tuple(item for item in composition if item[0] != unit), dict(composition).get(unit, 0)
    return max(0, (_most(others, ((unit, 1),), plan) - used) // per_round)


@lru_cache(maxsize=4096)
def _most(composition: Composition, step: Composition, plan: AnyPlan) -> int:
    """How often ``step`` can be added to ``composition`` within the plan's budget, up to about a billion times."""

    def fits(times: int) -> bool:
        total = Counter(dict(composition))
        for event, count in step:
            total[event] += count * times
        return affordable(accountant.flatten(total), plan)

    return largest(fits, (1 << 30) - 1)


@lru_cache(maxsize=1024)
def most_steps(composition: Composition, plan: AnyPlan) -> int:
    """Largest number of local steps below the plan's that the budget allows for one more round; 0 if it allows none."""
    return largest(lambda steps: affordable(plus(composition, plan.event(steps=steps)), plan), plan.steps - 1)


@lru_cache(maxsize=1024)
def fits(composition: Composition, plan: AnyPlan) -> tuple[float | None, int | None]:
    """Least noise multiplier and largest number of steps with which one more round fits the budget; None if none fits or there is no budget."""
    budget = plan.budget
    if budget is None or bound(composition, plan) >= budget:
        return None, None
    steps = most_steps(composition, plan) or None
    try:
        noise = accountant.calibrate(plan.event, 1, plan.delta, budget, plan.interval, dict(composition), plan.adjacency)
    except (ConfigError, LedgerError):
        return None, steps
    return noise, steps
