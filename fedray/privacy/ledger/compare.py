"""Comparison of a run's summary and privacy statement with the figures that follow from its ledgers' entries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedray.errors import LedgerError, StoreError
from fedray.privacy.accounting.accountant import FINAL_INTERVAL, INTERVAL, bound
from fedray.privacy.figures import largest
from fedray.privacy.ledger.chain import Summary, read, run_of
from fedray.privacy.ledger.place import find_books
from fedray.privacy.ledger.verification import verify
from fedray.storage import read_json, reading
from fedray.stores.object_path import Location, location

#: Largest relative difference at which two figures count as equal.
TOLERANCE = 1e-6

_BOOKS = {"record": "records", "person": "records", "client": "clients"}
_REMEDY = "it was not computed from this ledger, so do not rely on it"


@dataclass(frozen=True)
class _Known:
    """A ledger up to the entry that the statement names; ``delta`` is that of the run's summary."""

    book: Location
    summary: Summary
    run: str | None
    delta: float

    def delta_of(self, subject: str) -> tuple[float, float]:
        """Delta and grid spacing of the plan under which this run charged a subject."""
        job, plan = self.summary.last.get(subject, ("", ""))
        terms = self.summary.terms.get(plan, {})
        mine = self.run is None or run_of(job) == self.run
        delta = terms.get("delta") if mine else None
        return float(self.delta if delta is None else delta), float(terms.get("interval") or INTERVAL)

    def epsilon(self, subject: str, interval: float | None = None) -> float:
        """A subject's epsilon by the entries, on the grid ``interval`` or, if that is None, on the plan's grid."""
        delta, coarse = self.delta_of(subject)
        return bound(self.summary.charged(subject), delta, coarse if interval is None else interval, self.summary.adjacency)

    def headline(self, subjects: Sequence[str]) -> float:
        """The largest subject's epsilon on the final grid."""
        distinct = {(frozenset(self.summary.charged(s).items()), self.delta_of(s)): s for s in subjects}
        return largest({s: self.epsilon(s) for s in distinct.values()}, lambda s: self.epsilon(s, FINAL_INTERVAL))


def compare_run(run: Path) -> Iterator[str]:
    """Compare ``summary.json`` and ``privacy_statement.json`` of a run with its ledgers; yields one line per ledger.

    Nothing is compared if the directory holds no finished run or a run without privacy.

    Raises:
        FedrayError: a file is damaged.
        LedgerError: a figure does not follow from the entries; the sentence names the file, its figure and the entries' figure.
    """
    statement_path, summary_path = run / "privacy_statement.json", run / "summary.json"
    if not statement_path.exists() or not summary_path.exists():
        return
    with reading(statement_path, summary_path, run / "run.json"):
        yield from _compared(run, statement_path, summary_path)


def unread(run: Path) -> list[str]:
    """The ledgers that a run's statement names and that cannot be read from here, so that their figures are not compared.

    Raises:
        FedrayError: the statement is missing or damaged.
    """
    statement = _load(run / "privacy_statement.json")
    heads = statement["ledger"]["head_sha256"]
    names = [_BOOKS[statement["summary"]["unit"]]] if isinstance(heads, str) else list(heads or {})
    return [name for name in names if _book_of(run, name) is None] if names else ["none"]


def _compared(run: Path, statement_path: Path, summary_path: Path) -> Iterator[str]:
    statement, private = _load(statement_path), _load(summary_path).get("privacy") or {}
    heads = statement["ledger"]["head_sha256"]
    rows = [{"unit": statement["summary"]["unit"], **row} for row in statement["clients"]]
    if isinstance(heads, str):
        unit = rows[0]["unit"] if rows else statement["summary"]["unit"]
        heads = {_BOOKS[unit]: heads}
        _same(summary_path, "the head of the ledger", private.get("ledger_sha256"), next(iter(heads.values())), "the statement")
    known: dict[tuple[str, str], _Known] = {}
    for name, head in (heads or {}).items():
        book = _book_of(run, name)
        mine = [row for row in rows if name in (row["name"], _BOOKS[row["unit"]])]
        if book is None:
            yield f"{run}: the book '{name}' cannot be read from here, so its {len(mine)} figures were not compared"
            continue
        deltas = {figures.get("unit"): figures.get("delta") for figures in (private.get("joint") or {}, private)}
        one = _Known(book, verify(book, head), _run_id(run), float(deltas.get(mine[0]["unit"] if mine else None) or private["delta"]))
        _check_nothing_after(summary_path, one)
        for row in mine:
            what = f"'{row['name']}'"
            _same(statement_path, f"charges to {what}", row["participations_charged"], one.summary.charges[row["name"]], str(book))
            _same(statement_path, f"epsilon of {what}", row["epsilon"], one.epsilon(row["name"]), str(book))
            known[row["unit"], row["name"]] = one
        yield f"{run}: the figures of {len(mine)} clients follow from {book} up to entry {one.summary.entries - 1}"
    if len(known) == len(rows):
        _check_headlines(summary_path, statement_path, private, statement["summary"], known, bool(statement.get("reveals_cohorts")))


def _check_headlines(
    summary_path: Path,
    statement_path: Path,
    private: Mapping[str, Any],
    stated: Mapping[str, Any],
    known: Mapping[tuple[str, str], _Known],
    secret: bool,
) -> None:
    by_unit: dict[str, float] = {}
    for one in {id(k): k for k in known.values()}.values():
        subjects: dict[str, list[str]] = {}
        for (unit, name), owner in known.items():
            if owner is one:
                subjects.setdefault(unit, []).append(name)
        for unit, names in subjects.items():
            by_unit[unit] = max(by_unit.get(unit, 0.0), one.headline(names))
    for path, figures in ((summary_path, private), (statement_path, stated)):
        for said in (figures, figures.get("joint") or {}):
            if said.get("unit") in by_unit:
                told, recomputed = said.get("epsilon"), by_unit[said["unit"]]
                if secret and isinstance(told, float) and told > recomputed:  # published figures assume that everyone always took part
                    continue
                _same(path, f"epsilon (unit {said['unit']})", told, recomputed, "the ledger")


def _check_nothing_after(path: Path, one: _Known) -> None:
    """Refuse a summary that is older than its run's last charge, because its figures are too small."""
    head = one.summary.head
    later = [
        e for e in read(one.book) if head is not None and e.seq > head.seq and e.kind == "reserve" and run_of(e.data["job"]) == one.run
    ]
    if later:
        raise LedgerError(
            f"{path}: was written at entry {head.seq if head else 0} of {one.book}, but the run was charged {len(later)} times after that "
            f"(first in line {later[0].seq + 1}); resume the run to its end, which writes its figures anew."
        )


def _same(path: Path, what: str, said: Any, found: float | str, source: str) -> None:
    figure = math.inf if said == "infinity" else said
    if isinstance(figure, int | float) and isinstance(found, int | float):
        if figure == found or math.isclose(figure, found, rel_tol=TOLERANCE):
            return
    elif figure == found:
        return
    raise LedgerError(f"{path}: {what} is said to be {said}, but {source} says {found}; {_REMEDY}.")


def _book_of(run: Path, name: str) -> Location | None:
    """The ledger of that name in the run's directory, or the lasting ledger that its part file names; None if it cannot be read from here."""
    own = run / "ledger" / f"{quote(name, safe='')}.jsonl"
    part = run / "ledger" / f"{quote(name, safe='')}.part.json"
    if own.exists():
        return own
    if not part.exists():
        return None
    book = location(str(_load(part)["book"]))
    try:
        return next(iter(find_books(book)), None)
    except (LedgerError, StoreError):
        return None


def _run_id(run: Path) -> str | None:
    path = run / "run.json"
    return str(_load(path)["id"]) if path.exists() else None


def _load(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if found is None:
        raise LedgerError(f"{path}: is missing; bring the file back.")
    return found
