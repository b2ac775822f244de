"""Reports on ledgers, for ``fedray ledger show`` and ``fedray ledger verify``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedray.configfile import parse_yaml
from fedray.errors import FedrayError, LedgerError
from fedray.privacy.accounting import accountant
from fedray.privacy.ledger.chain import GENESIS, Summary, run_of
from fedray.privacy.ledger.compare import compare_run
from fedray.privacy.ledger.place import find_books, read_lines
from fedray.privacy.ledger.verification import verify
from fedray.privacy.ledger.withdrawal import withdrawn_of
from fedray.privacy.limits import Limits, load_limits
from fedray.privacy.persons import Person
from fedray.rounding import as_given, json_figure, rounded_down, rounded_up
from fedray.storage import read_json, reading
from fedray.stores.object_path import Location, location

#: Number of clients with different charges whose figures are on the fine grid; the others are on the coarse grid, which errs upwards.
_REFINED = 20


@dataclass
class Found:
    """The ledgers and runs at an address.

    Attributes:
        books: addresses of all ledgers, including those of runs.
        runs: directories of runs.
        notes: one sentence per run without a ledger, and per file that is left out.
    """

    books: list[Location] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(path: str | Location) -> Found:
    """The ledgers at ``path``: a ledger, a directory or object-store prefix with ledgers, a run, or a directory with runs.

    Raises:
        LedgerError: there is no ledger, or the ledger that a run's statement names is missing.
    """
    path, found = location(path), Found()
    if isinstance(path, Path) and path.is_dir():
        _search(path, found)
        if found.runs:  # a directory with runs also has files of other kinds
            strange = [book for book in found.books if isinstance(book, Path) and not _of_run(book, found) and not _begins_as_book(book)]
            found.books = [book for book in found.books if book not in strange]
            found.notes += [f"{book}: left out, because its first line is no entry of a ledger" for book in strange]
    else:
        found.books += find_books(path)
    if not found.books and not found.notes:
        raise LedgerError(f"{path}: holds no privacy ledger (*.jsonl) and no run; name a ledger file, its directory, or a run's.")
    found.books = list(dict.fromkeys(found.books))
    return found


def _search(directory: Path, found: Found) -> None:
    """Collect ledgers in any directory, but of a run only those in its ledger folder, because its metrics are JSON lines as well."""
    for folder, below, names in os.walk(directory):
        here = Path(folder)
        if "run.json" in names or ("metrics.jsonl" in names and ("config.yaml" in names or "ledger" in below)):
            below.clear()
            _search_run(here, found)
        else:
            below.sort()
            found.books += [here / name for name in sorted(names) if name.endswith(".jsonl")]


def _of_run(book: Path, found: Found) -> bool:
    return any(run in book.parents for run in found.runs)


def _begins_as_book(path: Path) -> bool:
    return GENESIS.encode() in next(read_lines(path), b"")


def _search_run(run: Path, found: Found) -> None:
    found.runs.append(run)
    own = find_books(run / "ledger")
    parts = sorted((run / "ledger").glob("*.part.json"))
    with reading(*parts):
        lasting = [location(str((read_json(part) or {})["book"])) for part in parts]
    found.books += own or lasting
    if own or lasting:
        return
    if (run / "privacy_statement.json").exists():
        raise LedgerError(f"{run}: its privacy statement names a ledger, but {run / 'ledger'} holds none; restore it.")
    found.notes.append(f"{run}: this run kept no ledger ({_why(run)})")


def _why(run: Path) -> str:
    try:
        privacy = (parse_yaml((run / "config.yaml").read_text(encoding="utf-8"), "config.yaml") or {}).get("privacy") or {}
    except (OSError, ValueError, FedrayError):
        return "it has no config.yaml, so it ended before anything was charged to one"
    if privacy.get("regime", "none") == "none":
        return "privacy.regime is none: nothing was charged"
    lasting = privacy.get("ledger", "run")
    return (
        "it ended before anything was charged to one"
        if lasting == "run"
        else f"of its own: it did not come to its end, and its charges are in {lasting}"
    )


def describe(path: str | Location, delta: float | None = None) -> dict[str, Any]:
    """Every client's figures, recomputed from the entries of the verified ledgers.

    Args:
        path: see :func:`find`.
        delta: delta of the figures; default the smallest delta of a plan in the ledger.

    Returns:
        JSON data: ``books`` (for each ledger its file, head, jobs, times of each run, delta, limits, clients and who has withdrawn), ``notes`` on runs without a
        ledger, and ``epsilon``, the largest figure of all ledgers.

    Raises:
        LedgerError: there is no ledger, a ledger is broken, or neither the ledger nor the caller gives a delta.
    """
    found = find(path)
    rows = [_book(verify(book), delta) for book in found.books]
    largest = max((c["epsilon"] for row in rows for c in row["clients"]), key=_value, default=0.0)
    return {
        "path": str(path),
        "epsilon": largest,
        "accountant": f"pld, {accountant.accountant_version()}",
        "books": rows,
        "notes": found.notes,
    }


def _book(summary: Summary, delta: float | None) -> dict[str, Any]:
    if delta is None:
        delta = next(iter(summary.deltas), None)
    if delta is None and summary.spent:
        raise LedgerError(f"{summary.path}: names no delta in its plans; give --delta.")
    epsilons = {} if delta is None else summary.refined(delta, _REFINED)
    head, limits = summary.head, load_limits(_folder(summary.path))
    return {
        "file": str(summary.path),
        "entries": summary.entries,
        "head": None if head is None else {"seq": head.seq, "sha256": head.sha256},
        "jobs": list(summary.jobs),
        "runs": [_written(summary, run) for run in dict.fromkeys(run_of(job) for job in summary.jobs)],
        "unit": [{"unit": u, "adjacency": a} for u, a in sorted(summary.units)],
        "delta": delta,
        "limits": None if limits is None else {"file": limits.where, **limits.terms.model_dump(exclude_defaults=True)},
        "plans": dict(summary.terms),
        "clients": [_client(summary, name, e, limits) for name, e in epsilons.items()],
        "withdrawn": {name: str(why) for name, why in withdrawn_of(summary.path).items()},
    }


def _folder(book: Location) -> Location:
    return book.parent if isinstance(book, Path) else replace(book, prefix=book.prefix.rpartition("/")[0])


def _written(summary: Summary, run: str) -> dict[str, Any]:
    first, last = summary.times.get(run, (None, None))
    return {"run": run, "first": first, "last": last}


def _client(summary: Summary, name: str, epsilon: float, limits: Limits | None) -> dict[str, Any]:
    """One client's figures, and the epsilon that is left of its last run's budget and the folder's limit, at that run's delta."""
    terms = summary.terms.get(summary.last[name][1], {})
    budget, limit = terms.get("budget"), None if limits is None else limits.terms.epsilon
    bounds = [float(b) for b in (budget, limit) if b is not None]
    left = None
    if bounds and terms.get("delta") is not None:
        interval = float(terms.get("interval") or accountant.INTERVAL)
        left = max(0.0, min(bounds) - accountant.bound(summary.charged(name), float(terms["delta"]), interval, summary.adjacency))
    return {
        "name": name,
        "participations_charged": summary.charges[name],
        "epsilon": json_figure(epsilon),
        "budget": budget,
        "limit": limit,
        "left": left,
    }


def table(report: Mapping[str, Any]) -> str:
    """The report of :func:`describe` as text."""
    lines = []
    for book in report["books"]:
        head = book["head"]
        units = (
            ", ".join(f"{_unit(u['unit'], book['plans'])} ({u['adjacency'].replace('_', '-')})" for u in book["unit"]) or "nothing charged"
        )
        limits = {k: v for k, v in (book["limits"] or {}).items() if k != "file"}
        lines += [
            f"{book['file']}",
            f"  {book['entries']} entries, chain whole, head {head['sha256'][:16]}...",
            *(f"  run {run['run']}: {_span(run['first'], run['last'])}" for run in book["runs"]),
            f"  unit: {units}; delta: {as_given(book['delta'])}",
        ]
        if book["limits"] is not None:
            told = ", ".join(f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in limits.items())
            lines.append(f"  limits of {book['limits']['file']}: {told or 'claims must be valid'}")
        lines += [f"  {why}" for why in book["withdrawn"].values()]
        whole = any(u["unit"] == "client" for u in book["unit"])
        names = {c["name"]: "all clients" if whole and c["name"] == "clients" else c["name"] for c in book["clients"]}
        rows = [("whole client" if whole else "client", "charges", "epsilon", "budget", "limit", "left")]
        rows += [
            (
                names[c["name"]],
                str(c["participations_charged"]),
                rounded_up(c["epsilon"]),
                as_given(c["budget"]),
                as_given(c["limit"]),
                "-" if c["left"] is None else rounded_down(c["left"]),
            )
            for c in sorted(book["clients"], key=lambda c: -_value(c["epsilon"]))
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  " + "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        lines.append("")
    lines += report["notes"]
    if report["books"]:
        lines.append(f"largest epsilon: {rounded_up(report['epsilon'])} ({report['accountant']})")
    return "\n".join(lines)


def _times(summary: Summary) -> tuple[str | None, str | None]:
    """The times of a ledger's first and last entry."""
    return min((first for first, _ in summary.times.values()), default=None), max(
        (last for _, last in summary.times.values()), default=None
    )


def _unit(unit: str, plans: Mapping[str, Mapping[str, Any]]) -> str:
    """A unit as the table shows it: of persons with what takes part of each, by the plans in the ledger."""
    persons = sorted({f"{person:short}" for plan in plans.values() if (person := Person.of(plan.get("person"))) is not None})
    return " or ".join(persons) if unit == "person" and persons else unit


def _span(first: str | None, last: str | None) -> str:
    if first is None or last is None:
        return "its entries carry no time"
    return f"written {first}" if first == last else f"written {first} to {last}"


def verify_all(path: str | Location) -> Iterator[str]:
    """Verify every ledger at ``path`` and the figures of every run; yields one line per ledger and run.

    Raises:
        LedgerError: the first fault; the sentence names its place, the difference and the remedy.
    """
    found = find(path)
    for book in found.books:
        summary = verify(book)
        assert summary.head is not None
        spent = "; ".join(
            f"largest epsilon {rounded_up(max(summary.refined(d).values()))} at delta {as_given(d)}"
            for d in summary.deltas
            if summary.spent
        )
        yield (
            f"{book}: whole, {summary.entries} entries, {sum(summary.charges.values())} charges to {len(summary.spent)} clients, "
            f"{summary.commits} commits, {_span(*_times(summary))}, head {summary.head.sha256}" + (f"; {spent}" if spent else "")
        )
    for run in found.runs:
        yield from compare_run(run)
    yield from found.notes


def _value(epsilon: float | str) -> float:
    return math.inf if isinstance(epsilon, str) else epsilon
