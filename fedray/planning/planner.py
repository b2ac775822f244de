"""Plans a run's privacy cost before training: each client's epsilon, the rounds that budgets allow, and the effect of other settings.

Reads the ledgers that outlive runs, without taking their locks; starts no Ray and trains nothing. Every figure is the upper bound by
which the run itself would be refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fedray.clients.groups import ClientGroup
from fedray.errors import ConfigError, LedgerError
from fedray.planning.footprint import footprint
from fedray.planning.forecast import Participation, Row, evaluations_of, label, noise_for, refusal
from fedray.planning.preparation import Prepared, plan_whole_clients
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.budgets import bound
from fedray.privacy.accounting.events import Composition
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.ledger.chain import EVERYONE, Summary, scan
from fedray.privacy.ledger.location import SILOS, clients_path, ledger_directory, records_path, subject_path
from fedray.privacy.ledger.place import find_books, read_lines
from fedray.privacy.limits import load_limits
from fedray.privacy.recordplan import RecordPlan
from fedray.privacy.rules import claim
from fedray.privacy.statement_text import persons, protects
from fedray.rounding import json_figure
from fedray.stores.object_path import Location

P = TypeVar("P", RecordPlan, ClientPlan)

#: What a subject's ledger holds: the composition of its charges, and their number.
History = tuple[Composition, int]

TARGETS = (1.0, 2.0, 4.0, 8.0)

_CURVES, _POINTS = 8, 16


def make_plan(prepared: Prepared, curves: bool = True, nodes: int = 1) -> dict[str, Any]:
    """Compute everything that ``fedray plan`` prints, as JSON data; an infinite figure is "infinity".

    Args:
        prepared: the run.
        curves: whether to compute epsilon over rounds, which the table does not show.
        nodes: number of the cluster's nodes, for the traffic between them.

    Returns:
        ``lines`` (one per protected unit: rows of clients, what-if epsilons, noise for given epsilons, curves), ``memory``, ``traffic``,
        ``actors``, ``notes``, ``warnings``, and ``refusal``: the sentence if a budget would be exceeded, else None.

    Raises:
        LedgerError: a ledger is broken, cannot be reached, or holds charges of another unit or adjacency.
    """
    config, notes = prepared.config, _notes(prepared)
    lines = [_line(prepared, path, rows, curves) for path, rows in rows_of(prepared, notes)]
    return {
        "name": config.name,
        "regimes": list(config.privacy.regimes),
        "rounds": config.rounds,
        "clients": len(prepared.names),
        "cohort": config.cohort.kind,
        "accountant": f"pld, {accountant.accountant_version()}",
        "lines": lines,
        **footprint(prepared, nodes),
        "notes": notes,
        "warnings": list(prepared.warnings),
        "refusal": next((line["refusal"] for line in lines if line["refusal"]), None),
    }


def shortfalls(prepared: Prepared) -> list[str]:
    """Return one sentence for each protected unit of which some clients would reach their budget before the planned rounds.

    Raises:
        LedgerError: see :func:`make_plan`.
    """
    return [s for path, rows in rows_of(prepared, []) if (s := refusal(prepared.config, path, rows)) is not None]


# -- who is charged --------------------------------------------------------------------------------


def rows_of(prepared: Prepared, notes: list[str]) -> Iterator[tuple[str, list[Row]]]:
    """Yield the config path and the rows of each protected unit, records first; adds to ``notes`` which books do not exist yet."""
    config = prepared.config
    if config.privacy.record:
        yield "privacy", _record_rows(prepared, notes)
    plan = _client_plan(prepared)
    if plan is not None:
        yield ("privacy" if config.privacy.joint is None else "privacy.joint"), _client_rows(prepared, plan, notes)


def _client_plan(prepared: Prepared) -> ClientPlan | None:
    """Return the plan for whole clients, also for central noise with an unknown model, on which its cost does not depend."""
    if prepared.client_plan is None and prepared.config.privacy.whole_clients == "client":
        return plan_whole_clients(prepared.config, prepared.groups, len(prepared.names), 0)
    return prepared.client_plan


def _record_rows(prepared: Prepared, notes: list[str]) -> list[Row]:
    p, found = prepared, []
    dedicated = p.config.clients.apart
    shown = p.sizes is not None and (p.config.privacy.whole_clients is None or "partition" in p.config.privacy.unprotected)
    for group, plan in zip(p.groups, p.plans, strict=True):
        if plan is None:
            continue
        plan, limits = _held(p, plan, group.ledger, "privacy")
        participation = _participation(p, group, plan.max_participations)
        names = [p.names[i] for i in group.members]
        size = dict(zip(names, p.sizes[np.asarray(group.members)].tolist(), strict=True)) if shown and p.sizes is not None else None
        for (spent, charges), alike in _alike(histories(plan, group.ledger, names, dedicated, notes), names):
            records = None if size is None else tuple(size[name] for name in alike)
            found.append(Row(group.name, alike, records, plan, participation, spent, charges, limits))
    return found


def _held(prepared: Prepared, plan: P, ledger: str, path: str) -> tuple[P, str | None]:
    """Apply the limits of the ledger's folder to a plan.

    Returns:
        The plan, with the folder's limit as its budget if the config has none; and the file of limits, if its limit is the budget.

    Raises:
        PrivacyRefusal: the folder's limits do not allow this plan.
    """
    limits = None if ledger in ("run", SILOS) else load_limits(ledger_directory(ledger, "."))
    if limits is None:
        return plan, None
    limits.check([plan], claim(prepared.config).reasons, path)
    return limits.hold(plan), limits.where if limits.binds(plan) else None


def _client_rows(prepared: Prepared, plan: ClientPlan, notes: list[str]) -> list[Row]:
    p, config, ledger, silos = prepared, prepared.config, prepared.client_ledger, prepared.silos_charge_clients
    rows, path = [], "privacy" if config.privacy.joint is None else "privacy.joint"
    if plan.charging.whom == "everyone":
        plan, limits = _held(p, plan, ledger, path)
        past = histories(plan, ledger, [EVERYONE], False, notes)
        spent, charges = past.get(EVERYONE, ((), 0))
        return [Row("all", (EVERYONE,), None, plan, Participation(config.rounds, every=plan.charging.span), spent, charges, limits)]
    for group in p.groups:
        held, limits = _held(p, plan, group.ledger if silos else ledger, path)
        names = [p.names[i] for i in group.members]
        past = histories(plan, group.ledger if silos else ledger, names, silos, notes)
        participation = _participation(p, group, plan.max_participations)
        rows += [Row(group.name, alike, None, held, participation, *history, limits) for history, alike in _alike(past, names)]
    return rows


def _alike(past: Mapping[str, History], names: Sequence[str]) -> Iterable[tuple[History, tuple[str, ...]]]:
    """Group clients by what their ledgers hold."""
    groups: dict[History, list[str]] = {}
    for name in names:
        groups.setdefault(past.get(name, ((), 0)), []).append(name)
    return ((history, tuple(members)) for history, members in groups.items())


def _participation(prepared: Prepared, group: ClientGroup, most: int | None) -> Participation:
    """Return how often a client of a group takes part; ``most``: at most so many times. Traces count as if everybody were always there."""
    cohort, clients, every = prepared.drawn, len(prepared.names), group.every
    rounds, arguments = prepared.config.rounds, cohort.arguments
    if group.rate == 0:
        return Participation(rounds, 0.0, 1, most)
    if cohort.kind == "poisson":
        return Participation(rounds, min(1.0, float(arguments.get("fraction", 1.0)) * group.rate), every, most)
    if cohort.kind == "fixed" and prepared.config.cohort.availability is None:
        able = sum(len(g.members) for g in prepared.groups if g.rate > 0 and (g.every == 1 or g is group))
        size = int(arguments.get("size") or max(round(float(arguments.get("fraction", 1.0)) * clients), 1))
        return Participation(rounds, min(1.0, size / able), every, most)
    if cohort.kind == "cyclic":
        return Participation(rounds, 1.0, max(math.ceil(clients / int(arguments["size"])), every), most)
    return Participation(rounds, 1.0, every, most)  # all, or a user's sampler, about which nothing is known


def histories(plan: RecordPlan | ClientPlan, ledger: str, names: Sequence[str], own: bool, notes: list[str]) -> dict[str, History]:
    """Return what the books that outlive runs hold for each of ``names``; ``own``: each client has its own book."""
    if ledger == SILOS:
        notes.append("each silo's own ledger decides, which cannot be seen from here: nothing is taken as spent there.")
    if ledger in ("run", SILOS):
        return {}
    directory = ledger_directory(ledger, ".")
    if own:
        books = {subject_path(directory, name): [name] for name in names}
    else:
        books = {(clients_path if plan.unit == "client" else records_path)(directory): list(names)}
    found: dict[str, History] = {}
    missing = 0
    for book, subjects in books.items():
        if not (book.exists() if isinstance(book, Path) else find_books(book)):
            missing += 1
            continue
        summary = _read(book, notes)
        if summary.units - {(plan.unit, plan.adjacency)}:
            raise LedgerError(
                f"{book}: holds other charges than of {plan.unit} under {plan.adjacency} adjacency, and charges of both kinds have no common "
                "epsilon, so this run could not use it; set privacy.regime, privacy.person and cohort to those of the runs before."
            )
        for name in subjects:
            found[name] = (accountant.flatten(summary.charged(name)), summary.charges[name])
    if missing:
        where = f"{missing} of {len(books)} books in {directory} do" if len(books) > 1 else f"{next(iter(books))} does"
        silos = "; a silo's book on another machine cannot be seen from here" if own else ""
        notes.append(f"{where} not exist yet: nothing is taken as spent there{silos}.")
    return found


def _read(book: Location, notes: list[str]) -> Summary:
    """Read a book and verify its chain, without taking its writer's lock."""
    summary = Summary(book)
    for item in scan(book, read_lines(book)):
        if isinstance(item, bytes):
            notes.append(f"{book}: its last line is torn; the next run repairs it, which may count one charge more than is said here.")
            break
        summary.take(item[0])
    return summary


def _notes(prepared: Prepared) -> list[str]:
    config, notes = prepared.config, []
    if prepared.sizes is None:
        check = " whether delta is at most 1 / (10 x records) is checked when they start;" if config.privacy.record else ""
        notes.append(
            f"only the silos can read their records, so this plan works on their names alone: numbers of records are unknown;{check} "
            "the model's size is known then, too."
        )
        if config.privacy.whole_clients == "distributed":
            notes.append(
                "distributed noise costs what the model's size makes it cost, so it can be planned only where the data is read here."
            )
    own = config.cohort.kind not in ("poisson", "fixed", "cyclic", "all")
    if own or prepared.schedule.carries:
        key, kind = ("cohort", config.cohort.kind) if own else ("pacing", config.pacing.kind)
        notes.append(f"{key}.kind: how often '{kind}' asks a client is not known, so every client is counted in every round.")
    return notes


# -- figures ---------------------------------------------------------------------------------------


def _line(prepared: Prepared, path: str, rows: Sequence[Row], curves: bool) -> dict[str, Any]:
    """Return all figures of one protected unit."""
    top = max(rows, key=lambda r: r.epsilon(r.participation.worst))
    plan = top.plan
    headline = top.epsilon(top.participation.worst)
    line: dict[str, Any] = {
        "unit": plan.unit,
        "regime": "record" if isinstance(plan, RecordPlan) else plan.regime,
        "adjacency": plan.adjacency,
        "delta": plan.delta,
        "budget": plan.budget,
        "target_epsilon": plan.target_epsilon,
        "clip": plan.clip,
        "rows": [_row(r) for r in rows],
        "epsilon": json_figure(headline),
        "epsilon_person": json_figure(_person(rows, headline)),
        "protects": protects(plan),
        "persons": persons(plan),
        "noise": _noise(prepared, plan),
        "levers": [{"change": name, "epsilon": json_figure(e)} for name, e in _levers(prepared, top)],
        "noise_for_epsilon": [{"epsilon": t, "noise_multiplier": noise_for(top, t, top.participation.worst)} for t in TARGETS],
        "curves": _curves(rows) if curves else [],
        "evaluations": evaluations_of(top, prepared),
        "refusal": refusal(prepared.config, path, rows),
    }
    if isinstance(plan, ClientPlan):
        stripped = accountant.unamplified(dict(top.total(top.participation.worst)))
        observers = plan.observers_epsilon(prepared.config.rounds)
        line["population"] = {
            "clients": plan.facts.clients,
            "sampling": plan.facts.sampling,
            "cohort": plan.facts.cohort,
            "mechanism": plan.kind,
            "charged": plan.charging.whom,
            "rounds_of_a_charge": plan.charging.span,
            "denominator": plan.denominator,
        }
        line["epsilon_unamplified"] = json_figure(accountant.bound(stripped, plan.delta, plan.interval, plan.adjacency))
        line["epsilon_observers"] = None if observers is None else json_figure(observers)
    return line


def _row(row: Row) -> dict[str, Any]:
    plan, participation, affordable = row.plan, row.participation, row.affordable()
    short = affordable is not None and participation.needed(row.subjects) > affordable
    chance = 0.0 if affordable is None else participation.above(affordable)
    verdict = "no limit" if affordable is None else "exceeds" if short else "may exceed" if chance > 1e-9 else "fits"
    return {
        "group": row.group,
        "clients": row.subjects,
        "names": list(row.names),
        "records": None if row.records is None else list(row.records),
        "sampling_rate": float(plan.sampling_rate) if isinstance(plan, RecordPlan) else None,
        "steps": plan.steps if isinstance(plan, RecordPlan) else None,
        "noise_multiplier": plan.noise_multiplier,
        "charges_before": row.charges,
        "epsilon_before": json_figure(bound(row.spent, plan)),
        "participations": {"expected": participation.expected, "worst": participation.worst},
        "epsilon_expected": json_figure(row.epsilon(math.ceil(participation.expected - 1e-9))),
        "epsilon": json_figure(row.epsilon(participation.worst)),
        "rounds_affordable": affordable,
        "chance_exceeded": chance,
        "exceeded_in_round": participation.round_of(affordable + 1) if affordable is not None and short else None,
        "verdict": verdict,
    }


def _levers(prepared: Prepared, row: Row) -> Iterator[tuple[str, float]]:
    """What-if analysis: yield epsilon after the planned rounds if one setting changes and all others, with the noise multiplier, stay."""
    noise, participation, plan = row.plan.noise_multiplier, row.participation, row.plan
    made: list[tuple[str, RecordPlan | ClientPlan, Participation]] = [
        ("noise x 1.25", replace(plan, noise_multiplier=noise * 1.25), participation),
        ("noise x 0.8", replace(plan, noise_multiplier=noise * 0.8), participation),
    ]
    factors = (("halved", Fraction(1, 2)), ("doubled", Fraction(2)))
    if isinstance(plan, RecordPlan):
        made += [(f"steps {w}", replace(plan, steps=int(plan.steps * f)), participation) for w, f in factors if plan.steps * f >= 1]
        rates = [(w, plan.sampling_rate * f) for w, f in factors]
        made += [(f"sampling rate {w}", replace(plan, sampling_rate=q), participation) for w, q in rates if q <= 1]
    elif plan.amplified:
        facts = plan.facts
        for word, factor in factors:
            if 1 <= facts.cohort * factor <= min(facts.clients, facts.cap or facts.clients):
                q = None if facts.rate is None else facts.rate * factor
                size = float(facts.cohort * factor) if facts.sampling == "poisson" else float(int(facts.cohort * factor))
                other = replace(plan, facts=replace(facts, rate=q, cohort=size))
                made.append((f"cohort {word}", other, participation))
    for word, factor in factors:
        rounds, every, after = max(1, int(prepared.config.rounds * factor)), participation.every, plan
        if isinstance(plan, ClientPlan):
            after = replace(plan, facts=replace(plan.facts, rounds=rounds))
            every = after.charging.span if plan.charging.whom == "everyone" else every
        made.append((f"rounds {word}", after, replace(participation, rounds=rounds, every=every)))
    for name, changed_plan, changed_participation in made:
        try:
            if isinstance(changed_plan, ClientPlan):
                changed_plan.mechanism.check(changed_plan.facts)
            yield name, replace(row, participation=changed_participation).epsilon(changed_participation.worst, changed_plan.event())
        except (ConfigError, LedgerError):
            continue  # a setting that the mechanism does not have


def _noise(prepared: Prepared, plan: RecordPlan | ClientPlan) -> dict[str, Any]:
    """Return the noise on one released mean: of one client's step, or of all clients' updates in a round."""
    size = None if prepared.model is None else prepared.model.facts.layout.size
    if isinstance(plan, RecordPlan):
        std: float | None = plan.noise_multiplier * plan.clip / plan.expected_batch
        most = plan.clip
        what = "a step's mean gradient at one client"
    else:
        z = plan.noise_multiplier if plan.adaptive is None else plan.adaptive.noise_multiplier
        std, most = z * plan.clip / plan.denominator, plan.clip * plan.facts.cohort / plan.denominator
        what = {"tree": "a node of the tree", "banded": "a round's mean update, before correlation"}.get(plan.kind, "a round's mean update")
        if plan.regime == "local":
            std = None if plan.kind != "local_gaussian" else z * plan.clip / math.sqrt(plan.facts.cohort)
            most = plan.clip
        elif plan.regime == "distributed":  # each expected client adds the noise that one of min_clients clients must add
            std = std * math.sqrt(plan.facts.cohort / max(1, plan.facts.min_clients)) if std is not None else None
    norm = None if std is None or size is None else std * math.sqrt(size)
    return {
        "of": what,
        "std_per_value": std,
        "clip": plan.clip,
        "values": size,
        "norm": norm,
        "norm_over_largest_signal": None if norm is None else norm / most,
    }


def _person(rows: Sequence[Row], headline: float) -> float:
    silos = max(r.plan.max_silos_per_person for r in rows)
    if silos == 1:
        return headline
    spents = [dict(r.total(r.participation.worst)) for r in rows for _ in range(min(silos, r.subjects))]
    return accountant.person_epsilon(spents, min(r.plan.delta for r in rows), silos, rows[0].plan.adjacency)


def _curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return epsilon over rounds, in the worst case and as expected, for the rows with the largest epsilon."""
    found = []
    for row in sorted(rows, key=lambda r: -r.epsilon(r.participation.worst))[:_CURVES]:
        participation = row.participation
        rounds = sorted({int(r) for r in np.linspace(0, participation.rounds, min(participation.rounds, _POINTS) + 1)})
        shorter, sure = [row.lasting(r) for r in rounds], participation.rate in (0.0, 1.0)
        found.append(
            {
                "label": label(row.names),
                "rounds": rounds,
                "epsilon": [json_figure(x.epsilon(x.participation.worst)) for x in shorter],
                "epsilon_expected": None if sure else [json_figure(x.epsilon(math.ceil(x.participation.expected - 1e-9))) for x in shorter],
            }
        )
    return found
