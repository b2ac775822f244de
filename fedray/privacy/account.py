"""Accounts of record-level privacy: who may still train, charged before anyone does.

The same account works for the driver's book of many clients and for a silo's own book of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from fedray.errors import ConfigError, LedgerError
from fedray.privacy import accounting
from fedray.privacy.accounting import Composition
from fedray.privacy.events import Event, Gaussian, Poisson, SelfComposed
from fedray.privacy.ledger import Charge, Ledger, read, records_path, subject_path
from fedray.privacy.plan import ADJACENCY, UNIT, RecordPlan, check_delta, check_history, plan_record

__all__ = ["Account", "Decision", "Figures", "RecordPlan", "Refusal", "check_delta", "check_history", "plan_record"]

#: Seconds that a silo's new actor waits for the one it replaces to let go of the book.
TAKEOVER = 30.0


@dataclass(frozen=True)
class Refusal:
    """Why a client may not train another round; ``str()`` is the sentence.

    Attributes:
        subject: the client.
        spent: its epsilon so far.
        after: its epsilon if it trained another round.
        budget: the limit; None where only the number of participations is limited.
        participations: rounds of this run it was charged for.
        composition: what was spent, for computing what would fit.
        plan: its plan.
    """

    subject: str
    spent: float
    after: float
    budget: float | None
    participations: int
    composition: Composition
    plan: RecordPlan

    def fits(self) -> tuple[float | None, int | None]:
        """The least noise multiplier, and the most steps, with which one more round fits the budget; None where none does."""
        return (None, None) if self.budget is None else _fits(self.composition, self.plan)

    def __str__(self) -> str:
        if self.budget is None or self.after <= self.budget:
            return (
                f"{self.subject}: took part in {self.participations} rounds, which is privacy.max_participations; "
                "start a new run with more of them, which takes more noise."
            )
        noise, steps = self.fits()
        ways = [f"privacy.noise_multiplier={noise:g}"] if noise is not None else []
        ways += [f"training.steps={steps}"] if steps else []
        fit = f"it would fit with {' or '.join(ways)}" if ways else "no setting makes it fit"
        return (
            f"{self.subject}: has spent epsilon {self.spent:.4g} of {self.budget:g}, and another round would bring it to {self.after:.4g}; "
            f"{fit}, or raise privacy.budget."
        )


@dataclass(frozen=True)
class Decision:
    """Who may train in a round (already charged for it), and who may not, and why."""

    granted: list[str]
    refused: dict[str, Refusal]


@dataclass(frozen=True)
class Figures:
    """One client's privacy figures; a pure function of the ledger and the plan.

    Attributes:
        name: the client.
        charges: rounds charged in this book, by all runs.
        run_charges: rounds charged by this run.
        epsilon: headline (PLD upper bound) at the plan's delta, of all charges in the book.
        epsilon_rdp: the same by RDP; infinite where RDP does not bound an event.
        next_epsilon: ``epsilon`` after one more round.
        delta: the plan's.
        budget: limit on ``epsilon``, or None.
        rounds_left: rounds that it can still take part in, or None without a limit.
        exhausted: there is no next round for it.
        composition: elementary events with counts.
    """

    name: str
    charges: int
    run_charges: int
    epsilon: float
    epsilon_rdp: float
    next_epsilon: float
    delta: float
    budget: float | None
    rounds_left: int | None
    exhausted: bool
    composition: Composition


class Account:
    """A ledger with the plans of the clients that it charges."""

    def __init__(self, ledger: Ledger, plans: Mapping[str, RecordPlan]) -> None:
        self._ledger = ledger
        self._plans = dict(plans)
        for plan in dict.fromkeys(self._plans.values()):
            ledger.describe(plan.sha256, plan.terms())

    @classmethod
    def open_run(
        cls, directory: str | Path, plans: Mapping[str, RecordPlan], job: str, *, lasting: bool = False, pinned: str | None = None
    ) -> Account:
        """The driver's book ``records.jsonl`` in ``directory``.

        Args:
            directory: made if it is missing; with ``lasting`` its parent must exist.
            plans: client to its plan.
            job: names the run; ``/n`` at its end numbers the run's starts.
            lasting: the book is shared by all runs on the same records.
            pinned: hash of an entry that the book must contain (an earlier ``head``).

        Raises:
            LedgerError: the book is locked, missing, broken or rolled back.
        """
        directory = Path(directory)
        if not lasting:
            directory.mkdir(parents=True, exist_ok=True)
        return cls(Ledger.open(records_path(directory), job, pinned=pinned, make_directory=True), plans)

    @classmethod
    def open_silo(
        cls, directory: str | Path, subject: str, plan: RecordPlan, job: str, *, pinned: str | None = None, wait: float = TAKEOVER
    ) -> Account:
        """A silo's own book in ``directory``; see :meth:`open_run`. Waits for a predecessor to end."""
        path = subject_path(directory, subject)
        return cls(Ledger.open(path, job, subject=subject, pinned=pinned, make_directory=True, wait=wait), {subject: plan})

    @property
    def head(self) -> str:
        """Hash of the book's last entry: keep it, and pass it as ``pinned`` when the book is opened again."""
        return self._ledger.head.sha256

    @property
    def path(self) -> Path:
        """The book's file."""
        return self._ledger.path

    def check(self, subjects: Iterable[str]) -> Decision:
        """Who could be charged for one more round. Charges nothing."""
        granted: list[str] = []
        refused: dict[str, Refusal] = {}
        for subject in subjects:
            refusal = self._refusal(subject)
            if refusal is None:
                granted.append(subject)
            else:
                refused[subject] = refusal
        return Decision(granted, refused)

    def authorize(self, round: int, attempt: int, subjects: Sequence[str]) -> Decision:
        """Charge one round to each subject that can afford it, durably, before this returns.

        First the cached RDP bound, then PLD: a round is granted if either bound of everything charged so
        far and this round is within the budget. Training may begin only for those granted.

        Args:
            round: the round, increasing for each subject.
            attempt: of that round; every retry is another charge.
            subjects: distinct clients of this account.

        Raises:
            LedgerError: the charge could not be made durable, or was asked for twice; nothing may be trained.
        """
        decision = self.check(subjects)
        self._ledger.reserve([self._charge(s, round, attempt) for s in decision.granted])
        return decision

    def commit(self, round: int, attempt: int, subjects: Sequence[str]) -> None:
        """Note that the results of a reserved round left."""
        self._ledger.commit(round, attempt, subjects)

    def figures(self) -> list[Figures]:
        """Everyone's figures, in the order of the plans."""
        return [self._figures(subject) for subject in self._plans]

    def epsilons(self) -> dict[str, float]:
        """Client to headline epsilon (PLD) of everything charged to it in this book."""
        return {s: accounting.bound(self._ledger.spent(s), p.delta, p.interval) for s, p in self._plans.items()}

    def epsilons_rdp(self) -> dict[str, float]:
        """Client to epsilon by RDP; infinite where RDP does not bound an event."""
        return {s: _by_rdp(accounting.flatten(self._ledger.spent(s)), p.delta) for s, p in self._plans.items()}

    def exhausted(self) -> dict[str, Refusal]:
        """Those who cannot take part any more."""
        return self.check(self._plans).refused

    def rounds_left(self, subject: str) -> int | None:
        """Rounds that a subject can still take part in; None without a limit."""
        plan = self._plan(subject)
        by_count = None if plan.max_participations is None else max(0, plan.max_participations - self._ledger.charges(subject, True))
        if plan.budget is None:
            return by_count
        by_budget = _rounds_left(accounting.flatten(self._ledger.spent(subject)), plan)
        return by_budget if by_count is None else min(by_count, by_budget)

    def part(self) -> dict[str, Any]:
        """This run's part of a book that outlives it: where the book is, its head, and the entries of this run."""
        run = self._ledger.job.rpartition("/")[0] or self._ledger.job
        entries = [dict(e.data) for e in read(self.path) if str(e.data.get("job", "")).rpartition("/")[0] == run]
        head = self._ledger.head
        return {"book": str(self.path), "head": {"seq": head.seq, "sha256": head.sha256}, "run": run, "entries": entries}

    def epsilon_person(self) -> float:
        """Epsilon for a person with one record in each of up to ``max_silos_per_person`` of these clients."""
        plan = next(iter(self._plans.values()))
        return accounting.person_epsilon([self._ledger.spent(s) for s in self._plans], plan.delta, plan.max_silos_per_person)

    def close(self) -> None:
        """Give the book's lock back."""
        self._ledger.close()

    def __enter__(self) -> Account:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _plan(self, subject: str) -> RecordPlan:
        if subject not in self._plans:
            raise LedgerError(f"{self._ledger.path}: client '{subject}' has no plan in this run, so it cannot be charged.")
        return self._plans[subject]

    def _refusal(self, subject: str) -> Refusal | None:
        plan, spent = self._plan(subject), self._ledger.spent(subject)
        done = self._ledger.charges(subject, this_run=True)
        after = _plus_one(spent, plan)
        full = plan.max_participations is not None and done >= plan.max_participations
        if not full and (plan.budget is None or accounting.affordable(after, plan.delta, plan.budget, plan.interval)):
            return None
        now, then = (accounting.bound(s, plan.delta, plan.interval) for s in (spent, after))
        return Refusal(subject, now, then, plan.budget, done, accounting.flatten(spent), plan)

    def _charge(self, subject: str, round: int, attempt: int) -> Charge:
        plan = self._plans[subject]
        return Charge(subject, round, attempt, plan.event(), plan.sha256, plan.clip, UNIT, ADJACENCY)

    def _figures(self, subject: str) -> Figures:
        plan, spent = self._plan(subject), self._ledger.spent(subject)
        composition = accounting.flatten(spent)
        left = self.rounds_left(subject)
        return Figures(
            name=subject,
            charges=self._ledger.charges(subject),
            run_charges=self._ledger.charges(subject, this_run=True),
            epsilon=accounting.bound(spent, plan.delta, plan.interval),
            epsilon_rdp=_by_rdp(composition, plan.delta),
            next_epsilon=accounting.bound(_plus_one(spent, plan), plan.delta, plan.interval),
            delta=plan.delta,
            budget=plan.budget,
            rounds_left=left,
            exhausted=left == 0,
            composition=composition,
        )


def _plus_one(spent: Mapping[Event, int], plan: RecordPlan, count: int = 1) -> Counter[Event]:
    total = Counter(spent)
    total[plan.event()] += count
    return total


def _by_rdp(composition: Composition, delta: float) -> float:
    if not accounting.bounded(composition, "rdp"):
        return float("inf")
    return accounting.epsilon(dict(composition), delta, "rdp")


@lru_cache(maxsize=4096)
def _rounds_left(composition: Composition, plan: RecordPlan) -> int:
    spent, budget = dict(composition), plan.budget
    assert budget is not None

    def fits(rounds: int) -> bool:
        return accounting.affordable(_plus_one(spent, plan, rounds), plan.delta, budget, plan.interval)

    if not fits(1):
        return 0
    low, high = 1, 2
    while high < 1 << 20 and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@lru_cache(maxsize=1024)
def _fits(composition: Composition, plan: RecordPlan) -> tuple[float | None, int | None]:
    spent, budget = dict(composition), plan.budget
    assert budget is not None

    def event(steps: int, noise_multiplier: float) -> Event:
        return SelfComposed(steps, Poisson(plan.sampling_rate, Gaussian(noise_multiplier)))

    def fits(steps: int) -> bool:
        total = Counter(spent) + Counter({event(steps, plan.noise_multiplier): 1})
        return accounting.affordable(total, plan.delta, budget, plan.interval)

    if accounting.bound(spent, plan.delta, plan.interval) >= budget:
        return None, None
    low, high = 0, plan.steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    try:
        noise = accounting.calibrate(lambda z: event(plan.steps, z), 1, plan.delta, budget, plan.interval, spent)
    except (ConfigError, LedgerError):
        return None, low or None
    return noise, low or None
