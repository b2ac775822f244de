"""What came out of a sweep's trials: their rows, own and composed epsilons, the best of them, and the table of all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.planning.preparation import Prepared
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.event_json import from_json
from fedray.privacy.accounting.events import Event
from fedray.privacy.ledger.chain import EVERYONE
from fedray.rounding import json_figure, rounded_up
from fedray.storage import read_json, reading
from fedray.sweeps.pricing import Unit, histories_of

Row = dict[str, Any]


def own_epsilon(run: Path, delta: float) -> float:
    """The epsilon of one run alone, without what other runs charged to the same ledgers: that of its costliest subject.

    Args:
        run: its directory, with its part of each ledger.
        delta: of the figure.
    """
    largest = 0.0
    for part in sorted((run / "ledger").glob("*.part.json")):
        spent: dict[str, Counter[Event]] = {}
        adjacency: Any = "zero_out"
        with reading(part):
            for entry in (read_json(part) or {})["entries"]:
                if entry["kind"] == "reserve":
                    adjacency = entry["adjacency"]
                    spent.setdefault(entry["subject"], Counter())[from_json(entry["event"])] += 1
        everyone = spent.pop(EVERYONE, Counter())
        distinct = {frozenset((own + everyone).items()) for own in spent.values()} or {frozenset(everyone.items())}
        largest = max(largest, *(accountant.bound(dict(each), delta, adjacency=adjacency) if each else 0.0 for each in distinct))
    return largest


def composed_epsilon(prepared: Prepared, unit: Unit) -> float | None:
    """The epsilon of everything that was charged to the sweep's ledgers; None if this process cannot read them, as those of other machines."""
    notes: list[str] = []
    pasts = [past for group in range(len(unit.shares[0])) for past in histories_of(prepared, unit, group, notes)]
    if notes or not pasts:
        return None
    plan = unit.plan
    return max(accountant.bound(dict(past), plan.delta, accountant.FINAL_INTERVAL, plan.adjacency) if past else 0.0 for past in pasts)


def is_better(score: float | None, than: float | None, largest: bool) -> bool:
    """Whether a score is better than another; one that is missing or not a number is worse than any."""
    key, other = (-math.inf if s is None or math.isnan(s) else s if largest else -s for s in (score, than))
    return key > other


def best_of(rows: Sequence[Row], largest: bool) -> Row | None:
    """The row with the best score among the trials that came to their end; of equal ones the first."""
    best: Row | None = None
    for row in rows:
        if row["status"] in ("completed", "budget_reached") and is_better(row["score"], None if best is None else best["score"], largest):
            best = row
    return best


def table(rows: Sequence[Row], metric: str, best: int | None = None) -> list[str]:
    """All trials in lines: what each tried, its score, its own epsilon, its rounds, how it ended."""
    keys = list(rows[0]["point"]) if rows else []
    last = [key.rpartition(".")[2] for key in keys]
    head = [
        "trial",
        *(short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)),
        metric,
        "epsilon",
        "rounds",
        "ended",
    ]
    cells = [head]
    for row in rows:
        mark = " *" if row["trial"] == best else ""
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        spent = "-" if row.get("epsilon") is None else rounded_up(row["epsilon"], 3, fixed=True)
        values = [format(v, ".4g") if isinstance(v, float) else str(v) for v in row["point"].values()]
        cells.append([f"{row['trial']}{mark}", *values, score, spent, str(row.get("rounds") or "-"), _ended(row)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return [
        "  ".join(c.ljust(w) if i == len(head) - 1 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in cells
    ]


def _ended(row: Mapping[str, Any]) -> str:
    status = str(row["status"])
    words = {"budget_reached": "stopped by its budget", "stopped": "ended early, behind the others"}.get(status, status)
    if row.get("error"):
        first = str(row["error"]).split("\n")[0]
        return f"{words}: {first if len(first) <= 90 else first[:87] + '...'}"
    return words


def as_figure(value: float | None) -> float | str | None:
    """An epsilon as JSON data."""
    return None if value is None else json_figure(value)


def markdown(rows: Sequence[Row], metric: str, best: int | None) -> str:
    """The table of all trials as Markdown, for the description of the sweep in MLflow."""
    keys = list(rows[0]["point"]) if rows else []
    lines = ["| trial | " + " | ".join(keys) + f" | {metric} | epsilon | ended |", "| --- " * (len(keys) + 4) + "|"]
    for row in rows:
        name = f"**{row['trial']}**" if row["trial"] == best else str(row["trial"])
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        spent = "-" if row.get("epsilon") is None else rounded_up(row["epsilon"], 3, fixed=True)
        lines.append(
            f"| {name} | " + " | ".join(str(v) for v in row["point"].values()) + f" | {score} | {spent} | {_ended(row).replace('|', ' ')} |"
        )
    return "\n".join(lines)
