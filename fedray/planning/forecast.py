"""Forecasts how often clients will be charged, their epsilon, and who would reach a budget before the planned rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedray.config import Config
from fedray.errors import ConfigError, LedgerError
from fedray.planning.preparation import Prepared
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.budgets import affordable, bound, largest, plus
from fedray.privacy.accounting.events import Composition, Event
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.recordplan import RecordPlan
from fedray.rounding import json_figure, rounded_up
from fedray.training.noisedmetrics import counted_for

#: Largest probability that some client of a row reaches its budget early with which the row still fits (for random cohorts).
TOLERATED = 0.01

_MOST_ROUNDS = 1 << 20


@dataclass(frozen=True)
class Participation:
    """How often a subject is charged.

    Attributes:
        rounds: of the run.
        rate: probability of a charge in a round in which the subject can be charged.
        every: rounds from one such round to the next.
        most: number of charges after which the subject leaves; None: no such limit.
    """

    rounds: int
    rate: float = 1.0
    every: int = 1
    most: int | None = None

    @property
    def worst(self) -> int:
        """Largest number of charges that the run can make."""
        possible = math.ceil(self.rounds / self.every) if self.rate > 0 else 0
        return possible if self.most is None else min(possible, self.most)

    @property
    def expected(self) -> float:
        """Expected number of charges."""
        if self.rate in (0.0, 1.0):
            return float(self.worst)
        return float(sum(self.above(k) for k in range(self.worst)))

    def above(self, charges: int) -> float:
        """Return the probability of more than ``charges`` charges."""
        if charges >= self.worst:
            return 0.0
        if self.rate == 1.0:
            return 1.0
        from scipy.stats import binom

        return float(binom.sf(charges, math.ceil(self.rounds / self.every), self.rate))

    def needed(self, subjects: int) -> int:
        """Return the least number of charges that some of ``subjects`` independent subjects exceeds with probability at most TOLERATED."""
        low, high = -1, self.worst
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.above(middle) * subjects <= TOLERATED else (middle, high)
        return high

    def round_of(self, charge: int) -> int:
        """Return the round, from 1, in which charge number ``charge`` is made; its expectation if cohorts are random."""
        return (charge - 1 if self.rate == 1.0 else math.ceil(charge / self.rate) - 1) * self.every + 1


@dataclass(frozen=True)
class Row:
    """Subjects with the same plan, the same earlier charges and the same probability of taking part.

    Attributes:
        group: the clients' group.
        names: the subjects' names; :data:`fedray.privacy.ledger.chain.EVERYONE` stands for all clients.
        records: number of training records of each; None if they are not known or not shown.
        plan: the plan.
        participation: how often each subject is charged.
        spent: composition of the earlier charges in each subject's ledger.
        charges: number of these charges.
        limits: the file of limits, if its limit is the plan's budget, so that no config can raise it; else None.
    """

    group: str
    names: tuple[str, ...]
    records: tuple[int, ...] | None
    plan: RecordPlan | ClientPlan
    participation: Participation
    spent: Composition
    charges: int
    limits: str | None = None

    @property
    def beside(self) -> Composition:
        """What the run's evaluations are charged."""
        evaluations = self.plan.evaluations if isinstance(self.plan, RecordPlan) else None
        return () if evaluations is None else evaluations.composition(self.participation.rounds)

    @property
    def certain(self) -> Composition:
        """The earlier charges, and those of the run's evaluations."""
        return accountant.flatten(Counter(dict(self.spent)) + Counter(dict(self.beside)))

    def total(self, charges: int, event: Event | None = None) -> Composition:
        """All charges after ``charges`` more charges of ``event``, by default the plan's event, and the run's evaluations."""
        return plus(self.certain, event or self.plan.event(), charges)

    def epsilon(self, charges: int, event: Event | None = None) -> float:
        """Return epsilon of :meth:`total`."""
        return bound(self.total(charges, event), self.plan)

    def lasting(self, rounds: int) -> Row:
        """The row in a run of another number of rounds."""
        return replace(self, participation=replace(self.participation, rounds=rounds))

    def affordable(self) -> int | None:
        """Return the number of charges that the budget still allows, at most about a million; None without a budget."""
        return None if self.plan.budget is None else largest(lambda n: _fits(self, self.plan.event(), n), _MOST_ROUNDS)

    @property
    def subjects(self) -> int:
        """Number of independent subjects."""
        return len(self.names)


def refusal(config: Config, path: str, rows: Sequence[Row]) -> str | None:
    """Return a sentence on who would reach the budget before the planned rounds, when, and which settings would fit; None if nobody would."""
    short = [(r, a) for r in rows if (a := r.affordable()) is not None and r.participation.needed(r.subjects) > a]
    if not short:
        return None
    row, affordable = min(short, key=lambda pair: pair[0].participation.round_of(pair[1] + 1))
    when = row.participation.round_of(affordable + 1)
    others = sum(r.subjects for r, _ in short) - 1
    who = (
        "all clients" if row.names == (EVERYONE,) else row.names[0] + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
    )
    about = "" if row.participation.rate == 1.0 else "about "
    head = (
        f"{who}: would reach the privacy budget in {about}round {when} of {config.rounds}: epsilon {rounded_up(row.epsilon(affordable))} of "
        f"{row.plan.budget or 0.0:g} is spent by then, and another round would bring it to {rounded_up(row.epsilon(affordable + 1))}"
    )
    ways = _ways(path, short)
    fit = f"it would fit with {' or '.join(ways)}" if ways else "no setting makes it fit"
    if row.limits is not None:
        return f"{head}; {fit}, and {row.limits} allows no more, whatever the config says."
    return f"{head}; " + (f"{fit}, or raise {path}.budget." if ways else f"raise {path}.budget.")


def _ways(path: str, short: Sequence[tuple[Row, int]]) -> list[str]:
    """Return config overrides with which the planned rounds would fit for these rows, given with the charges that they can afford."""
    ways: list[str] = []
    rows = [row for row, _ in short]
    noises = [noise_for(r, r.plan.budget or 0.0, r.participation.needed(r.subjects)) for r in rows]
    noise = None if None in noises else max(n for n in noises if n is not None)
    plan = rows[0].plan
    if noise is not None and plan.target_epsilon is None:
        ways.append(f"{path}.noise_multiplier={noise:g}")
    elif noise is not None:
        targets = [bound(plus(r.beside, r.plan.event(noise), r.plan.participations), r.plan) for r in rows]
        target = math.floor(min(targets) * 1000) / 1000
        if target > 0:
            ways.append(f"{path}.target_epsilon={target:g} {path}.budget={plan.budget:g}")
    if plan.target_epsilon is None:
        steps = min(_steps(r) for r in rows)
        if 0 < steps < plan.steps:
            ways.append(f"training.steps={steps}")
        rounds = min(_rounds(r, affordable) for r, affordable in short)
        if rounds:
            ways.append(f"rounds={rounds}")
    return ways


def _steps(row: Row) -> int:
    """Return the largest number of local steps per round that fits for the planned rounds; the plan's own if steps are not charged."""
    charges = row.participation.needed(row.subjects)
    return largest(lambda steps: _fits(row, row.plan.event(steps=steps), charges), row.plan.steps)


def _rounds(row: Row, affordable: int) -> int:
    """Return the number of rounds that fit with the plan's noise."""
    return largest(lambda n: row.lasting(n).participation.needed(row.subjects) <= affordable, row.participation.rounds)


def noise_for(row: Row, target: float, charges: int) -> float | None:
    """Return the noise multiplier with which ``charges`` charges keep epsilon within ``target``; None if no noise can, or none is needed."""
    plan = row.plan
    if not charges or bound(row.certain, plan) >= target:
        return None
    try:
        return accountant.calibrate(plan.event, charges, plan.delta, target, plan.interval, dict(row.certain), plan.adjacency)
    except (ConfigError, LedgerError):
        return None


def evaluations_of(row: Row, prepared: Prepared) -> dict[str, Any] | None:
    """What a row's evaluations cost beside its training, as JSON data; None if there are none.

    Their number, noise multiplier, epsilon of each of the two alone without earlier charges, and ``noise_on_accuracy``: the standard deviation
    of the noise on a part of all clients' held-out records, None where their number is not known.
    """
    if not row.beside:
        return None
    ((_, number),), plan = row.beside, row.plan
    assert isinstance(plan, RecordPlan) and plan.evaluations is not None
    evaluation, held_out, noise = prepared.config.evaluation, prepared.held_out, plan.evaluations.noise_multiplier
    assert evaluation.charged is not None
    on_count = noise * math.sqrt(len(counted_for(evaluation.metrics, evaluation.charged, None)))
    return {
        "number": number,
        "noise_multiplier": noise,
        "noise_on_accuracy": None if held_out is None else on_count * math.sqrt(np.count_nonzero(held_out)) / int(held_out.sum()),
        "epsilon": json_figure(bound(row.beside, plan)),
        "epsilon_training": json_figure(bound(plus((), plan.event(), row.participation.worst), plan)),
    }


def label(names: Sequence[str]) -> str:
    """Name clients in a few words."""
    if tuple(names) == (EVERYONE,):
        return "all clients"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _fits(row: Row, event: Event, charges: int) -> bool:
    return affordable(row.total(charges, event), row.plan)
