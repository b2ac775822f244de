"""The file format of the book of record: entries in a hash chain, and how they are read and added up.

Each line is one JSON object with sorted keys and no blanks, followed by ``hash``: the SHA-256 of the object without it.
``prev`` is the hash of the line before, ``time`` when the line was written (UTC, to the second). Writing is :mod:`fedray.privacy.ledger.ledger`'s; where the lines lie, :mod:`fedray.privacy.ledger.place`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from fedray.errors import LedgerError
from fedray.privacy.accounting.event_json import from_canonical, to_json
from fedray.privacy.accounting.events import Adjacency, Event
from fedray.privacy.ledger.location import Location, location
from fedray.privacy.ledger.place import read_lines

VERSION = 1
GENESIS = "0" * 64
KINDS = ("open", "reserve", "commit", "note")

_HEX = frozenset("0123456789abcdef")
#: The subject of a charge that covers every client of a population.
EVERYONE = "clients"

_TAIL = len(',"hash":""}') + 64
_MEND = "charge nothing more to this book, and bring the right one back from a copy"
_REQUIRED = {
    "open": ("job",),
    "reserve": ("adjacency", "attempt", "clip", "event", "job", "plan", "round", "subject", "unit"),
    "commit": ("attempt", "job", "round", "subject"),
    "note": ("note",),
}


class Head(NamedTuple):
    """The last entry of a book. Keep its hash elsewhere, and a book that was rolled back is found out."""

    seq: int
    sha256: str


@dataclass(frozen=True)
class Charge:
    """One subject's charge for one round, as written by a ``reserve`` entry.

    Attributes:
        subject: who is charged.
        round: of the run.
        attempt: of that round.
        event: what the round costs.
        plan: SHA-256 of the plan that it follows.
        clip: bound of one unit's contribution.
        unit: record or client.
        adjacency: zero_out or replace_one.
        data: commitment to the subject's training records (hex); None: it made none.
    """

    subject: str
    round: int
    attempt: int
    event: Event
    plan: str
    clip: float
    unit: str = "record"
    adjacency: str = "zero_out"
    data: str | None = None


@dataclass(frozen=True)
class LedgerEntry:
    """One verified line.

    Attributes:
        seq: position, from 0.
        kind: open, reserve, commit or note.
        data: the whole JSON object but ``hash``.
        sha256: its hash.
        event: of reserve entries.
    """

    seq: int
    kind: str
    data: Mapping[str, Any]
    sha256: str
    event: Event | None = None


def run_of(job: str) -> str:
    """The run that a job belongs to: the job without the number of the run's start."""
    return job.rpartition("/")[0] or job


@dataclass
class Summary:
    """What a book says, recomputed from its entries alone.

    Attributes:
        path: where the book is.
        entries: number of lines.
        head: the last of them; None in an empty book.
        spent: subject to events with how often each was charged.
        charges: subject to number of reserve entries.
        commits: number of commit entries.
        jobs: jobs that opened the book, in order.
        times: run to when its first and its last entry were written (UTC); entries without a time, as written before there was one, count for none.
        terms: plan's SHA-256 to the plan as written in the book.
        units: (unit, adjacency) of the charges; more than one pair cannot be added up.
        last: subject to job and plan of its last charge.
        owner: the client whose own book this is; None: it is a driver's.
        limits: those of the folder that the book was last held to; None: there were none.
        records: commitment to the subjects that were charged for records under it.
    """

    path: Location
    entries: int = 0
    head: Head | None = None
    spent: dict[str, Counter[Event]] = field(default_factory=dict)
    charges: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    jobs: list[str] = field(default_factory=list)
    times: dict[str, tuple[str, str]] = field(default_factory=dict)
    terms: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    units: set[tuple[str, Adjacency]] = field(default_factory=set)
    last: dict[str, tuple[str, str]] = field(default_factory=dict)
    owner: str | None = None
    limits: Mapping[str, Any] | None = None
    records: dict[bytes, set[str]] = field(default_factory=dict)

    def epsilons(self, delta: float) -> dict[str, float]:
        """Subject to its epsilon at ``delta``.

        Raises:
            LedgerError: the book mixes units or adjacencies, or holds an event that no accountant bounds.
        """
        from fedray.privacy.accounting.accountant import bound

        if len(self.units) > 1:
            raise LedgerError(f"{self.path}: holds charges of different kinds ({_pairs(self.units)}), which have no common epsilon.")
        return {subject: bound(self.charged(subject), delta, adjacency=self.adjacency) for subject in self.spent}

    def refined(self, delta: float, most: int = 1) -> dict[str, float]:
        """:meth:`epsilons` with those of the largest subjects on the fine grid: of ``most`` unlike ones, and of all that could be the largest."""
        from fedray.privacy.accounting.accountant import FINAL_INTERVAL, bound

        found, known, best = self.epsilons(delta), dict[frozenset[tuple[Event, int]], float](), 0.0
        for subject, coarse in sorted(found.items(), key=lambda item: -item[1]):
            spent = self.charged(subject)
            key = frozenset(spent.items())
            if key not in known and len(known) >= most and coarse <= best:
                break
            if key not in known:
                known[key] = min(coarse, bound(spent, delta, FINAL_INTERVAL, self.adjacency)) if coarse < float("inf") else coarse
            found[subject] = known[key]
            best = max(best, known[key])
        return found

    def charged(self, subject: str) -> Counter[Event]:
        """All that counts for a subject: its own charges and, in a book of whole clients, those of everyone at once.

        For everyone at once, the single clients' charges count with the most that any of them has of each event.
        """
        own = Counter(self.spent.get(subject, {}))
        if not any(unit == "client" for unit, _ in self.units):
            return own
        if subject != EVERYONE:
            return own + self.spent.get(EVERYONE, Counter())
        most: Counter[Event] = Counter()
        for name, spent in self.spent.items():
            if name != EVERYONE:
                most |= spent
        return own + most

    @property
    def adjacency(self) -> Adjacency:
        """Of the charges; that of an empty book is zero_out."""
        return next((adjacency for _, adjacency in self.units), "zero_out")

    @property
    def deltas(self) -> list[float]:
        """Of the plans, smallest first."""
        return sorted({float(terms["delta"]) for terms in self.terms.values() if terms.get("delta") is not None})

    def take(self, entry: LedgerEntry) -> None:
        """Add a verified entry."""
        self.entries += 1
        self.head = Head(entry.seq, entry.sha256)
        data = entry.data
        if "time" in data:
            run = run_of(data["job"])
            self.times[run] = (self.times[run][0] if run in self.times else data["time"], data["time"])
        if entry.kind == "reserve" and entry.event is not None:
            self.spent.setdefault(data["subject"], Counter())[entry.event] += 1
            self.charges[data["subject"]] += 1
            self.units.add((data["unit"], data["adjacency"]))
            self.last[data["subject"]] = (data["job"], data["plan"])
            if "data" in data:
                self.records.setdefault(bytes.fromhex(data["data"]), set()).add(data["subject"])
        elif entry.kind == "commit":
            self.commits += 1
        elif entry.kind == "open":
            self.owner = data.get("subject")
            if data["job"] not in self.jobs:
                self.jobs.append(data["job"])
        elif entry.kind == "note" and "terms" in data and "plan" in data:
            self.terms[data["plan"]] = data["terms"]
        elif entry.kind == "note" and "limits" in data:
            self.limits = data["limits"]


def _pairs(units: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{unit} under {adjacency}" for unit, adjacency in sorted(units))


def read(path: str | Location) -> Iterator[LedgerEntry]:
    """The entries of a book, verified one after the other, without the writer's lock.

    Raises:
        LedgerError: missing or broken, with the place, the line and what differs.
    """
    path = location(path)
    for number, item in enumerate(scan(path, read_lines(path)), start=1):
        if isinstance(item, bytes):
            raise LedgerError(
                f"{path}: line {number} is torn (it has no end), as after a crash or during a write; the next run on it repairs it."
            )
        yield item[0]


def _dump(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def seal(data: Mapping[str, Any]) -> tuple[bytes, LedgerEntry]:
    """The line of an entry, with its hash and its end, and the entry itself."""
    body = _dump(data).encode()
    digest = hashlib.sha256(body).hexdigest()
    event = from_canonical(_dump(data["event"])) if "event" in data else None
    return body[:-1] + b',"hash":"' + digest.encode() + b'"}\n', LedgerEntry(data["seq"], data["kind"], data, digest, event)


def reserve_entry(charge: Charge, job: str) -> dict[str, Any]:
    """A charge as the body of an entry."""
    body = {
        "kind": "reserve",
        "job": job,
        "subject": charge.subject,
        "unit": charge.unit,
        "adjacency": charge.adjacency,
        "round": charge.round,
        "attempt": charge.attempt,
        "plan": charge.plan,
        "event": to_json(charge.event),
        "clip": charge.clip,
    }
    return body if charge.data is None else {**body, "data": charge.data}


def is_commitment(data: Any) -> bool:
    """Whether ``data`` has the form of a commitment to records: 64 digits of lower-case hex."""
    return isinstance(data, str) and len(data) == 64 and set(data) <= _HEX


def scan(path: Location, lines: Iterable[bytes]) -> Iterator[tuple[LedgerEntry, int] | bytes]:
    """Verified entries with their sizes in bytes; a last line without an end comes as bytes."""
    prev = GENESIS
    for seq, line in enumerate(lines):
        if not line.endswith(b"\n"):
            yield line
            return
        entry = parse(path, line[:-1], seq, prev)
        prev = entry.sha256
        yield entry, len(line)


def parse(path: Location, line: bytes, seq: int, prev: str) -> LedgerEntry:
    """Verify one line (without its end) that should be number ``seq`` and follow the hash ``prev``.

    Raises:
        LedgerError: with the place, the line and what differs.
    """
    where = f"{path}: line {seq + 1}"
    body, seal = line[:-_TAIL] + b"}", line[-_TAIL:]
    digest = hashlib.sha256(body).hexdigest()
    if seal != f',"hash":"{digest}"}}'.encode():
        raise LedgerError(
            f"{where}: its content has the hash {digest[:12]}..., which is not the one written; the line was changed: {_MEND}."
        )
    try:
        data = json.loads(body)
        kind = data["kind"]
        missing = [key for key in _REQUIRED[kind] if key not in data]
    except (ValueError, KeyError, TypeError):
        raise LedgerError(
            f"{where}: is not an entry of a privacy ledger; this version reads {', '.join(KINDS)} entries: {_MEND}."
        ) from None
    if data.get("v") != VERSION:
        raise LedgerError(f"{where}: is of version {data.get('v')!r}, but this program reads version {VERSION}.")
    if data.get("seq") != seq:
        raise LedgerError(f"{where}: carries the number {data.get('seq')!r} instead of {seq}; lines are missing or in disorder: {_MEND}.")
    if data.get("prev") != prev:
        raise LedgerError(
            f"{where}: names {str(data.get('prev'))[:12]}... as the line before it, but that has the hash {prev[:12]}...: {_MEND}."
        )
    if seq == 0 and kind != "open":
        raise LedgerError(
            f"{where}: is a {kind} entry, but a book begins with one that says who opened it; its beginning is missing: {_MEND}."
        )
    if missing:
        raise LedgerError(f"{where}: the {kind} entry lacks {', '.join(missing)}: {_MEND}.")
    if kind == "reserve" and data["adjacency"] not in get_args(Adjacency):
        raise LedgerError(f"{where}: the adjacency '{data['adjacency']}' is not known to this version: {_MEND}.")
    if kind == "reserve" and "data" in data and not is_commitment(data["data"]):
        raise LedgerError(f"{where}: its data is not a commitment to records (64 digits of hex): {_MEND}.")
    try:
        event = from_canonical(_dump(data["event"])) if kind == "reserve" else None
    except LedgerError as error:
        raise LedgerError(f"{where}: {error}") from None
    return LedgerEntry(seq, kind, data, digest, event)
