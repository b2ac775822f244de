"""Accounts: an account authorizes the subjects that may train in a round, and charges them before they do.

An account works on the driver's ledger of all clients' records, on the ledger of a single silo, and on the driver's ledger of whole
clients, in which one subject may stand for the whole population.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from fedray.errors import LedgerError
from fedray.privacy.accounting import accountant, budgets
from fedray.privacy.accounting.events import Composition
from fedray.privacy.evaluationplan import EvaluationPlan
from fedray.privacy.figures import Figures, Spent, listed
from fedray.privacy.ledger.chain import EVERYONE, Charge, Withdrawal, read, run_of
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path, records_path, subject_path
from fedray.privacy.ledger.withdrawal import beside_withdrawn
from fedray.privacy.limits import Limits, load_limits
from fedray.privacy.queryplan import AnyPlan
from fedray.privacy.refusal import Refusal, refusal
from fedray.stores.object_path import Location

#: Seconds that a silo's new actor waits until the actor that it replaces has released the ledger's lock.
TAKEOVER = 30.0


@dataclass(frozen=True)
class Reservation:
    """One subject's charge for one attempt of a round.

    Attributes:
        id: hash of the ledger's entry, which the client's receipt must carry.
        steps: number of charged local steps if it is below the plan's; else None.
    """

    id: str
    steps: int | None = None


@dataclass(frozen=True)
class Decision:
    """The subjects that may train in a round, and the refusals of the others.

    Attributes:
        granted: subjects that may train.
        refused: every other subject, with its refusal, or with its withdrawal.
        reservations: the charge of every granted subject; empty if nothing was charged.
    """

    granted: list[str]
    refused: dict[str, Refusal | Withdrawal]
    reservations: dict[str, Reservation] = field(default_factory=dict)


@dataclass(eq=False)
class _Group:
    """Subjects with the same plan and the same charges, whose figures are computed once; ``charges`` counts those of this run."""

    plan: AnyPlan
    composition: Composition
    charges: int
    names: dict[str, None] = field(default_factory=dict)


class Account:
    """A ledger with the plans of the subjects that it charges.

    Args:
        ledger: the ledger, open for writing.
        plans: each subject's plan.
        fewer_steps: charge a subject that cannot afford a whole round for the largest affordable number of local steps.
        data: each subject's commitment to its records, which its entries will contain.
        limits: the limits of the folder that holds the ledger.
        lasting: whether the ledger outlives the run, so that clients may come back under other names.

    Raises:
        LedgerError: the ledger was held to limits that are missing now, or contains the records of a subject under another name.
    """

    def __init__(
        self,
        ledger: Ledger,
        plans: Mapping[str, AnyPlan],
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
        self._of: dict[str, _Group] = {}
        self._groups: dict[tuple[AnyPlan, Composition, int], _Group] = {}
        charged, fresh = set(ledger.subjects), dict[int, _Group]()
        for subject, plan in self._plans.items():
            if subject in charged or EVERYONE in charged:
                self._sort_in(subject)
            else:  # most of a million clients were never charged, so their group is looked up once per plan
                fresh[id(plan)] = self._sort_in(subject, fresh.get(id(plan)))

    @classmethod
    def open_run(
        cls,
        directory: Location,
        plans: Mapping[str, AnyPlan],
        job: str,
        *,
        lasting: bool = False,
        pinned: str | None = None,
        fewer_steps: bool = False,
        data: Mapping[str, str] | None = None,
        void: Sequence[str] = (),
        path: str = "privacy",
    ) -> Account:
        """Open the driver's ledger in ``directory``: ``clients.jsonl`` if the unit is a client, else ``records.jsonl``.

        A ledger of persons has the name of one of records, so that runs that protect the one do not overlook what the others have spent.

        Args:
            directory: created if it is missing; with ``lasting`` its parent must exist.
            plans: each subject's plan; at least one, all with the same unit and adjacency.
            job: name of the run, followed by ``/n`` for its n-th start.
            lasting: whether all runs on the same records share the ledger.
            pinned: hash of an entry that the ledger must contain (an earlier ``head``).
            fewer_steps: see the class.
            data: see the class.
            void: reasons for which the run's claim is void from the start.
            path: section of the config from which the plans were made.

        Raises:
            LedgerError: the ledger is locked, missing, broken or rolled back.
            PrivacyRefusal: the limits of the directory do not allow these plans.
        """
        limits = _allowed(directory, plans.values(), void, path)
        if isinstance(directory, Path) and not lasting:
            directory.mkdir(parents=True, exist_ok=True)
        plan = next(iter(plans.values()))
        book = clients_path(directory) if plan.unit == "client" else records_path(directory)
        ledger = Ledger.open(book, job, pinned=pinned, make_directory=True, unit=plan.unit, adjacency=plan.adjacency)

        def made() -> Account:
            if lasting:  # a client may have withdrawn in its own ledger before there was this one
                ledger.take_notices(beside_withdrawn(directory, ledger.withdrawn()))
            return cls(ledger, plans, fewer_steps=fewer_steps, data=data, limits=limits, lasting=lasting)

        return _closing(ledger, made)

    @classmethod
    def open_silo(
        cls,
        directory: Location,
        subject: str,
        plan: AnyPlan,
        job: str,
        *,
        pinned: str | None = None,
        wait: float = TAKEOVER,
        fewer_steps: bool = False,
        data: str | None = None,
        void: Sequence[str] = (),
    ) -> Account:
        """Open the ledger of a single silo in ``directory``; see :meth:`open_run`. Waits up to ``wait`` seconds for the ledger's lock."""
        limits = _allowed(directory, [plan], void)
        path = subject_path(directory, subject)
        ledger = Ledger.open(
            path, job, subject=subject, pinned=pinned, make_directory=True, wait=wait, unit=plan.unit, adjacency=plan.adjacency
        )
        own = {} if data is None else {subject: data}
        return _closing(ledger, lambda: cls(ledger, {subject: plan}, fewer_steps=fewer_steps, data=own, limits=limits))

    @property
    def head(self) -> str:
        """Hash of the ledger's last entry. Pass it as ``pinned`` when the ledger is opened again."""
        return self._ledger.head.sha256

    @property
    def path(self) -> Location:
        """The ledger's address."""
        return self._ledger.path

    @property
    def earlier_rounds(self) -> frozenset[int]:
        """The rounds, from 0, whose training earlier starts of this run charged."""
        return self._ledger.earlier_rounds

    def check(self, subjects: Iterable[str], evaluation: EvaluationPlan | None = None) -> Decision:
        """Which subjects could be charged for one more round, or for one evaluation by a plan. Charges nothing."""
        held = evaluation if evaluation is None or self._limits is None else self._limits.hold(evaluation)
        granted: list[str] = []
        refused: dict[str, Refusal | Withdrawal] = {}
        withdrawn = self._ledger.withdrawn()
        found: dict[_Group, Refusal | None] = {}
        for subject in subjects:
            group = self._group_of(subject)
            if subject in withdrawn:
                refused[subject] = withdrawn[subject]
                continue
            if group not in found:
                plan, charges = (group.plan, group.charges) if held is None else (held, 0)
                found[group] = refusal(subject, plan, group.composition, charges, self._limit_of(subject))
            why = found[group]
            if why is None:
                granted.append(subject)
            else:
                refused[subject] = replace(why, subject=subject)
        return Decision(granted, refused)

    def authorize(self, round: int, attempt: int, subjects: Sequence[str], evaluation: EvaluationPlan | None = None) -> Decision:
        """Charge one round, or one evaluation, to each subject that can afford it; the charges are durable when this returns.

        A round is granted if the RDP bound or, if that does not suffice, the PLD bound of all earlier charges and this round is within
        the budget. Only granted subjects may train.

        Args:
            round: number of the round, increasing for each subject.
            attempt: number of the attempt at this round; every retry is charged again.
            subjects: distinct subjects of this account.
            evaluation: the plan of an evaluation after this round, which is charged instead of the training.

        Raises:
            LedgerError: the charge could not be made durable, or was made before; nothing may be trained.
        """
        decision = self.check(subjects, evaluation)
        steps = self._shortened(decision) if self._fewer_steps and evaluation is None else {}
        if evaluation is not None:
            self._ledger.describe(evaluation.sha256, evaluation.terms())
        heads = self._ledger.reserve([self._charge(s, evaluation, round, attempt, steps.get(s)) for s in decision.granted])
        after: dict[tuple[_Group, int | None], _Group] = {}
        for subject, head in zip(decision.granted, heads, strict=True):
            kind = (self._of[subject], steps.get(subject))
            decision.reservations[subject] = Reservation(head.sha256, kind[1])
            after[kind] = self._sort_in(subject, after.get(kind))
        return decision

    def commit(self, round: int, attempt: int, receipts: Mapping[str, Mapping[str, Any] | None], evaluates: bool = False) -> None:
        """Record that the results of a reserved round, or of its evaluation, left the clients, with the receipt of each client."""
        self._ledger.commit(round, attempt, receipts, evaluates)

    def withdrawn(self) -> Mapping[str, Withdrawal]:
        """The subjects that have withdrawn as of now, whether they have plans here or not."""
        return self._ledger.withdrawn()

    def groups(self, rounds: int | None = None) -> list[Spent]:
        """All subjects' figures, in groups of subjects with equal figures.

        Args:
            rounds: if participation is secret, compute the figures as if everyone had taken part in this many rounds of the run.
        """
        return [Spent(self._figures(group, rounds), group.names.keys()) for group in self._groups.values()]

    def figures(self, rounds: int | None = None) -> list[Figures]:
        """Each subject's figures in the order of the plans; see :func:`fedray.privacy.figures.listed`. ``rounds`` as for :meth:`groups`."""
        return listed(self.groups(rounds), self._plans)

    def part(self) -> dict[str, Any]:
        """This run's part of a lasting ledger, as JSON data: the ledger's address and head, and the entries of this run."""
        run = run_of(self._ledger.job)
        entries = [dict(e.data) for e in read(self.path) if run_of(str(e.data.get("job", ""))) == run]
        head = self._ledger.head
        return {"book": str(self.path), "head": {"seq": head.seq, "sha256": head.sha256}, "run": run, "entries": entries}

    def lacking(self, run: str) -> list[str]:
        """The subjects of this account that another run, or a query, has not charged in this ledger."""
        charged = {e.data["subject"] for e in read(self.path) if e.kind == "reserve" and run_of(e.data["job"]) == run}
        return [subject for subject in self._plans if subject not in charged]

    def close(self) -> None:
        """Release the ledger's lock."""
        self._ledger.close()

    def __enter__(self) -> Account:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _limit_of(self, subject: str) -> str | None:
        """The limits file that sets this subject's budget; None if the config sets it."""
        return self._limits.where if self._limits is not None and self._limits.binds(self._plans[subject]) else None

    def _group_of(self, subject: str) -> _Group:
        if subject not in self._of:
            raise LedgerError(f"{self._ledger.path}: client '{subject}' has no plan in this run, so it cannot be charged.")
        return self._of[subject]

    def _sort_in(self, subject: str, group: _Group | None = None) -> _Group:
        """Move a subject to ``group``, or if that is None to the group of its plan and charges."""
        if group is None:
            plan, composition = self._held[self._plans[subject]], accountant.flatten(self._ledger.spent(subject))
            charges = self._ledger.charges(subject, this_run=True)
            group = self._groups.setdefault((plan, composition, charges), _Group(plan, composition, charges))
        old = self._of.get(subject)
        if old is not None:
            del old.names[subject]
            if not old.names:
                del self._groups[old.plan, old.composition, old.charges]
        self._of[subject] = group
        group.names[subject] = None
        return group

    def _shortened(self, decision: Decision) -> dict[str, int]:
        """Grant the refused subjects that can afford some steps of a round; each such subject's number of steps."""
        steps: dict[str, int] = {}
        for subject, why in list(decision.refused.items()):
            if isinstance(why, Withdrawal):
                continue
            full = why.plan.max_participations is not None and why.participations >= why.plan.max_participations
            if full or why.budget is None:
                continue
            most = why.fits()[1]
            if most:
                steps[subject] = most
                del decision.refused[subject]
                decision.granted.append(subject)
        return steps

    def _charge(self, subject: str, evaluation: EvaluationPlan | None, round: int, attempt: int, steps: int | None) -> Charge:
        plan = self._plans[subject] if evaluation is None else evaluation
        about = plan.sha256, plan.clip, plan.unit, plan.adjacency, self._data.get(subject), plan.purpose
        return Charge(subject, round, attempt, plan.event(steps=steps), *about)

    def _figures(self, group: _Group, rounds: int | None) -> Figures:
        """Figures of the group's first subject."""
        plan, composition, mine, subject = group.plan, group.composition, group.charges, next(iter(group.names))
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


def _allowed(directory: Location, plans: Iterable[AnyPlan], void: Sequence[str], path: str = "privacy") -> Limits | None:
    """The directory's limits after checking that they allow these plans."""
    limits = load_limits(directory)
    if limits is not None:
        limits.check(dict.fromkeys(plans), void, path)
    return limits


def _closing(ledger: Ledger, made: Callable[[], Account]) -> Account:
    """The account on an open ledger, which is closed if the account cannot be made."""
    try:
        return made()
    except BaseException:
        ledger.close()
        raise
