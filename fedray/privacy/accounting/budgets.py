"""What charges cost under a plan, and what the plan's budget still allows: pure functions, memoised by composition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from fedray.errors import ConfigError, LedgerError
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.accountant import Adjacency, Composition
from fedray.privacy.accounting.events import Event


class Plan(Protocol):
    """What an account needs of a plan; :class:`RecordPlan` and :class:`ClientPlan` are such."""

    @property
    def unit(self) -> str: ...  # noqa: D102
    @property
    def adjacency(self) -> Adjacency: ...  # noqa: D102
    @property
    def delta(self) -> float: ...  # noqa: D102
    @property
    def budget(self) -> float | None: ...  # noqa: D102
    @property
    def interval(self) -> float: ...  # noqa: D102
    @property
    def clip(self) -> float: ...  # noqa: D102
    @property
    def noise_multiplier(self) -> float: ...  # noqa: D102
    @property
    def max_participations(self) -> int | None: ...  # noqa: D102
    @property
    def max_silos_per_person(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    def event(self, noise_multiplier: float | None = None, steps: int | None = None) -> Event: ...  # noqa: D102
    def terms(self) -> dict[str, Any]: ...  # noqa: D102
    def __hash__(self) -> int: ...


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 0 to ``limit`` that fits, where all smaller ones do; 0 is not asked."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def plus(composition: Composition, event: Event, count: int = 1) -> Composition:
    """What was charged and so many more charges of one event."""
    total = Counter(dict(composition))
    total[event] += count
    return accountant.flatten(total)


def bound(composition: Composition, plan: Plan) -> float:
    """Epsilon of what was charged, at the plan's delta: the figure that refusals go by."""
    return accountant.bound(dict(composition), plan.delta, plan.interval, plan.adjacency)


def affordable(composition: Composition, plan: Plan) -> bool:
    """Whether :func:`bound` is within the plan's budget, which must have one."""
    assert plan.budget is not None
    return accountant.affordable(dict(composition), plan.delta, plan.budget, plan.interval, plan.adjacency)


def by_rdp(composition: Composition, plan: Plan) -> float:
    """The same by RDP; infinite where RDP does not bound an event."""
    if not accountant.bounded(composition, "rdp", plan.adjacency):
        return float("inf")
    return accountant.epsilon(dict(composition), plan.delta, "rdp", plan.interval, plan.adjacency)


def unamplified(composition: Composition, plan: Plan) -> float:
    """:func:`bound` without the sampling of clients: against whoever knows the cohorts."""
    return accountant.bound(accountant.unamplified(dict(composition)), plan.delta, plan.interval, plan.adjacency)


def participations_left(composition: Composition, participations: int, plan: Plan) -> int | None:
    """Rounds that a subject can still take part in, by its budget and by the number of participations; None without a limit."""
    by_count = None if plan.max_participations is None else max(0, plan.max_participations - participations)
    if plan.budget is None:
        return by_count
    by_budget = _rounds_left(composition, plan)
    return by_budget if by_count is None else min(by_count, by_budget)


def _rounds_left(composition: Composition, plan: Plan) -> int:
    """Rounds that the budget still allows; the search for it is done once for all rounds of the same event."""
    round_ = accountant.flatten({plan.event(): 1})
    if len(round_) != 1:
        return _most(composition, round_, plan)
    ((unit, per_round),) = round_
    others, used = tuple(item for item in composition if item[0] != unit), dict(composition).get(unit, 0)
    return max(0, (_most(others, ((unit, 1),), plan) - used) // per_round)


@lru_cache(maxsize=4096)
def _most(composition: Composition, step: Composition, plan: Plan) -> int:
    """How often ``step`` can be added to ``composition`` within the plan's budget, at most about a billion times."""

    def fits(times: int) -> bool:
        total = Counter(dict(composition))
        for event, count in step:
            total[event] += count * times
        return affordable(accountant.flatten(total), plan)

    return largest(fits, (1 << 30) - 1)


@lru_cache(maxsize=1024)
def most_steps(composition: Composition, plan: Plan) -> int:
    """Local steps that the budget allows, fewer than the plan's; 0 where it allows none or the plan has no steps."""
    return largest(lambda steps: affordable(plus(composition, plan.event(steps=steps)), plan), plan.steps - 1)


@lru_cache(maxsize=1024)
def fits(composition: Composition, plan: Plan) -> tuple[float | None, int | None]:
    """The least noise multiplier, and the most steps, with which one more round fits the budget; None where none does."""
    budget = plan.budget
    assert budget is not None
    if bound(composition, plan) >= budget:
        return None, None
    steps = most_steps(composition, plan) or None
    try:
        noise = accountant.calibrate(plan.event, 1, plan.delta, budget, plan.interval, dict(composition), plan.adjacency)
    except (ConfigError, LedgerError):
        return None, steps
    return noise, steps
