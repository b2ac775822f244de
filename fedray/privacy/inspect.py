"""Reading books: what ``fedray ledger show`` and ``fedray ledger verify`` print."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray.errors import LedgerError
from fedray.privacy import accounting
from fedray.privacy.chain import Summary
from fedray.privacy.ledger import verify


def books(path: str | Path) -> list[Path]:
    """The ledger files of ``path``: a file, a directory of them, or a run's output directory.

    Raises:
        LedgerError: there are none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    root = path / "ledger" if (path / "ledger").is_dir() else path
    if root == path and (path / "config.yaml").exists():
        raise LedgerError(f"{path}: this run kept no ledger of its own; name the directory that its privacy.ledger says.")
    found = sorted(root.rglob("*.jsonl")) if root.is_dir() else []
    if not found:
        raise LedgerError(f"{path}: holds no privacy ledger (*.jsonl); name a ledger file or its directory.")
    return found


def describe(path: str | Path, delta: float | None = None) -> dict[str, Any]:
    """Every client's spending, recomputed from the entries after checking the chains.

    Args:
        path: a ledger file, or a directory of them.
        delta: of the figures; default the smallest that a plan in the book names.

    Returns:
        JSON data: ``books`` (file, head, jobs, delta, clients) and, over all of them, ``epsilon`` (largest client).

    Raises:
        LedgerError: no ledger, a broken chain, or no delta anywhere.
    """
    rows = [_book(verify(book), delta) for book in books(path)]
    largest = max((c["epsilon"] for row in rows for c in row["clients"]), key=_value, default=0.0)
    return {"path": str(path), "epsilon": largest, "accountant": f"pld, {accounting.accountant_version()}", "books": rows}


def _book(summary: Summary, delta: float | None) -> dict[str, Any]:
    if delta is None:
        delta = min((float(t["delta"]) for t in summary.terms.values() if "delta" in t), default=None)
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
        width = max([len(c["name"]) for c in book["clients"]] + [6])
        lines.append(f"  {'client':<{width}}  rounds  epsilon")
        lines += [
            f"  {c['name']:<{width}}  {c['participations_charged']:>6}  {_text(c['epsilon'])}"
            for c in sorted(book["clients"], key=lambda c: -_value(c["epsilon"]))
        ]
        lines.append("")
    lines.append(f"largest epsilon: {_text(report['epsilon'])} ({report['accountant']})")
    return "\n".join(lines)


def verify_all(path: str | Path) -> Iterator[str]:
    """Check the chain of every book below ``path``; one line for each.

    Raises:
        LedgerError: the first that is broken, with file, line and what differs.
    """
    for book in books(path):
        summary = verify(book)
        assert summary.head is not None
        charged = sum(summary.charges.values())
        yield f"{book}: whole, {summary.entries} entries, {charged} charges to {len(summary.spent)} clients, head {summary.head.sha256}"


def _value(epsilon: float | str) -> float:
    return math.inf if isinstance(epsilon, str) else epsilon


def _text(epsilon: float | str) -> str:
    return epsilon if isinstance(epsilon, str) else f"{epsilon:.4f}"
