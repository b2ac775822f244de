"""Accounts: who may still train, charged before anyone does.

The same account works for the driver's book of many clients, for a silo's own book of one, and for the
driver's book of whole clients, in which one subject may stand for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from fedray.errors import LedgerError
from fedray.privacy.accounting import accountant, budgets
from fedray.privacy.accounting.accountant import Composition
from fedray.privacy.clientplan import Plan
from fedray.privacy.figures import Figures, Spent
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.ledger.ledger import Charge, Ledger, Location, clients_path, read, records_path, subject_path
from fedray.privacy.limits import Limits, load_limits
from fedray.privacy.refusal import Refusal, refusal

#: Seconds that a silo's new actor waits for the one it replaces to let go of the book.
TAKEOVER = 30.0
#: Subjects up to which each one's figures are told.
LISTED = 10_000


@dataclass(frozen=True)
class Reservation:
    """One subject's charge for one attempt of a round.

    Attributes:
        id: hash of the ledger's entry; the client's receipt must carry it.
        steps: local steps that were charged, where they are fewer than the plan's; else None.
    """

    id: str
    steps: int | None = None


@dataclass(frozen=True)
class Decision:
    """Who may train in a round (already charged for it, unless it was only asked), and who may not, and why."""

    granted: list[str]
    refused: dict[str, Refusal]
    reservations: dict[str, Reservation] = field(default_factory=dict)


@dataclass(eq=False)
class _Alike:
    """Subjects with the same plan and the same charges (``charges``: of this run) have the same figures: compositions, not clients, cost time."""

    plan: Plan
    composition: Composition
    charges: int
    names: dict[str, None] = field(default_factory=dict)


class Account:
    """A ledger with the plans of the subjects that it charges.

    Args:
        ledger: open for writing.
        plans: subject to its plan.
        fewer_steps: a subject that cannot afford a whole round is charged for the most local steps that it can.
        data: subject to the commitment to its records, for its entries.
        limits: of the folder that the book lies in.
        lasting: the book outlives the run, so that clients may have other names than before.

    Raises:
        LedgerError: the book was held to limits that are gone, or knows the records of a subject under another name.
    """

    def __init__(
        self,
        ledger: Ledger,
        plans: Mapping[str, Plan],
        *,
        fewer_steps: bool = False,
        data: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        lasting: bool = True,
    ) -> None:
        self._ledger = ledger
        self._plans = dict(plans)
        ledger.hold_to(None if limits is None else limits.terms.model_dump(exclude_defaults=True))
        if lasting:
            ledger.check_names(data or {})
        self._limits = limits
        distinct = list(dict.fromkeys(self._plans.values()))
        self._held = {plan: plan if limits is None else limits.hold(plan) for plan in distinct}
        self._fewer_steps = fewer_steps
        self._data = dict(data or {})
        for plan in distinct:
            ledger.describe(plan.sha256, plan.terms())
        self._of: dict[str, _Alike] = {}
        self._alike: dict[tuple[Plan, Composition, int], _Alike] = {}
        charged, fresh = set(ledger.subjects), dict[int, _Alike]()
        for subject, plan in self._plans.items():
            if subject in charged or EVERYONE in charged:
                self._sort_in(subject)
            else:  # of a million clients most were never charged
                fresh[id(plan)] = self._sort_in(subject, fresh.get(id(plan)))

    @classmethod
    def open_run(
        cls,
        directory: Location,
        plans: Mapping[str, Plan],
        job: str,
        *,
        lasting: bool = False,
        pinned: str | None = None,
        fewer_steps: bool = False,
        data: Mapping[str, str] | None = None,
        void: Sequence[str] = (),
        path: str = "privacy",
    ) -> Account:
        """The driver's book in ``directory``: ``records.jsonl`` where the unit is a record, ``clients.jsonl`` where it is a client.

        Args:
            directory: made if it is missing; with ``lasting`` its parent must exist.
            plans: subject to its plan, at least one, all of one unit and adjacency.
            job: names the run; ``/n`` at its end numbers the run's starts.
            lasting: the book is shared by all runs on the same records.
            pinned: hash of an entry that the book must contain (an earlier ``head``).
            fewer_steps: see the class.
            data: see the class.
            void: why the run's claim is void from the start.
            path: the config's section that the plans follow.

        Raises:
            LedgerError: the book is locked, missing, broken or rolled back.
            PrivacyRefusal: the limits of the directory do not allow these plans.
        """
        limits = _allowed(directory, plans.values(), void, path)
        if isinstance(directory, Path) and not lasting:
            directory.mkdir(parents=True, exist_ok=True)
        plan = next(iter(plans.values()))
        book = records_path(directory) if plan.unit == "record" else clients_path(directory)
        ledger = Ledger.open(book, job, pinned=pinned, make_directory=True, unit=plan.unit, adjacency=plan.adjacency)
        return _closing(ledger, lambda: cls(ledger, plans, fewer_steps=fewer_steps, data=data, limits=limits, lasting=lasting))

    @classmethod
    def open_silo(
        cls,
        directory: Location,
        subject: str,
        plan: Plan,
        job: str,
        *,
        pinned: str | None = None,
        wait: float = TAKEOVER,
        fewer_steps: bool = False,
        data: str | None = None,
        void: Sequence[str] = (),
    ) -> Account:
        """A silo's own book in ``directory``; see :meth:`open_run`. Waits for a predecessor to end."""
        limits = _allowed(directory, [plan], void)
        path = subject_path(directory, subject)
        ledger = Ledger.open(
            path, job, subject=subject, pinned=pinned, make_directory=True, wait=wait, unit=plan.unit, adjacency=plan.adjacency
        )
        own = {} if data is None else {subject: data}
        return _closing(ledger, lambda: cls(ledger, {subject: plan}, fewer_steps=fewer_steps, data=own, limits=limits))

    @property
    def head(self) -> str:
        """Hash of the book's last entry: keep it, and pass it as ``pinned`` when the book is opened again."""
        return self._ledger.head.sha256

    @property
    def path(self) -> Location:
        """Where the book is."""
        return self._ledger.path

    def check(self, subjects: Iterable[str]) -> Decision:
        """Who could be charged for one more round. Charges nothing."""
        granted: list[str] = []
        refused: dict[str, Refusal] = {}
        found: dict[_Alike, Refusal | None] = {}
        for subject in subjects:
            alike = self._alike_of(subject)
            if alike not in found:
                found[alike] = refusal(subject, alike.plan, alike.composition, alike.charges, self._limit_of(subject))
            why = found[alike]
            if why is None:
                granted.append(subject)
            else:
                refused[subject] = replace(why, subject=subject)
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
        steps = self._shortened(decision) if self._fewer_steps else {}
        heads = self._ledger.reserve([self._charge(s, round, attempt, steps.get(s)) for s in decision.granted])
        after: dict[tuple[_Alike, int | None], _Alike] = {}
        for subject, head in zip(decision.granted, heads, strict=True):
            kind = (self._of[subject], steps.get(subject))
            decision.reservations[subject] = Reservation(head.sha256, kind[1])
            after[kind] = self._sort_in(subject, after.get(kind))  # who was alike and is charged alike stays alike
        return decision

    def commit(self, round: int, attempt: int, receipts: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Note that the results of a reserved round left, with what each client says it ran."""
        self._ledger.commit(round, attempt, receipts)

    def groups(self, rounds: int | None = None) -> list[Spent]:
        """All subjects' figures, those with equal ones together.

        Args:
            rounds: figures as if everyone had taken part in each of so many rounds of this run, where who did is secret.
        """
        return [Spent(self._figures(alike, rounds), alike.names.keys()) for alike in self._alike.values()]

    def figures(self, rounds: int | None = None) -> list[Figures]:
        """Everyone's figures, in the order of the plans; of more than :data:`LISTED` those who spent most. ``rounds`` as for :meth:`groups`."""
        if len(self._plans) > LISTED:
            ordered = sorted(self.groups(rounds), key=lambda g: -g.figures.epsilon)
            return [replace(g.figures, name=name) for g, name in islice(((g, name) for g in ordered for name in g.names), LISTED)]
        found = {alike: self._figures(alike, rounds) for alike in self._alike.values()}
        return [replace(found[self._of[subject]], name=subject) for subject in self._plans]

    def epsilons(self) -> dict[str, float]:
        """Subject to headline epsilon of everything charged to it in this book."""
        return {name: g.figures.epsilon for g in self.groups() for name in g.names}

    def rounds_left(self, subject: str) -> int | None:
        """Rounds that a subject can still take part in; None without a limit."""
        alike = self._alike_of(subject)
        return budgets.participations_left(alike.composition, alike.charges, alike.plan)

    def part(self) -> dict[str, Any]:
        """This run's part of a book that outlives it: where the book is, its head, and the entries of this run."""
        run = self._ledger.job.rpartition("/")[0] or self._ledger.job
        entries = [dict(e.data) for e in read(self.path) if str(e.data.get("job", "")).rpartition("/")[0] == run]
        head = self._ledger.head
        return {"book": str(self.path), "head": {"seq": head.seq, "sha256": head.sha256}, "run": run, "entries": entries}

    def epsilon_person(self) -> float:
        """Epsilon for a person with one record in each of up to ``max_silos_per_person`` of these clients."""
        plan = next(iter(self._plans.values()))
        spents = [self._ledger.spent(s) for s in self._plans]
        return accountant.person_epsilon(spents, plan.delta, plan.max_silos_per_person, plan.adjacency)

    def close(self) -> None:
        """Give the book's lock back."""
        self._ledger.close()

    def __enter__(self) -> Account:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _limit_of(self, subject: str) -> str | None:
        """The file whose limit this subject's budget is; None where the config could raise it."""
        return self._limits.where if self._limits is not None and self._limits.binds(self._plans[subject]) else None

    def _alike_of(self, subject: str) -> _Alike:
        if subject not in self._of:
            raise LedgerError(f"{self._ledger.path}: client '{subject}' has no plan in this run, so it cannot be charged.")
        return self._of[subject]

    def _sort_in(self, subject: str, alike: _Alike | None = None) -> _Alike:
        """Put a subject with those of the same plan and charges, who are looked for where they are not given."""
        if alike is None:
            plan, composition = self._held[self._plans[subject]], accountant.flatten(self._ledger.spent(subject))
            charges = self._ledger.charges(subject, this_run=True)
            alike = self._alike.setdefault((plan, composition, charges), _Alike(plan, composition, charges))
        old = self._of.get(subject)
        if old is not None:
            del old.names[subject]
            if not old.names:
                del self._alike[old.plan, old.composition, old.charges]
        self._of[subject] = alike
        alike.names[subject] = None
        return alike

    def _shortened(self, decision: Decision) -> dict[str, int]:
        """Move those from refused to granted who can afford some steps of a round; subject to how many."""
        steps: dict[str, int] = {}
        for subject, why in list(decision.refused.items()):
            full = why.plan.max_participations is not None and why.participations >= why.plan.max_participations
            if full or why.budget is None:
                continue
            most = why.fits()[1]
            if most:
                steps[subject] = most
                del decision.refused[subject]
                decision.granted.append(subject)
        return steps

    def _charge(self, subject: str, round: int, attempt: int, steps: int | None) -> Charge:
        plan = self._plans[subject]
        event = plan.event(steps=steps)
        return Charge(subject, round, attempt, event, plan.sha256, plan.clip, plan.unit, plan.adjacency, self._data.get(subject))

    def _figures(self, alike: _Alike, rounds: int | None) -> Figures:
        """Of the first of these subjects."""
        plan, composition, mine, subject = alike.plan, alike.composition, alike.charges, next(iter(alike.names))
        unseen = 0 if rounds is None else max(0, min(rounds, plan.max_participations or rounds) - mine)
        if unseen:
            composition, mine = budgets.plus(composition, plan.event(), unseen), mine + unseen
        left = budgets.participations_left(composition, mine, plan)
        exhausted = left == 0 and not (self._fewer_steps and plan.budget is not None and budgets.most_steps(composition, plan))
        return Figures(
            name=subject,
            unit=plan.unit,
            charges=self._ledger.charges(subject) + unseen,
            run_charges=mine,
            epsilon=budgets.bound(composition, plan),
            epsilon_rdp=budgets.by_rdp(composition, plan),
            epsilon_unamplified=budgets.unamplified(composition, plan) if plan.unit == "client" else None,
            next_epsilon=budgets.bound(budgets.plus(composition, plan.event()), plan),
            delta=plan.delta,
            budget=plan.budget,
            rounds_left=left,
            exhausted=exhausted,
            composition=composition,
        )


def _allowed(directory: Location, plans: Iterable[Plan], void: Sequence[str], path: str = "privacy") -> Limits | None:
    """The directory's limits, which allow these plans."""
    limits = load_limits(directory)
    if limits is not None:
        limits.check(dict.fromkeys(plans), void, path)
    return limits


def _closing(ledger: Ledger, made: Callable[[], Account]) -> Account:
    """What is made of an open ledger, which is closed where that fails."""
    try:
        return made()
    except BaseException:
        ledger.close()
        raise
