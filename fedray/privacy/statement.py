"""The privacy statement of a run: the guarantees, their assumptions and their limits, as JSON data and as Markdown.

The sentences are in :mod:`fedray.privacy.statement_text` and :mod:`fedray.privacy.statement_assumptions`.

Sources: Ponomareva et al. 2023, How to DP-fy ML, section 5.3 (what to report); NIST SP 800-226 (2025), Guidelines for Evaluating
Differential Privacy Guarantees
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedray.config import Config
from fedray.errors import LedgerError
from fedray.privacy import evaluationtext, statement_text
from fedray.privacy.accounting import accountant
from fedray.privacy.clientplan import ClientPlan, Plan, secret_cohorts
from fedray.privacy.figures import Figures, Spent, headline, median
from fedray.privacy.persons import unit_in_words
from fedray.privacy.recordplan import RecordPlan
from fedray.privacy.rules import Claim, claim
from fedray.privacy.statement_assumptions import assumptions
from fedray.rounding import as_given, json_figure, rounded_up
from fedray.secure.protocol import make_protocol

_PACKAGES = ("fedray", "opacus", "dp-accounting", "torch", "numpy", "cryptography", "ray")


@dataclass(frozen=True)
class Guarantee:
    """One guarantee of a statement.

    Attributes:
        unit: protected unit, ``record``, ``person`` or ``client``.
        plans: plans of the groups of clients.
        groups: figures of all subjects.
        figures: figures of the subjects that the statement lists one by one.
        published: figures for the headlines if participation is secret, computed as if everyone had always taken part; None: ``groups``.
    """

    unit: str
    plans: Sequence[Plan]
    groups: Sequence[Spent]
    figures: Sequence[Figures]
    published: Sequence[Spent] | None = None


def privacy_statement(
    config: Config,
    guarantees: Sequence[Guarantee],
    ledger_head: str | Mapping[str, str] | None,
    rounds: int,
    problems: Sequence[str] = (),
    frozen: str = "",
    left_out: int = 0,
    agreed: str = "",
    scaled: str = "",
    begun: str = "",
) -> dict[str, Any]:
    """The statement as JSON data.

    Args:
        config: the run.
        guarantees: the run's guarantees, at least one; the one for records comes first.
        ledger_head: hash of the last entry of the driver's ledger, or the name of each ledger to its hash.
        rounds: number of rounds that ran.
        problems: faults during the run that void the claim.
        frozen: digest of the model's frozen parameters; empty if none are frozen.
        left_out: number of clients without remaining budget that were left out of rounds.
        agreed: what was found about the registered data, as a clause; empty if nothing was registered.
        scaled: of which query the constants of the normalizer are, as a clause; empty if they are no query's.
        begun: where the initial model comes from, as a clause; empty if its factory drew it.

    Returns:
        JSON data. ``summary`` is the part for the run's summary: the first guarantee's, with the second's under ``joint``. All other keys
        describe the first guarantee; ``joint`` holds the other guarantees in full, and ``clients`` the subjects of all guarantees. If
        ``reveals_cohorts`` is true, the subjects' rows reveal secret cohorts and must not be published. An infinite epsilon is written
        "infinity".
    """
    standing = claim(config, problems)
    first, *others = [_line(config, g, rounds, standing, left_out) for g in guarantees]
    summary = first["summary"] | {"claim": "valid" if standing.valid else "void", "claim_reasons": standing.reasons}
    summary["statement"] = " ".join(line["guarantee"]["statement"] for line in (first, *others))
    if isinstance(ledger_head, str):
        summary["ledger_sha256"] = ledger_head
    if others:
        summary["joint"] = others[0]["summary"]
    return {
        **first,
        "summary": summary,
        "joint": others,
        "clients": [row for line in (first, *others) for row in line["clients"]],
        "reveals_cohorts": secret_cohorts([p for g in guarantees for p in g.plans]),
        "tuning": statement_text.tuning(config),
        "frozen_sha256": frozen or None,
        "agreed": agreed or None,
        "normalisation": scaled or None,
        **({"initial_model": begun} if begun else {}),
        "exposure": statement_text.exposure(config),
        "implementation": statement_text.implementation(config.privacy.record),
        "ledger": {
            "scope": statement_text.scope(config),
            "kept": "a charge is durable before the data is read, and is never taken back",
            "head_sha256": dict(ledger_head) if isinstance(ledger_head, Mapping) else ledger_head,
        },
        "versions": versions(),
    }


def _line(config: Config, guarantee: Guarantee, rounds: int, standing: Claim, left_out: int) -> dict[str, Any]:
    """One guarantee in full."""
    protocol = make_protocol(config.secure)
    unit, plans = guarantee.unit, list(dict.fromkeys(guarantee.plans))
    groups = guarantee.groups if guarantee.published is None else guarantee.published
    figures, subjects = [g.figures for g in groups], [len(g.names) for g in groups]
    plan, adjacency = plans[0], plans[0].adjacency
    person = plan.person if isinstance(plan, RecordPlan) else None
    most = headline(groups, adjacency)
    unamplified = max((f.epsilon_unamplified for f in figures if f.epsilon_unamplified is not None), default=None)
    observers = plan.observers_epsilon(rounds) if isinstance(plan, ClientPlan) else None
    delta = max(p.delta for p in plans)
    shown, for_person = rounded_up(json_figure(most)), json_figure(_person(plans, groups, most))
    summary: dict[str, Any] = {
        "unit": unit,
        "adjacency": adjacency,
        "regime": _regime(plan),
        "epsilon": json_figure(most),
        "epsilon_rdp": json_figure(max((f.epsilon_rdp for f in figures), default=0.0)),
        "epsilon_client_median": json_figure(min(most, median(groups))),
        "epsilon_person": for_person,
        "delta": delta,
        "budget": max((p.budget for p in plans if p.budget is not None), default=None),
        "accountant": "pld",
        "accountant_version": accountant.accountant_version(),
        "clients": plan.facts.clients if isinstance(plan, ClientPlan) else sum(subjects),
        "clients_exhausted": left_out,
    }
    if person is not None:
        summary["protects"] = f"{person:short}"
    priced = evaluationtext.price(plan, rounds)
    if priced is not None:
        summary["evaluation"] = priced
    if unamplified is not None:
        summary["epsilon_unamplified"] = json_figure(unamplified)
    if observers is not None:
        summary["epsilon_observers"] = json_figure(observers)
    return {
        "summary": summary,
        "guarantee": {
            "definition": "(epsilon, delta)-differential privacy",
            "setting": statement_text.setting(plan),
            "unit": unit_in_words(unit, person),
            "adjacency": statement_text.ADJACENCY[adjacency].format(unit=unit),
            "statement": statement_text.sentence(plan, shown, delta, standing, rounded_up(for_person)),
            "meaning": statement_text.meaning(unit, adjacency, most, delta, shown),
            "against": statement_text.against(plan, protocol),
            "trust": statement_text.trust(plan, protocol, config.clients.placement == "hosted"),
            "persons": statement_text.persons(plan, config.privacy.max_silos_per_person),
            "released": statement_text.released(plan),
            "accesses": statement_text.accesses(plan),
            "not_covered": statement_text.not_covered(plan, standing),
        },
        "mechanism": _record_mechanism(plans) if isinstance(plan, RecordPlan) else _client_mechanism(plan),
        "accounting": {
            "headline": f"upper bound for the largest client by privacy-loss distributions of grid spacing {accountant.FINAL_INTERVAL:g} "
            f"({accountant.INTERVAL:g} during the run and in the table below), or by Renyi DP for mechanisms that only Renyi DP bounds",
            "beside": "Renyi DP",
            "library": accountant.accountant_version(),
            "composition": "all charges in the ledger are composed; charges of different plans are composed as if all plans had been fixed beforehand",
            "assumptions": assumptions(plan),
            "rounding": statement_text.ROUNDING,
        },
        "clients": [
            {
                "name": f.name,
                "unit": unit,
                "participations_charged": f.charges,
                "of_this_run": f.run_charges,
                "epsilon": json_figure(f.epsilon),
                "epsilon_rdp": json_figure(f.epsilon_rdp),
                "epsilon_unamplified": None if f.epsilon_unamplified is None else json_figure(f.epsilon_unamplified),
                "budget": f.budget,
                "rounds_left": f.rounds_left,
            }
            for f in guarantee.figures
        ],
        "clients_not_listed": sum(len(g.names) for g in guarantee.groups) - len(guarantee.figures),
    }


def _regime(plan: Plan) -> str:
    """The word that the config has for it."""
    return "record" if isinstance(plan, RecordPlan) else plan.regime


def _record_mechanism(plans: Sequence[Plan]) -> dict[str, Any]:
    return {
        "name": f"DP-SGD at each client: steps on Poisson samples, each {statement_text.clipped(plans[0])} clipped jointly over all trained "
        "parameters (with per_layer, each of n parameter tensors is clipped to clip / sqrt(n)), and Gaussian noise on the sum",
        "sampling": statement_text.sampling(plans[0]),
        "denominator": "the constant training.expected_batch, not the number of sampled records",
        "rng": sorted({p.rng for p in plans}),
        "client_sampling": "no amplification is claimed, because the server sees each client's update",
        **({} if evaluationtext.evaluations_in(plans[0]) is None else {"evaluation": evaluationtext.MECHANISM}),
        "enforced": "every update carries a receipt of its steps, sampling rate, noise multiplier, clip norm and reservation, which is checked before the update is added",
        "plans": [{**p.terms(), "sha256": p.sha256, "planned_epsilon": json_figure(p.planned_epsilon)} for p in plans],
    }


def _client_mechanism(plan: ClientPlan) -> dict[str, Any]:
    return {
        "name": plan.mechanism.statement,
        "sampling": statement_text.sampling(plan),
        "denominator": f"the constant {plan.denominator:g}, not the number of clients that answered"
        if plan.regime != "local"
        else "the number of updates, which is public",
        "rng": [plan.rng],
        "client_sampling": "the headline relies on secret cohorts; the figure without this assumption is given as well"
        if plan.amplified
        else "the headline claims no amplification",
        "enforced": "the driver draws the cohorts, does not log them, and checks the separation and number of participations; "
        "every update carries a receipt of its clip norm and reservation, which is checked before the update is added",
        "plans": [{**plan.terms(), "sha256": plan.sha256, "planned_epsilon": json_figure(plan.planned_epsilon)}],
    }


def statement_markdown(statement: Mapping[str, Any], clients: int = 200) -> str:
    """The statement as Markdown.

    Args:
        statement: from :func:`privacy_statement`.
        clients: largest number of rows of each table, which keep the largest epsilons. No rows are shown if they would reveal secret cohorts.
    """
    summary = statement["summary"]
    lines = ["# Privacy statement", "", statement["guarantee"]["statement"], ""]
    lines += [line["guarantee"]["statement"] + "\n" for line in statement["joint"]]
    if summary["claim"] != "valid":
        lines += ["**The claim is void:**", "", *(f"- {reason}" for reason in summary["claim_reasons"]), ""]
    rows = 0 if statement["reveals_cohorts"] else clients
    for which, line in zip(("Guarantee", "Second guarantee"), (statement, *statement["joint"]), strict=False):
        lines += [f"## {which}: {line['guarantee']['unit']}", "", *_section(line, rows)]
    exposure, built = statement["exposure"], statement["implementation"]
    lines += [
        "## What the statement relies on",
        "",
        f"- Choice of settings: {statement['tuning']}",
        f"- Where the data is: {exposure['data']}.",
    ]
    if statement["frozen_sha256"]:
        lines.append(
            f"- Frozen parameters: sha256 {statement['frozen_sha256']}; they were neither trained nor sent, and did not depend on the records in this run."
        )
    if statement.get("initial_model"):
        lines.append(f"- Initial model: {statement['initial_model']}.")
    if statement.get("normalisation"):
        lines.append(f"- Normalisation: {statement['normalisation']}.")
    if statement.get("agreed"):
        lines.append(
            f"- Agreed data: {statement['agreed'].removesuffix('.')}. That a client's data changed since it registered is seen without noise."
        )
    lines += [f"- Access: {exposure['access']}.", *(f"- Side channel: {text}." for text in exposure["side_channels"])]
    lines += [f"- Code: {built['code']}.", f"- Checked: {built['checked']}.", f"- Not checked: {built['not_checked']}.", ""]
    ledger = statement["ledger"]
    return "\n".join([*lines, *ledger_lines(ledger, statement["versions"])])


def table_lines(heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    """A table of two columns as Markdown."""
    return [
        f"| {heads[0]} | {heads[1]} |",
        "| --- | --- |",
        *(f"| {_cell(name)} | {_cell(text)} |" for name, text in rows),
        "",
    ]


def assumption_lines(assumptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The assumptions of a guarantee as Markdown, each with whether it holds."""
    return [f"- {'Holds' if a['holds'] else '**Does not hold**'}: {a['assumption']} ({a['because']})." for a in assumptions]


def client_lines(clients: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of a table of clients, the largest epsilon first: name, charges, epsilon, budget."""
    ordered = sorted(clients, key=lambda c: math.inf if c["epsilon"] == "infinity" else c["epsilon"], reverse=True)
    return [
        f"| {_cell(c['name'])} | {c['participations_charged']} | {rounded_up(c['epsilon'])} | {as_given(c['budget'])} |" for c in ordered
    ]


def ledger_lines(ledger: Mapping[str, Any], numbers: Mapping[str, str]) -> list[str]:
    """The end of a statement as Markdown: where the ledger is, its head, and the versions of the packages."""
    heads = ledger["head_sha256"]
    shown = heads if isinstance(heads, str) else ", ".join(f"{k} {v[:16]}..." for k, v in list((heads or {}).items())[:8]) or "none"
    said = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return ["## Ledger", "", f"{ledger['scope']}; {ledger['kept']}. Head: {shown}.", "", f"Versions: {said}.", ""]


def _section(line: Mapping[str, Any], clients: int) -> list[str]:
    summary, guarantee, mechanism, accounts = line["summary"], line["guarantee"], line["mechanism"], line["accounting"]
    unbounded = summary["unit"] == "person" and summary["epsilon_rdp"] == "infinity"  # Renyi DP bounds no group of records
    by_rdp = "" if unbounded else f", {rounded_up(summary['epsilon_rdp'])} by RDP"
    rows = [("Definition", guarantee["definition"]), ("Setting", guarantee["setting"])]
    if "claim" in summary and summary["claim"] != "valid":
        rows.append(("Claim", "**void**, so that no figure below is claimed"))
    rows += [("Unit", guarantee["unit"]), ("Adjacency", guarantee["adjacency"]), ("In other words", guarantee["meaning"])]
    if "epsilon_unamplified" in summary:
        rows.append(("Epsilon, unamplified (adversary knows the cohorts)", rounded_up(summary["epsilon_unamplified"])))
    if "epsilon_observers" in summary:
        rows.append(("Epsilon, amplified (adversary sees models but not cohorts)", rounded_up(summary["epsilon_observers"])))
    rows += [
        ("Epsilon (largest client)", rounded_up(summary["epsilon"]) + by_rdp),
        ("Epsilon (median client)", rounded_up(summary["epsilon_client_median"])),
        ("Epsilon (person)", f"{rounded_up(summary['epsilon_person'])} ({guarantee['persons']})"),
        ("Delta", as_given(summary["delta"])),
        ("Budget", as_given(summary["budget"])),
        ("Protects against", guarantee["against"]),
        ("Trust", guarantee["trust"]),
        ("Covers the release of", guarantee["released"]),
        ("Covers the use of records in", guarantee["accesses"]),
        ("Mechanism", mechanism["name"]),
        ("Sampling", mechanism["sampling"]),
        ("Denominator", mechanism["denominator"]),
        ("Client sampling", mechanism["client_sampling"]),
        *((("Evaluation", f"{summary['evaluation']['said']}: {mechanism['evaluation']}"),) if "evaluation" in mechanism else ()),
        ("Enforced", mechanism["enforced"]),
        ("Randomness", "; ".join(mechanism["rng"])),
        ("Accounting", f"{accounts['headline']}; {accounts['library']}"),
        ("Composition", accounts["composition"]),
        ("Rounding", accounts["rounding"]),
    ]
    lines = table_lines(("what", "of this run"), rows)
    lines += ["### Assumptions", ""]
    lines += assumption_lines(accounts["assumptions"])
    lines += ["", "### Not covered", "", *(f"- {text}" for text in guarantee["not_covered"]), "", "### Plans", ""]
    lines += [_plan(plan) for plan in mechanism["plans"]]
    mine = [c for c in line["clients"] if c["unit"] == summary["unit"]]
    lines += ["", "### Clients", ""]
    if not clients:
        return [
            *lines,
            "The clients' charges are not listed, because they would reveal the cohorts, which must stay secret.",
            "",
        ]
    lines += ["| client | charges | epsilon | budget |", "| --- | --- | --- | --- |"]
    lines += client_lines(mine)[:clients]
    if clients < len(mine):
        lines.append(f"\n{len(mine) - clients} further clients, none with a larger epsilon, are listed in the JSON file.")
    if line["clients_not_listed"]:
        lines.append(f"\n{line['clients_not_listed']} further clients, none with a larger epsilon, are listed in the ledger only.")
    return [*lines, ""]


def _plan(plan: Mapping[str, Any]) -> str:
    planned = f"epsilon {rounded_up(plan['planned_epsilon'])}"
    if plan["unit"] != "client":
        q = plan["sampling_rate"]
        return (
            f"- sampling rate {q[0]}/{q[1]}, {plan['steps']} step(s) per round, noise multiplier {as_given(plan['noise_multiplier'])}, "
            f"clip {as_given(plan['clip'])} ({plan['clipping']}), expected batch {as_given(plan['expected_batch'])}, {plan['participations']} planned rounds: {planned}"
        )
    clip = f"clip {as_given(plan['clip'])}" if plan["adaptive_clip"] is None else f"clip {as_given(plan['clip'])} at first, then adaptive"
    return (
        f"- {plan['mechanism']}: {plan['clients']} clients, {plan['sampling']} cohorts of {as_given(plan['cohort'])}, noise multiplier "
        f"{as_given(plan['noise_multiplier'])}, {clip}, {plan['participations']} planned charges of {plan['rounds_of_a_charge']} round(s): {planned}"
    )


def _person(plans: Sequence[Plan], groups: Sequence[Spent], headline: float) -> float:
    silos = max((p.max_silos_per_person for p in plans), default=1)
    if silos == 1 or not groups:
        return headline
    delta = min(g.figures.delta for g in groups)
    spents = [dict(g.figures.composition) for g in groups for _ in range(min(len(g.names), silos))]
    try:
        return accountant.person_epsilon(spents, delta, silos)
    except LedgerError:  # neither accountant bounds all charges
        return math.inf


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run computes with, by name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
