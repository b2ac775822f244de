"""What the trials of a sweep cost in privacy, before anything is trained.

A trial is priced at the most that its plan allows: every client takes part in all its planned rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedray.clients.groups import make_groups
from fedray.config import Config
from fedray.planning.planner import histories
from fedray.planning.preparation import Prepared, check_sizes, plan_whole_clients
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.budgets import largest
from fedray.privacy.accounting.events import Composed, Composition, Event, RepeatAndSelect, SelfComposed
from fedray.privacy.accounting.repetition import Repetitions
from fedray.privacy.clientplan import Plan
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.limits import load_limits
from fedray.privacy.recordplan import RecordPlan, plan_record
from fedray.privacy.rules import claim
from fedray.rng import generator
from fedray.rounding import as_given, json_figure, rounded_up
from fedray.sweeps.space import Point, at, combinations, draw, named, planned_points


@dataclass(frozen=True)
class Share:
    """Clients of one group in one trial, who are charged alike.

    Attributes:
        names: the ledger's subjects.
        ledger: the directory of their ledger, or ``run``.
        plan: their plan in the trial.
    """

    names: tuple[str, ...]
    ledger: str
    plan: Plan

    @property
    def event(self) -> Event:
        """The most that the whole trial can be charged, its evaluations among it."""
        training = SelfComposed(self.plan.participations, self.plan.event())
        evaluations = self.plan.evaluations if isinstance(self.plan, RecordPlan) else None
        return training if evaluations is None else Composed((training, SelfComposed(evaluations.count(), evaluations.event)))


@dataclass(frozen=True)
class Unit:
    """All trials of a sweep for one protected unit; ``shares[t][g]`` is group ``g`` in trial ``t``."""

    path: str
    shares: Sequence[Sequence[Share]]

    @property
    def plan(self) -> Plan:
        """The first trial's plan of the first group, for what all plans have in common."""
        return self.shares[0][0].plan

    @property
    def budget(self) -> float | None:
        """The smallest budget that any of the plans has."""
        return min((s.plan.budget for trial in self.shares for s in trial if s.plan.budget is not None), default=None)


def units(prepared: Prepared, points: Iterable[Point]) -> list[Unit]:
    """What each trial would charge, by protected unit, records first; empty without privacy.

    Args:
        prepared: the base config.
        points: of the trials, at least one.

    Raises:
        ConfigError: a trial's plan is wrong.
        PrivacyRefusal: the limits of a ledger's folder do not allow it.
    """
    records: list[list[Share]] = []
    clients: list[list[Share]] = []
    for point in points:
        config = at(prepared.config, point)
        groups, names = make_groups(config, prepared.names), prepared.names
        if config.privacy.record:
            plans = [plan_record(config, group.training, group.every) for group in groups]
            if prepared.sizes is not None:
                check_sizes(list(plans), groups, names, prepared.sizes)
            records.append([Share(tuple(names[i] for i in g.members), g.ledger, plan) for g, plan in zip(groups, plans, strict=True)])
        dimension = 0 if prepared.model is None else prepared.model.exchange.up_size
        whole = plan_whole_clients(config, groups, len(names), dimension)
        if whole is not None:
            ledger = prepared.client_ledger
            clients.append([Share(tuple(whole.subjects(names)), ledger, whole)])
    joint = prepared.config.privacy.joint is not None
    found = [Unit("privacy", records)] if records else []
    found += [Unit("privacy.joint" if joint else "privacy", clients)] if clients else []
    return [_held(prepared, unit) for unit in found]


def _held(prepared: Prepared, unit: Unit) -> Unit:
    """The unit with the limits of its ledgers' folders as budgets where the config has none."""

    def held(share: Share) -> Share:
        limits = None if share.ledger == "run" else load_limits(ledger_directory(share.ledger, "."))
        if limits is None:
            return share
        limits.check([share.plan], claim(prepared.config).reasons, unit.path)
        return Share(share.names, share.ledger, limits.hold(share.plan))

    return Unit(unit.path, [[held(share) for share in trial] for trial in unit.shares])


def histories_of(prepared: Prepared, unit: Unit, group: int, notes: list[str]) -> dict[Composition, list[str]]:
    """The subjects of a group by what their ledgers hold already."""
    share = unit.shares[0][group]
    own = prepared.config.clients.apart and (unit.plan.unit != "client" or prepared.silos_charge_clients)
    past = histories(share.plan, share.ledger, share.names, own, notes)
    found: dict[Composition, list[str]] = {}
    for name in share.names:
        found.setdefault(past.get(name, ((), 0))[0], []).append(name)
    return found


def sealed_event(unit: Unit, group: int, repetitions: Repetitions) -> Event:
    """The one charge of a sealed sweep: ``unit`` has one trial for every point that may be drawn."""
    distinct = dict.fromkeys(trial[group].event for trial in unit.shares)
    return RepeatAndSelect(float(repetitions.mean), float(repetitions.shape), tuple(distinct))


def price(prepared: Prepared, points: Sequence[Point], repetitions: Repetitions) -> list[dict[str, Any]]:
    """The price of a sweep in both ways, as JSON data by protected unit; an infinite figure is "infinity".

    Args:
        prepared: the base config.
        points: of the trials that would be charged one by one.
        repetitions: the number of trials of a sealed sweep.

    Returns:
        For each unit: ``trials``, ``least`` and ``most`` (epsilon of the cheapest and of the costliest trial alone, without earlier charges),
        ``charged`` (of all trials composed with the earlier charges), ``fits`` (how many trials fit the budget, in their order), ``sealed``
        (of the best of a random number of them; None where Renyi DP does not bound it), ``sealed_fits``, ``budget``, ``delta``, ``notes``.
    """
    section = prepared.config.sweep
    assert section is not None
    found = []
    for charged, space in zip(units(prepared, points), units(prepared, combinations(section)), strict=True):
        plan, notes, groups = charged.plan, list[str](), range(len(charged.shares[0]))
        alone = [max(_bound({share.event: 1}, share.plan) for share in trial) for trial in charged.shares]
        pasts = [(group, past) for group in groups for past in histories_of(prepared, charged, group, notes)]
        sealed: float | None = None
        if all(_sealable(sealed_event(space, group, repetitions), plan) for group in groups):
            sealed = max(_bound(_plus(past, sealed_event(space, group, repetitions)), plan) for group, past in pasts)
        together = [_plus(past, *(trial[group].event for trial in charged.shares)) for group, past in pasts]
        found.append(
            {
                "unit": plan.unit,
                "delta": plan.delta,
                "budget": charged.budget,
                "trials": len(points),
                "least": json_figure(min(alone)),
                "most": json_figure(max(alone)),
                "charged": json_figure(max(_bound(each, plan) for each in together)),
                "fits": trials_that_fit(charged, pasts),
                "sealed": None if sealed is None else json_figure(sealed),
                "sealed_fits": sealed is not None and (charged.budget is None or sealed <= charged.budget),
                "mean": repetitions.mean,
                "shape": repetitions.shape,
                "most_trials": repetitions.number(0.95),
                "notes": list(dict.fromkeys(notes)),
            }
        )
    return found


def trials_that_fit(unit: Unit, pasts: Sequence[tuple[int, Composition]]) -> int:
    """How many of the trials, in their order, fit the budget after the earlier charges of each (group, composition)."""
    budget, plan = unit.budget, unit.plan
    if budget is None:
        return len(unit.shares)

    def fit(number: int) -> bool:
        spent = (_plus(past, *(trial[group].event for trial in unit.shares[:number])) for group, past in pasts)
        return all(accountant.affordable(each, plan.delta, budget, plan.interval, plan.adjacency) for each in spent)

    return largest(fit, len(unit.shares))


def price_text(prices: Sequence[Mapping[str, Any]], points: Sequence[Point], price: str) -> list[str]:
    """The price in lines, for ``fedray plan`` and at the start of a sweep."""
    head = (
        f"{len(points)} trials, such as {named(points[0])}"
        if price == "charged"
        else f"a secret number of trials, {len(points)} on average"
    )
    lines = [f"sweep: {head}"]
    if not prices:
        return [*lines, "  nothing is protected, so the trials cost no privacy"]
    for p in prices:
        unit = f"a whole {p['unit']}" if p["unit"] == "client" else f"one {p['unit']}"
        lines.append(f"  price for {unit} at delta {as_given(p['delta'])}, budget {as_given(p['budget'])}:")
        lines.append(f"    one trial alone         epsilon {_span(p['least'], p['most'])}")
        short = "" if p["fits"] == p["trials"] else f"; only the first {p['fits']} fit the budget"
        lines.append(f"    charged: {p['trials']:>3} composed   epsilon {rounded_up(p['charged'])}{short}{_mark(price, 'charged')}")
        if p["sealed"] is None:
            lines.append("    sealed                  not offered: Renyi DP does not bound one of these mechanisms")
            continue
        over = "" if p["sealed_fits"] else "; does not fit the budget"
        what = {0.0: "logarithmic", 1.0: "geometric"}.get(p["shape"], f"shape {p['shape']:g}")
        lines.append(
            f"    sealed: mean {p['mean']:<5g}      epsilon {rounded_up(p['sealed'])} ({what}; in 19 of 20 sweeps at most {p['most_trials']} trials)"
            f"{over}{_mark(price, 'sealed')}"
        )
    return [*lines, *(f"note: {note}" for note in dict.fromkeys(n for p in prices for n in p["notes"]))]


def _span(least: float | str, most: float | str) -> str:
    return rounded_up(most) if least == most else f"{rounded_up(least)} to {rounded_up(most)}"


def _mark(price: str, this: str) -> str:
    return "  <- sweep.price" if price == this else ""


def _plus(past: Composition, *events: Event) -> Counter[Event]:
    total: Counter[Event] = Counter(dict(past))
    total.update(events)
    return total


def _sealable(event: Event, plan: Plan) -> bool:
    return accountant.bounded(((event, 1),), "rdp", plan.adjacency)


def _bound(spent: Mapping[Event, int], plan: Plan) -> float:
    return accountant.bound(spent, plan.delta, plan.interval, plan.adjacency) if spent else 0.0


def compared(config: Config) -> tuple[list[Point], Repetitions]:
    """What both prices of a sweep are for: the trials that are charged one by one, and the number of trials of a sealed sweep.

    Of a sealed sweep, the trials are those of a charged sweep with as many of them as are expected; of a charged sweep, the number is as
    large on average as that of its trials.
    """
    section = config.sweep
    assert section is not None
    if section.price == "sealed":
        number = round(section.mean or 1)
        points = [draw(section, generator(config.seed, "sweep", trial).random) for trial in range(number)]
        return points, Repetitions(section.mean or 1.0, section.number_shape)
    points = planned_points(section, config.seed)
    return points, Repetitions(float(len(points)), 0.0)
