"""The part of a run's report on what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray.faults import Fault
from fedray.reporting.report_text import table, time_text
from fedray.rounds.notes import grouped
from fedray.runfiles import RunFiles


def faults(run: Path, private: bool) -> Iterator[str]:
    """Yield the Markdown lines of a run's faults; those of one kind and round that say the same stand in one line.

    Args:
        run: the run's output directory.
        private: the clients' records are protected. A client's own words may hold private values, and a report is passed on, so they are
            left out.
    """
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in RunFiles(run).faults():
        groups.setdefault((int(row["round"]), str(row["kind"])), []).append(row)
    if not groups:
        return
    yield from ("## Faults of the run", "")
    if private and any(kind == "client" for _, kind in groups):
        yield from ("What a client's error says is left out, for it may hold private values; the run's faults.jsonl and log have it.", "")
    lines = [
        (str(number), time_text(rows[0]["time"]), kind, fault.text)
        for (number, kind), rows in groups.items()
        for fault in grouped([_fault(row, private) for row in rows], f"{kind}s")
    ]
    yield from table(("round", "when (UTC)", "what", ""), lines)


def _fault(row: Mapping[str, Any], private: bool) -> Fault:
    text, client = str(row["what"]), row.get("client")
    if private and row["kind"] == "client":
        front = f"round {row['round']}: client {client} on {row.get('node') or 'no node'} "
        text = front + text.removeprefix(front).partition(":")[0] if text.startswith(front) else f"round {row['round']}: client {client}"
    return Fault(row["kind"], text, int(row["round"]), client, row.get("node"))
