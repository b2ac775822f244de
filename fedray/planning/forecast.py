"""How often clients will be charged, what that comes to, and who would reach a budget before the planned rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedray.config import Config
from fedray.errors import ConfigError, LedgerError
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.accountant import Composition
from fedray.privacy.accounting.budgets import affordable, bound, largest, plus
from fedray.privacy.accounting.events import Event
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.recordplan import RecordPlan
from fedray.rounding import rounded_up

#: Chance, for any client of a row, of reaching its budget early that is not called exceeding it (cohorts by chance only).
TOLERATED = 0.01

_MOST_ROUNDS = 1 << 20


@dataclass(frozen=True)
class Participation:
    """How often a subject is charged.

    Attributes:
        rounds: of the run.
        rate: chance of a charge in a round; 1: it is certain.
        every: rounds from one certain charge to the next.
        most: charges after which the subject leaves; None: no such limit.
    """

    rounds: int
    rate: float = 1.0
    every: int = 1
    most: int | None = None

    @property
    def worst(self) -> int:
        """Charges that the run can make at most."""
        possible = math.ceil(self.rounds / self.every) if self.rate > 0 else 0
        return possible if self.most is None else min(possible, self.most)

    @property
    def expected(self) -> float:
        """Charges on average."""
        if self.rate in (0.0, 1.0):
            return float(self.worst)
        return float(sum(self.above(k) for k in range(self.worst)))

    def above(self, charges: int) -> float:
        """Chance of more than so many charges."""
        if charges >= self.worst:
            return 0.0
        if self.rate == 1.0:
            return 1.0
        from scipy.stats import binom

        return float(binom.sf(charges, self.rounds, self.rate))

    def needed(self, subjects: int) -> int:
        """Charges that, but for a chance of :data:`TOLERATED`, none of ``subjects`` independent subjects exceeds."""
        low, high = -1, self.worst
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.above(middle) * subjects <= TOLERATED else (middle, high)
        return high

    def round_of(self, charge: int) -> int:
        """The round, from 1, in which charge number ``charge`` is made, on average where cohorts are drawn by chance."""
        return (charge - 1) * self.every + 1 if self.rate == 1.0 else math.ceil(charge / self.rate)


@dataclass(frozen=True)
class Row:
    """Subjects that are charged alike: same plan, same history, same chance to take part.

    Attributes:
        group: the clients' group.
        names: of the subjects; ``clients`` stands for all clients.
        records: training records of each, or None where they are not known or not shown.
        plan: their plan.
        participation: how often they are charged.
        spent: what their ledgers hold already.
        charges: how many charges that are.
        limits: the file whose limit the plan's budget is, so that no config can raise it; else None.
    """

    group: str
    names: tuple[str, ...]
    records: tuple[int, ...] | None
    plan: RecordPlan | ClientPlan
    participation: Participation
    spent: Composition
    charges: int
    limits: str | None = None

    def epsilon(self, charges: int, event: Event | None = None) -> float:
        """Epsilon after so many more charges (of another event than the plan's)."""
        return bound(plus(self.spent, event or self.plan.event(), charges), self.plan)

    def affordable(self) -> int | None:
        """Charges that the budget still allows; None without a budget. At most about a million."""
        return None if self.plan.budget is None else largest(lambda n: _fits(self, self.plan.event(), n), _MOST_ROUNDS)

    @property
    def subjects(self) -> int:
        """How many independent subjects."""
        return len(self.names)


def refusal(config: Config, path: str, rows: Sequence[Row]) -> str | None:
    """Who would reach its budget before the planned rounds, when, and what would fit; None where nobody would."""
    short = [(r, a) for r in rows if (a := r.affordable()) is not None and r.participation.needed(r.subjects) > a]
    if not short:
        return None
    row, affordable = min(short, key=lambda pair: pair[0].participation.round_of(pair[1] + 1))
    plan, when = row.plan, row.participation.round_of(affordable + 1)
    assert plan.budget is not None
    others = sum(r.subjects for r, _ in short) - 1
    who = (
        "all clients" if row.names == (EVERYONE,) else row.names[0] + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
    )
    about = "" if row.participation.rate == 1.0 else "about "
    head = (
        f"{who}: would reach the privacy budget in {about}round {when} of {config.rounds}: epsilon {_up(row.epsilon(affordable))} of "
        f"{plan.budget:g} is spent by then, and another round would bring it to {_up(row.epsilon(affordable + 1))}"
    )
    ways = _ways(config, path, [r for r, _ in short])
    fit = f"it would fit with {' or '.join(ways)}" if ways else "no setting makes it fit"
    if row.limits is not None:
        return f"{head}; {fit}, and {row.limits} allows no more, whatever the config says."
    return f"{head}; " + (f"{fit}, or raise {path}.budget." if ways else f"raise {path}.budget.")


def _ways(config: Config, path: str, short: Sequence[Row]) -> list[str]:
    """Settings with which the planned rounds would fit, ready to be pasted."""
    ways: list[str] = []
    noises = [noise_for(r, r.plan.budget or 0.0, r.participation.needed(r.subjects)) for r in short]
    noise = None if None in noises else max(n for n in noises if n is not None)
    plan = short[0].plan
    if noise is not None and plan.target_epsilon is None:
        ways.append(f"{path}.noise_multiplier={noise:g}")
    elif noise is not None:
        targets = [bound(accountant.flatten({r.plan.event(noise): r.plan.participations}), r.plan) for r in short]
        target = math.floor(min(targets) * 1000) / 1000
        if target > 0:
            ways.append(f"{path}.target_epsilon={target:g} {path}.budget={plan.budget:g}")
    if plan.target_epsilon is None:
        steps = min(_steps(r) for r in short)
        if 0 < steps < plan.steps:
            ways.append(f"training.steps={steps}")
        rounds = min(_rounds(r) for r in short)
        if rounds:
            ways.append(f"rounds={rounds}")
    return ways


def _steps(row: Row) -> int:
    """Local steps a round that fit for the planned rounds; all of the plan's where they are not what is charged."""
    charges = row.participation.needed(row.subjects)
    return largest(lambda steps: _fits(row, row.plan.event(steps=steps), charges), row.plan.steps)


def _rounds(row: Row) -> int:
    """Rounds that fit as the plan's noise is."""
    affordable = row.affordable()
    assert affordable is not None
    return largest(lambda n: replace(row.participation, rounds=n).needed(row.subjects) <= affordable, row.participation.rounds)


def noise_for(row: Row, target: float, charges: int) -> float | None:
    """The noise multiplier with which so many charges keep within ``target``; None where what was spent, or nothing, allows it."""
    plan = row.plan
    if not charges or bound(row.spent, plan) >= target:
        return None
    try:
        return accountant.calibrate(plan.event, charges, plan.delta, target, plan.interval, dict(row.spent), plan.adjacency)
    except (ConfigError, LedgerError):
        return None


def label(names: Sequence[str]) -> str:
    """Clients in words."""
    if tuple(names) == (EVERYONE,):
        return "all clients"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def figure(value: float) -> float | str:
    """JSON has no infinity."""
    return "infinity" if math.isinf(value) else value


def _up(value: float) -> str:
    return rounded_up(value)


def _fits(row: Row, event: Event, charges: int) -> bool:
    return affordable(plus(row.spent, event, charges), row.plan)
