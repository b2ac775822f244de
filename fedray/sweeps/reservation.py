"""The one charge of a sealed sweep: made durable in the clients' ledgers before any trial begins, and never taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.clients.recognition import commit_federation
from fedray.errors import BudgetReached, ClaimVoid, PrivacyRefusal
from fedray.planning.preparation import Prepared
from fedray.privacy.accounting import accountant, budgets
from fedray.privacy.accounting.events import Composition, Event
from fedray.privacy.accounting.repetition import Repetitions
from fedray.privacy.figures import Figures, Spent
from fedray.privacy.ledger.chain import Charge, read, run_of
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path, ledger_directory, records_path
from fedray.privacy.ledger.verification import verify
from fedray.privacy.limits import load_limits
from fedray.privacy.recordplan import terms_sha256
from fedray.rounding import as_given, rounded_up
from fedray.stores.object_path import Location
from fedray.sweeps.pricing import Share, Unit, sealed_event


@dataclass(frozen=True)
class Reserved:
    """The charge in one ledger: the subjects' figures after it, the ledger's name (``records`` or ``clients``), its head, and this sweep's part of it."""

    unit: Unit
    groups: list[Spent]
    book: str
    head: str
    part: dict[str, Any]


def reserve(
    prepared: Prepared, space: Sequence[Unit], repetitions: Repetitions, where: Path, job: str, anew: bool = False
) -> list[Reserved]:
    """Charge every client once for the whole sweep, unless an earlier start of the sweep did.

    Args:
        prepared: the base config.
        space: for each protected unit, one trial for every point that may be drawn.
        repetitions: the number of trials.
        where: the sweep's directory.
        job: the sweep's id and the number of this start, ``ID/NUMBER``.
        anew: whether the trials are still to be drawn: then an earlier charge does not cover them, because what was drawn for it is gone.

    Raises:
        BudgetReached: the charge does not fit a client's budget; nothing was charged in this ledger.
        PrivacyRefusal: Renyi DP does not bound one of the mechanisms.
        LedgerError: a ledger cannot be charged, so nothing may be trained.
    """
    for unit in space:
        if not all(
            accountant.bounded(((sealed_event(unit, g, repetitions), 1),), "rdp", unit.plan.adjacency) for g in range(len(unit.shares[0]))
        ):
            raise PrivacyRefusal(
                f"sweep.price: Renyi DP, which alone bounds a sealed sweep, does not bound this mechanism for one {unit.plan.unit}; set sweep.price "
                "to charged.",
                "privacy.incompatible.mechanism.sealed",
            )
    return [_reserve(prepared, unit, repetitions, where, job, anew) for unit in space]


def _reserve(prepared: Prepared, unit: Unit, repetitions: Repetitions, where: Path, job: str, anew: bool) -> Reserved:
    shares, plan = unit.shares[0], unit.plan
    lasting = shares[0].ledger != "run"
    directory: Location = ledger_directory(shares[0].ledger, where)
    if not lasting and isinstance(directory, Path):
        directory.mkdir(parents=True, exist_ok=True)
    limits = load_limits(directory)
    book, name = (records_path(directory), "records") if plan.unit != "client" else (clients_path(directory), "clients")
    data: Mapping[str, str] = {}
    if plan.unit != "client" and prepared.federation is not None:
        data = commit_federation(directory, prepared.federation, lasting)
    with Ledger.open(book, job, make_directory=True, unit=plan.unit, adjacency=plan.adjacency) as ledger:
        ledger.hold_to(None if limits is None else limits.terms.model_dump(exclude_defaults=True))
        if lasting:
            ledger.check_names(data)
        terms = _terms(unit, repetitions)
        digest = terms_sha256(terms)
        ledger.describe(digest, terms)
        charges = []
        for group, share in enumerate(shares):
            event = sealed_event(unit, group, repetitions)
            clip = max(trial[group].plan.clip for trial in unit.shares)
            waiting = [subject for subject in share.names if anew or not ledger.charges(subject, this_run=True)]
            _check_budget(unit, event, {accountant.flatten(ledger.spent(subject)): subject for subject in waiting})
            charges += [
                Charge(s, 0, ledger.charges(s, this_run=True), event, digest, clip, plan.unit, plan.adjacency, data.get(s)) for s in waiting
            ]
        ledger.reserve(charges)
        figures = [f for group, share in enumerate(shares) for f in _figures(ledger, unit, share, sealed_event(unit, group, repetitions))]
        head = ledger.head
    mine = [dict(e.data) for e in read(book) if run_of(str(e.data.get("job", ""))) == run_of(job)]
    part = {"book": str(book), "head": {"seq": head.seq, "sha256": head.sha256}, "run": run_of(job), "entries": mine}
    return Reserved(unit, figures, name, head.sha256, part if lasting else {})


def _terms(unit: Unit, repetitions: Repetitions) -> dict[str, Any]:
    """The public constants of the charge, for the ledger."""
    plans = list(dict.fromkeys(share.plan for trial in unit.shares for share in trial))
    first = plans[0].terms()
    kept = {key: first[key] for key in ("unit", "adjacency", "regime", "delta", "interval", "accountant_version", "rng")}
    return {
        **kept,
        "budget": unit.budget,
        "sealed": {"mean": repetitions.mean, "shape": repetitions.shape},
        "plans": [p.terms() for p in plans],
    }


def _check_budget(unit: Unit, event: Event, spent: Mapping[Composition, str]) -> None:
    plan, budget = unit.plan, unit.budget
    for composition, subject in spent.items():
        total = budgets.plus(composition, event)
        if budget is not None and not accountant.affordable(dict(total), plan.delta, budget, plan.interval, plan.adjacency):
            raise BudgetReached(
                f"{subject}: the sealed sweep would bring it to epsilon {rounded_up(budgets.bound(total, plan))}, above {unit.path}.budget="
                f"{as_given(budget)} (the budget is for the whole sweep and all earlier runs); raise it, lower sweep.mean, or plan more noise."
            )


def _figures(ledger: Ledger, unit: Unit, share: Share, event: Event) -> list[Spent]:
    """The figures of a group's subjects, those with equal charges together."""
    alike: dict[tuple[Composition, int, int], list[str]] = {}
    for subject in share.names:
        key = (accountant.flatten(ledger.spent(subject)), ledger.charges(subject), ledger.charges(subject, this_run=True))
        alike.setdefault(key, []).append(subject)
    plan, found = unit.plan, []
    for (composition, charges, mine), names in alike.items():
        figures = Figures(
            name=names[0],
            unit=plan.unit,
            charges=charges,
            run_charges=mine,
            epsilon=budgets.bound(composition, plan),
            epsilon_rdp=budgets.by_rdp(composition, plan),
            epsilon_unamplified=budgets.unamplified(composition, plan) if plan.unit == "client" else None,
            next_epsilon=budgets.bound(budgets.plus(composition, event), plan),
            delta=plan.delta,
            budget=unit.budget,
            rounds_left=None,
            exhausted=False,
            composition=composition,
        )
        found.append(Spent(figures, dict.fromkeys(names).keys()))
    return found


def check_trial(run: Path, drawn: Sequence[Unit], space: Sequence[Unit]) -> None:
    """Compare what a trial charged to its own ledgers with what the one charge covers.

    Args:
        run: the trial's directory.
        drawn: the trial's point alone, by protected unit.
        space: see :func:`reserve`.

    Raises:
        ClaimVoid: the trial ran something that was not charged. The sentence does not say which trial it was.
        LedgerError: the trial's ledger is broken.
    """
    for unit, covered in zip(drawn, space, strict=True):
        path = (records_path if unit.plan.unit != "client" else clients_path)(run / "ledger")
        allowed: dict[str, Mapping[Event, int]] = {}
        for group, share in enumerate(unit.shares[0]):
            if share.event not in {trial[group].event for trial in covered.shares}:
                raise _uncovered()
            most = dict(accountant.flatten({share.event: 1}))
            allowed |= dict.fromkeys(share.names, most)
        if not (isinstance(path, Path) and path.exists()):  # it ended before anything was charged
            continue
        for subject, spent in verify(path).spent.items():
            most = dict(allowed.get(subject, {}))
            if any(count > most.get(event, 0) for event, count in accountant.flatten(spent)):
                raise _uncovered()


def _uncovered() -> ClaimVoid:
    return ClaimVoid("a trial charged something that the sweep's one charge does not cover, so nothing of this sweep is released.")
