"""What a query would cost and how exact its answers would be, before it is asked (``fedray plan`` of a query's config)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.errors import FedrayError
from fedray.privacy.accounting import accountant
from fedray.privacy.ledger.chain import Summary, scan
from fedray.privacy.ledger.location import ledger_directory, records_path, subject_path
from fedray.privacy.ledger.place import find_books, read_lines
from fedray.privacy.limits import load_limits
from fedray.privacy.refusal import refusal
from fedray.queries.preparedquery import PreparedQuery
from fedray.queries.statistic import GRID
from fedray.rounding import as_given, rounded_up
from fedray.stores.object_path import Location


def price_query(prepared: PreparedQuery) -> dict[str, Any]:
    """The price as JSON data: ``epsilon`` of the query, ``clients`` with what they have spent and would have, ``statistics`` with their noise,
    ``warnings``, and ``refusal``, an empty text if every client's budget allows the query.

    Ledgers that cannot be read from here count as empty, which ``unread`` says.
    """
    plan, about = prepared.plan, {"name": prepared.config.name, "warnings": list(prepared.warnings)}
    if plan is None:
        return about | {"private": False, "epsilon": None, "clients": [], "statistics": [], "refusal": "", "unread": 0}
    rows, unread, why, known = [], 0, "", dict[str, Summary | None]()
    for group in prepared.groups:
        for name in (prepared.names[i] for i in group.members):
            spent: Mapping[Any, int] = {}
            limits, where = None, ""
            if group.ledger != "run":
                directory = ledger_directory(group.ledger, ".")
                path = subject_path(directory, name) if prepared.dedicated else records_path(directory)
                where = str(path)
                if where not in known:
                    known[where] = _summary(path)
                found = known[where]
                unread += found is None
                spent = {} if found is None else found.charged(name)
                limits = _limits(directory)
            held = plan if limits is None else limits.hold(plan)
            composition = accountant.flatten(spent)
            refused = refusal(name, held, composition, 0, None if limits is None else limits.where)
            why = why or ("" if refused is None else str(refused))
            after = dict(spent) | {plan.event(): spent.get(plan.event(), 0) + 1}
            rows.append(
                {
                    "name": name,
                    "spent": accountant.bound(spent, plan.delta, plan.interval) if spent else 0.0,
                    "after": accountant.bound(after, plan.delta, plan.interval),
                    "budget": held.budget,
                    "ledger": where or "run",
                }
            )
    sums = [
        {
            "name": one.name,
            "kind": asked.kind,
            "values": one.size,
            "of": asked.part,
            "noise_std": math.sqrt(one.variance) / GRID,
            "noise_std_all": math.sqrt(one.variance * len(prepared.names)) / GRID,
        }
        for one, asked in zip(plan.sums, prepared.asked, strict=True)
    ]
    return about | {
        "private": True,
        "epsilon": plan.planned_epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "clients": rows,
        "statistics": sums,
        "refusal": why,
        "unread": unread,
    }


def price_text(price: Mapping[str, Any]) -> str:
    """The price as text, verdict first."""
    notes = [f"note: {warning}" for warning in price["warnings"]]
    if not price["private"]:
        return "\n".join([f"{price['name']}: asks without privacy", *notes])
    rows, epsilon = price["clients"], rounded_up(price["epsilon"])
    verdict = "DOES NOT FIT" if price["refusal"] else "fits"
    lines = [f"{price['name']}: {verdict}; costs every one of {len(rows)} clients epsilon {epsilon} at delta {as_given(price['delta'])}"]
    if price["refusal"]:
        lines.append(f"  {price['refusal']}")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        alike.setdefault((rounded_up(row["spent"]), rounded_up(row["after"]), as_given(row["budget"])), []).append(row["name"])
    for (spent, after, budget), names in alike.items():
        who = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"  {who}: spent {spent}, then {after} of {budget}")
    if price["unread"]:
        lines.append(f"  ({price['unread']} ledgers could not be read from here, or do not exist yet, and count as empty)")
    lines += notes
    table = [("statistic", "kind", "values", "noise, one client", "noise, all clients")]
    table += [
        (one["name"], one["kind"], str(one["values"]), f"{one['noise_std']:.3g}", f"{one['noise_std_all']:.3g}")
        for one in price["statistics"]
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines += ["", *("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)]
    lines.append("  Noise is the standard deviation on each sum, in records; of a mean divide by the number of records.")
    return "\n".join(lines)


def _summary(path: Location) -> Summary | None:
    """A ledger's sums without its writer's lock; None if it cannot be read or does not exist."""
    try:
        if not (path.exists() if isinstance(path, Path) else find_books(path)):
            return None
        summary = Summary(path)
        for item in scan(path, read_lines(path)):
            if not isinstance(item, bytes):
                summary.take(item[0])
        return summary
    except FedrayError:
        return None


def _limits(directory: Location) -> Any:
    try:
        return load_limits(directory)
    except FedrayError:
        return None
