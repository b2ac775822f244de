"""Reading books: what ``fedray ledger show`` and ``fedray ledger verify`` print."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray.errors import LedgerError
from fedray.privacy import accounting
from fedray.privacy.chain import Summary
from fedray.privacy.compare import compare_run
from fedray.privacy.location import Location, location
from fedray.privacy.statement import show
from fedray.privacy.store import find_books
from fedray.privacy.verification import verify
from fedray.storage import read_json, reading


def books(path: str | Location) -> list[Location]:
    """The ledgers at ``path``: a book, a directory of them, their address in an object store, or those that a run wrote to.

    Raises:
        LedgerError: there are none.
    """
    path = location(path)
    folder = path / "ledger" if isinstance(path, Path) and (path / "ledger").is_dir() else path
    found = find_books(folder)
    if isinstance(folder, Path) and not found:
        parts = sorted(folder.glob("*.part.json"))
        with reading(*parts):
            found = [location(str((read_json(part) or {})["book"])) for part in parts]
    if isinstance(path, Path) and not found and (path / "config.yaml").exists():
        raise LedgerError(f"{path}: this run kept no ledger of its own; name the directory that its privacy.ledger says.")
    if not found:
        raise LedgerError(f"{path}: holds no privacy ledger (*.jsonl); name a ledger file or its directory.")
    return found


def describe(path: str | Location, delta: float | None = None) -> dict[str, Any]:
    """Every client's spending, recomputed from the entries after checking the books.

    Args:
        path: see :func:`books`.
        delta: of the figures; default the smallest that a plan in the book names.

    Returns:
        JSON data: ``books`` (file, head, jobs, delta, clients) and, over all of them, ``epsilon`` (the largest).

    Raises:
        LedgerError: no ledger, a broken one, or no delta anywhere.
    """
    rows = [_book(verify(book), delta) for book in books(path)]
    largest = max((c["epsilon"] for row in rows for c in row["clients"]), key=_value, default=0.0)
    return {"path": str(path), "epsilon": largest, "accountant": f"pld, {accounting.accountant_version()}", "books": rows}


def _book(summary: Summary, delta: float | None) -> dict[str, Any]:
    if delta is None:
        delta = next(iter(summary.deltas), None)
    if delta is None and summary.spent:
        raise LedgerError(f"{summary.path}: names no delta in its plans; give --delta.")
    epsilons = {} if delta is None else summary.epsilons(delta)
    head = summary.head
    return {
        "file": str(summary.path),
        "entries": summary.entries,
        "head": None if head is None else {"seq": head.seq, "sha256": head.sha256},
        "jobs": list(summary.jobs),
        "unit": [{"unit": u, "adjacency": a} for u, a in sorted(summary.units)],
        "delta": delta,
        "plans": dict(summary.terms),
        "clients": [
            {"name": name, "participations_charged": summary.charges[name], "epsilon": "infinity" if math.isinf(e) else e}
            for name, e in epsilons.items()
        ],
    }


def table(report: Mapping[str, Any]) -> str:
    """The report of :func:`describe` as text."""
    lines = []
    for book in report["books"]:
        head = book["head"]
        units = ", ".join(f"{u['unit']} ({u['adjacency'].replace('_', '-')})" for u in book["unit"]) or "nothing charged"
        lines += [
            f"{book['file']}",
            f"  {book['entries']} entries, chain whole, head {head['sha256'][:16]}..., jobs: {', '.join(book['jobs'])}",
            f"  unit: {units}; delta: {'-' if book['delta'] is None else format(book['delta'], 'g')}",
        ]
        whole = any(u["unit"] == "client" for u in book["unit"])
        first, second = ("whole client", "charges") if whole else ("client", " rounds")
        names = {c["name"]: "all clients" if whole and c["name"] == "clients" else c["name"] for c in book["clients"]}
        width = max([len(name) for name in names.values()] + [len(first)])
        lines.append(f"  {first:<{width}} {second}  epsilon")
        lines += [
            f"  {names[c['name']]:<{width}}  {c['participations_charged']:>6}  {_text(c['epsilon'])}"
            for c in sorted(book["clients"], key=lambda c: -_value(c["epsilon"]))
        ]
        lines.append("")
    lines.append(f"largest epsilon: {_text(report['epsilon'])} ({report['accountant']})")
    return "\n".join(lines)


def verify_all(path: str | Location) -> Iterator[str]:
    """Check every book at ``path``, and of a run also its figures; one line for each.

    Raises:
        LedgerError: the first fault, with the place, what differs and what to do.
    """
    path = location(path)
    for book in books(path):
        summary = verify(book)
        assert summary.head is not None
        spent = "; ".join(
            f"largest epsilon {_text(max(summary.epsilons(d).values()))} at delta {d:g}" for d in summary.deltas if summary.spent
        )
        yield (
            f"{book}: whole, {summary.entries} entries, {sum(summary.charges.values())} charges to {len(summary.spent)} clients, "
            f"{summary.commits} commits, head {summary.head.sha256}" + (f"; {spent}" if spent else "")
        )
    if isinstance(path, Path):
        yield from compare_run(path)


def _value(epsilon: float | str) -> float:
    return math.inf if isinstance(epsilon, str) else epsilon


def _text(epsilon: float | str) -> str:
    return show("infinity" if isinstance(epsilon, float) and math.isinf(epsilon) else epsilon)
