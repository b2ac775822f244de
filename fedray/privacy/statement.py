"""The privacy statement of a run: what is guaranteed, to whom, under which assumptions, and what is not.

Source: Ponomareva et al. 2023, How to DP-fy ML, section 5.3 (what to report)
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedray.config import Config
from fedray.privacy import accounting
from fedray.privacy.plan import RecordPlan
from fedray.privacy.record import Figures
from fedray.privacy.rules import Claim, claim

_PACKAGES = ("fedray", "opacus", "dp-accounting", "torch", "numpy", "cryptography", "ray")

NOT_COVERED = (
    "whole clients, and persons with several records in one client: the unit is one record",
    "that a client takes part, when, for how long, and how many records it holds (taken as public)",
    "error messages and tracebacks of clients, which stay inside the cluster's trust domain",
    "the driver's test records, which are taken as public",
    "choosing among several runs by their results on private records, unless all runs share one lasting ledger",
    "rounding of float32 arithmetic: the analysis is one of real numbers",
)
TRUST = (
    "One Ray cluster is one trust domain: records are protected from everyone who sees models and metrics, "
    "not from code that runs in the cluster or from its operators. The server need not be trusted with single updates."
)


def privacy_statement(
    config: Config,
    plans: Sequence[RecordPlan],
    figures: Sequence[Figures],
    ledger_head: str | Mapping[str, str] | None,
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """The statement as JSON data.

    Args:
        config: the run.
        plans: of all groups of clients; equal ones are named once.
        figures: every client's figures (see ``Account.figures``).
        ledger_head: hash of the last entry of the driver's book, or client to that of its own.
        problems: what went wrong while the run ran; voids the claim.

    Returns:
        JSON data; ``summary`` is the part for the run's summary. An infinite epsilon is written "infinity".
    """
    standing = claim(config, problems)
    distinct = list(dict.fromkeys(plans))
    headline = _headline(figures)
    epsilons = sorted(f.epsilon for f in figures)
    delta = max((p.delta for p in distinct), default=config.privacy.delta)
    summary: dict[str, Any] = {
        "unit": "record",
        "regime": "local-dp-sgd",
        "epsilon": _figure(headline),
        "epsilon_rdp": _figure(max((f.epsilon_rdp for f in figures), default=0.0)),
        "epsilon_client_median": _figure(_median(epsilons)),
        "epsilon_person": _figure(_person(distinct, figures, headline)),
        "delta": delta,
        "budget": max((p.budget for p in distinct if p.budget is not None), default=None),
        "accountant": "pld",
        "accountant_version": accounting.accountant_version(),
        "clients": len(figures),
        "clients_exhausted": sum(f.exhausted for f in figures),
        "claim": "valid" if standing.valid else "void",
        "claim_reasons": standing.reasons,
    }
    if isinstance(ledger_head, str):
        summary["ledger_sha256"] = ledger_head
    return {
        "summary": summary,
        "guarantee": {
            "unit": "one record of one client",
            "adjacency": "zero-out: one record's contribution is replaced by nothing; the numbers of records are public",
            "statement": _sentence(headline, delta, standing),
            "against": "the server, the other clients, whoever sees the model, the metrics or the tracking store",
            "trust": TRUST,
            "persons": _persons(config.privacy.max_silos_per_person),
            "not_covered": list(NOT_COVERED) + [reason for reason in standing.reasons if reason.startswith("privacy.unprotected")],
        },
        "mechanism": {
            "name": "DP-SGD at each client: Poisson-sampled steps, each record's gradient clipped jointly over all trained parameters, "
            "Gaussian noise on the sum",
            "sampling": "each record joins each step by an independent float64 coin of the public sampling rate, tossed by the program; "
            "empty batches are noise-only steps and are charged; there is no path with shuffled batches",
            "denominator": "the constant training.expected_batch, never the number of records drawn",
            "rng": sorted({p.rng for p in distinct}),
            "client_sampling": "claims no amplification: a client's own update is visible to the server",
            "plans": [{**p.terms(), "sha256": p.sha256, "planned_epsilon": _figure(p.planned_epsilon)} for p in distinct],
        },
        "accounting": {
            "headline": f"privacy-loss distributions, upper bound, largest client; interval {accounting.FINAL_INTERVAL:g} "
            f"({accounting.INTERVAL:g} while the run went on and in the table below)",
            "beside": "Renyi DP",
            "library": accounting.accountant_version(),
            "composition": "all charges in the ledger; charges of different plans are composed as if the plans had been fixed beforehand",
        },
        "ledger": {
            "scope": "this run alone" if config.privacy.ledger == "run" else "all runs that were charged to the same ledger",
            "kept": "a charge is on disk before the data is touched and is never taken back",
            "head_sha256": dict(ledger_head) if isinstance(ledger_head, Mapping) else ledger_head,
        },
        "clients": [
            {
                "name": f.name,
                "participations_charged": f.charges,
                "of_this_run": f.run_charges,
                "epsilon": _figure(f.epsilon),
                "epsilon_rdp": _figure(f.epsilon_rdp),
                "budget": f.budget,
                "rounds_left": f.rounds_left,
            }
            for f in figures
        ],
        "versions": {"python": platform.python_version(), **_versions(_PACKAGES)},
    }


def statement_markdown(statement: Mapping[str, Any], clients: int = 200) -> str:
    """The statement for a reader.

    Args:
        statement: from :func:`privacy_statement`.
        clients: rows of the table at most; those with the largest epsilon are kept.
    """
    summary, guarantee, mechanism = statement["summary"], statement["guarantee"], statement["mechanism"]
    accounts, ledger = statement["accounting"], statement["ledger"]
    lines = ["# Privacy statement", "", guarantee["statement"], ""]
    if summary["claim"] != "valid":
        lines += ["**The claim is void:**", "", *(f"- {reason}" for reason in summary["claim_reasons"]), ""]
    rows = [
        ("Unit", guarantee["unit"]),
        ("Adjacency", guarantee["adjacency"]),
        ("Epsilon (largest client)", f"{_show(summary['epsilon'])} by PLD, {_show(summary['epsilon_rdp'])} by RDP"),
        ("Epsilon (median client)", _show(summary["epsilon_client_median"])),
        ("Epsilon (person)", f"{_show(summary['epsilon_person'])} ({guarantee['persons']})"),
        ("Delta", f"{summary['delta']:g}" if summary["delta"] is not None else "none"),
        ("Budget", _show(summary["budget"])),
        ("Protects against", guarantee["against"]),
        ("Trust", guarantee["trust"]),
        ("Mechanism", mechanism["name"]),
        ("Sampling", mechanism["sampling"]),
        ("Denominator", mechanism["denominator"]),
        ("Client sampling", mechanism["client_sampling"]),
        ("Randomness", "; ".join(mechanism["rng"])),
        ("Accounting", f"{accounts['headline']}; {accounts['library']}"),
        ("Composition", accounts["composition"]),
        ("Ledger", f"{ledger['scope']}; {ledger['kept']}"),
        ("Ledger head", ledger["head_sha256"] if isinstance(ledger["head_sha256"], str) else "in each silo's own book"),
    ]
    lines += ["| | |", "| --- | --- |", *(f"| {_cell(name)} | {_cell(text)} |" for name, text in rows), ""]
    lines += ["## Not covered", "", *(f"- {text}" for text in guarantee["not_covered"]), "", "## Plans", ""]
    for plan in mechanism["plans"]:
        q = plan["sampling_rate"]
        lines.append(
            f"- sampling rate {q[0]}/{q[1]}, {plan['steps']} step(s) a round, noise multiplier {plan['noise_multiplier']:g}, "
            f"clip {plan['clip']:g}, expected batch {plan['expected_batch']:g}, "
            f"{plan['participations']} planned rounds: epsilon {_show(plan['planned_epsilon'])}"
        )
    shown = sorted(statement["clients"], key=lambda c: math.inf if c["epsilon"] == "infinity" else c["epsilon"], reverse=True)[:clients]
    lines += ["", "## Clients", "", "| client | rounds charged | epsilon | budget |", "| --- | --- | --- | --- |"]
    lines += [f"| {_cell(c['name'])} | {c['participations_charged']} | {_show(c['epsilon'])} | {_show(c['budget'])} |" for c in shown]
    if len(shown) < len(statement["clients"]):
        lines.append(f"\n{len(statement['clients']) - len(shown)} clients with smaller epsilon are in the JSON.")
    lines += ["", "Versions: " + ", ".join(f"{name} {number}" for name, number in statement["versions"].items()) + ".", ""]
    return "\n".join(lines)


def _headline(figures: Sequence[Figures]) -> float:
    """The largest client's epsilon on the fine grid: clients are refined from the top until no other can exceed them."""
    distinct = {(f.composition, f.delta): f.epsilon for f in figures}
    best = 0.0
    for (composition, delta), coarse in sorted(distinct.items(), key=lambda item: -item[1]):
        if coarse <= best or math.isinf(coarse):
            return max(best, coarse) if math.isinf(coarse) else best
        best = max(best, min(coarse, accounting.bound(dict(composition), delta, accounting.FINAL_INTERVAL)))
    return best


def _person(plans: Sequence[RecordPlan], figures: Sequence[Figures], headline: float) -> float:
    silos = max((p.max_silos_per_person for p in plans), default=1)
    if silos == 1 or not figures:
        return headline
    delta = min(f.delta for f in figures)
    if not all(accounting.bounded(f.composition, "rdp") for f in figures):
        return math.inf
    return accounting.person_epsilon([dict(f.composition) for f in figures], delta, silos)


def _persons(silos: int) -> str:
    if silos == 1:
        return "for persons with one record in one client"
    return f"for persons with one record in each of up to {silos} clients, by RDP added up order by order"


def _sentence(epsilon: float, delta: float | None, standing: Claim) -> str:
    if not standing.valid:
        return (
            f"No guarantee is claimed: the charges amount to epsilon {_show(_figure(epsilon))} at delta {delta:g}, but the claim is void."
        )
    return (
        f"Training was ({_show(_figure(epsilon))}, {delta:g})-differentially private for every single record of every client: "
        "what left any client would have been almost as likely without that record's contribution."
    )


def _median(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _figure(value: float) -> float | str:
    return "infinity" if math.isinf(value) else value


def _show(value: float | str | None) -> str:
    """Rounded up, so that the figure in words is never below the figure."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{math.ceil(value * 1e4 - 1e-9) / 1e4:g}"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
