"""The privacy statement of a query, as JSON data and as Markdown.

Source: Ponomareva et al. 2023, How to DP-fy ML, section 5.3 (what to report)
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fedray.privacy import statement_text
from fedray.privacy.accounting import accountant
from fedray.privacy.figures import Figures, Spent, headline, median
from fedray.privacy.queryplan import QueryPlan
from fedray.privacy.recordplan import INSECURE_RNG
from fedray.privacy.rules import Claim, claim
from fedray.privacy.statement import assumption_lines, client_lines, ledger_lines, table_lines
from fedray.queries.preparedquery import PreparedQuery
from fedray.queries.statistic import GRID
from fedray.rounding import as_given, json_figure, rounded_up

#: Clients up to which they are listed in the text; the JSON file has all.
_LISTED = 200
_MECHANISM = (
    "integer sums of contributions that are bounded for every record, with discrete Gaussian noise on every value (Canonne, Kamath & Steinke 2020), "
    "drawn exactly, added at each client before anything leaves it"
)
_ACCOUNTING = (
    "all statistics are released together and charged as one Gaussian of the stated noise multiplier. The discrete Gaussians have a variance of "
    "{extra} squared grid units more than that Gaussian would need, and are then post-processing of it up to a factor within exp(+-1e-24), so every "
    "accountant's bound of the Gaussian holds for them, alone and composed with training"
)


def query_statement(
    prepared: PreparedQuery, plan: QueryPlan, groups: Sequence[Spent], figures: Sequence[Figures], heads: str | Mapping[str, str] | None
) -> dict[str, Any]:
    """The statement as JSON data; ``summary`` is the part for the query's summary. An infinite epsilon is written "infinity".

    Args:
        prepared: the query.
        plan: its plan.
        groups: figures of all clients.
        figures: of the clients that are listed one by one.
        heads: hash of the last entry of the driver's ledger, or of each client's.
    """
    config, standing = prepared.config, claim(prepared.config)
    most = headline(groups, plan.adjacency)
    shown = rounded_up(json_figure(most))
    summary = {
        "unit": plan.unit,
        "adjacency": plan.adjacency,
        "regime": "discrete-gaussian-sums",
        "epsilon": json_figure(most),
        "epsilon_rdp": json_figure(max((g.figures.epsilon_rdp for g in groups), default=0.0)),
        "epsilon_client_median": json_figure(min(most, median(groups))),
        "epsilon_query": json_figure(plan.planned_epsilon),
        "epsilon_person": json_figure(_person(plan, groups, most)),
        "delta": plan.delta,
        "budget": plan.budget,
        "accountant": "pld",
        "accountant_version": accountant.accountant_version(),
        "clients": len(prepared.names),
        "claim": "valid" if standing.valid else "void",
        "claim_reasons": standing.reasons,
        "statement": _sentence(shown, plan.delta, standing),
    }
    if isinstance(heads, str):
        summary["ledger_sha256"] = heads
    secure = plan.rng != INSECURE_RNG
    return {
        "summary": summary,
        "guarantee": {
            "definition": "(epsilon, delta)-differential privacy",
            "setting": "local noise: each client adds noise to its own sums, so the server need not be trusted with records",
            "unit": "one record of one client",
            "adjacency": statement_text.ADJACENCY[plan.adjacency].format(unit=plan.unit),
            "statement": summary["statement"],
            "meaning": statement_text.meaning(plan.unit, plan.adjacency, most, plan.delta, shown),
            "against": "the server, the other clients, and everyone who sees the answers, this directory or the tracking store",
            "trust": statement_text.TRUST,
            "persons": _persons(plan.max_silos_per_person),
            "released": "the noised sums of every client, the answers and their intervals, and everything computed from them",
            "not_covered": [
                "whole clients, and persons with several records in one client, because the unit is one record",
                "how many records a client holds for training and holds out; these numbers are assumed to be public",
                "the running time of a client, which varies with its records and with the noise that it draws",
                "error messages and tracebacks of clients, which stay inside the cluster's trust domain",
                "bounds, bins and ranges of the config, which the operator must not have chosen by looking at these records",
            ],
        },
        "mechanism": {
            "name": _MECHANISM,
            "grid": f"the number 1 is {GRID} grid units",
            "rng": [plan.rng],
            "enforced": "a contribution above its bound counts as nothing, in exact arithmetic; every answer carries a receipt that is compared with the charge",
            "plans": [{**plan.terms(), "sha256": plan.sha256, "planned_epsilon": json_figure(plan.planned_epsilon)}],
        },
        "accounting": {
            "headline": f"upper bound for the largest client over all its charges in the ledger, on a grid of {accountant.FINAL_INTERVAL:g}",
            "query": _ACCOUNTING.format(extra=plan.extra_variance),
            "library": accountant.accountant_version(),
            "composition": "all charges in the ledger are composed, those of training and of other queries too",
            "assumptions": [
                {"assumption": "noise is fresh and secret", "holds": secure, "because": plan.rng},
                {
                    "assumption": "a record's contribution depends on that record alone",
                    "holds": True,
                    "because": "every step treats one record at a time, a judged model too",
                },
                {"assumption": "arithmetic is exact", "holds": True, "because": "sums and noise are integers"},
            ],
            "rounding": statement_text.ROUNDING,
        },
        "clients": [
            {
                "name": f.name,
                "unit": plan.unit,
                "participations_charged": f.charges,
                "of_this_run": f.run_charges,
                "epsilon": json_figure(f.epsilon),
                "epsilon_rdp": json_figure(f.epsilon_rdp),
                "budget": f.budget,
            }
            for f in figures
        ],
        "ledger": {
            "scope": statement_text.scope(config),
            "kept": "a charge is durable before the data is read, and is never taken back",
            "head_sha256": dict(heads) if isinstance(heads, Mapping) else heads,
        },
        "exposure": statement_text.exposure(config),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("fedray", "dp-accounting", "numpy", "cryptography")}},
    }


def query_markdown(statement: Mapping[str, Any]) -> str:
    """The statement as Markdown."""
    summary, guarantee, mechanism, accounts = (statement[key] for key in ("summary", "guarantee", "mechanism", "accounting"))
    lines = ["# Privacy statement", "", guarantee["statement"], ""]
    if summary["claim"] != "valid":
        lines += ["**The claim is void:**", "", *(f"- {reason}" for reason in summary["claim_reasons"]), ""]
    rows = [
        ("Unit", guarantee["unit"]),
        ("Adjacency", guarantee["adjacency"]),
        ("In other words", guarantee["meaning"]),
        ("Epsilon (largest client, all charges)", rounded_up(summary["epsilon"])),
        ("Epsilon of this query alone", rounded_up(summary["epsilon_query"])),
        ("Epsilon (person)", f"{rounded_up(summary['epsilon_person'])} ({guarantee['persons']})"),
        ("Delta", as_given(summary["delta"])),
        ("Budget", as_given(summary["budget"])),
        ("Protects against", guarantee["against"]),
        ("Trust", guarantee["trust"]),
        ("Covers the release of", guarantee["released"]),
        ("Mechanism", mechanism["name"]),
        ("Enforced", mechanism["enforced"]),
        ("Randomness", "; ".join(mechanism["rng"])),
        ("Accounting", f"{accounts['query']}; {accounts['headline']}; {accounts['library']}"),
        ("Composition", accounts["composition"]),
        ("Rounding", accounts["rounding"]),
    ]
    lines += table_lines(("Item", "What holds"), rows)
    lines += ["## Statistics", "", "| statistic | values | noise on each (std, one client) |", "| --- | --- | --- |"]
    for plan in mechanism["plans"]:
        lines += [f"| {one['name']} | {one['size']} | {math.sqrt(int(one['variance'])) / GRID:.4g} |" for one in plan["sums"]]
    lines += ["", "## Assumptions", ""]
    lines += assumption_lines(accounts["assumptions"])
    lines += ["", "## Not covered", "", *(f"- {text}" for text in guarantee["not_covered"]), "", "## Clients", ""]
    lines += ["| client | charges | epsilon | budget |", "| --- | --- | --- | --- |"]
    lines += client_lines(statement["clients"])[:_LISTED]
    return "\n".join([*lines, "", *ledger_lines(statement["ledger"], statement["versions"])])


def _sentence(shown: str, delta: float, standing: Claim) -> str:
    if not standing.valid:
        return f"No guarantee is claimed: the charges amount to epsilon {shown} at delta {delta!r}, but the claim is void."
    return (
        f"The answers, with all that was charged to the same ledgers before, were ({shown}, {delta!r})-differentially private for every single record "
        "of every client: what the clients sent would have been almost as likely without that record's contribution."
    )


def _person(plan: QueryPlan, groups: Sequence[Spent], most: float) -> float:
    silos = plan.max_silos_per_person
    if silos == 1 or not groups:
        return most
    if not all(accountant.bounded(g.figures.composition, "rdp") for g in groups):
        return math.inf
    spents = [dict(g.figures.composition) for g in groups for _ in range(min(len(g.names), silos))]
    return accountant.person_epsilon(spents, plan.delta, silos)


def _persons(silos: int) -> str:
    where = "in one client" if silos == 1 else f"in each of up to {silos} clients; Renyi divergences are added order by order"
    return f"for a person with one record {where}"
