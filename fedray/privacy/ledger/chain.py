"""The file format of a privacy ledger: entries in a hash chain, their verification, and their sums.

A line is one JSON object with sorted keys and no blanks, with ``hash`` as its last key: the SHA-256 of the object without that key.
``prev`` is the hash of the line before, and ``time`` the time of writing (UTC, to the second). :mod:`fedray.privacy.ledger.ledger` writes
entries; :mod:`fedray.privacy.ledger.place` stores the lines.
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
from fedray.privacy.ledger.place import read_lines
from fedray.stores.object_path import Location, location

VERSION = 1
GENESIS = "0" * 64
KINDS = ("open", "reserve", "commit", "note", "withdraw", "readmit")

_HEX = frozenset("0123456789abcdef")
#: Subject of a charge that covers every client of the population.
EVERYONE = "clients"
#: Purpose of charges that are not the only ones of their round.
EVALUATION = "evaluation"

_TAIL = len(',"hash":""}') + 64
_MEND = "charge nothing more to this ledger, and restore it from a copy"
_REQUIRED = {
    "open": ("job",),
    "reserve": ("adjacency", "attempt", "clip", "event", "job", "plan", "round", "subject", "unit"),
    "commit": ("attempt", "job", "round", "subject"),
    "note": ("note",),
    "withdraw": ("job", "reason", "subject"),
    "readmit": ("job", "reason", "subject"),
}


class Head(NamedTuple):
    """Number and hash of the last entry of a ledger. A copy of the hash kept elsewhere reveals a ledger that was rolled back."""

    seq: int
    sha256: str


@dataclass(frozen=True)
class Charge:
    """One subject's charge for one round, as written by a ``reserve`` entry.

    Attributes:
        subject: charged subject.
        round: number of the round in the run.
        attempt: number of the attempt at that round.
        event: event that the round is charged.
        plan: SHA-256 of the plan.
        clip: L2 bound of one unit's contribution.
        unit: protected unit, ``record``, ``person`` or ``client``.
        adjacency: neighbouring relation, ``zero_out`` or ``replace_one``.
        data: commitment to the subject's training records (hex); None if the subject made none.
        purpose: ``training``, ``query`` or ``evaluation``. An entry names only the last one; the two others are the only charges of a round.
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
    purpose: str = "training"

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is charged, which takes place beside the training of a round."""
        return self.purpose == EVALUATION


@dataclass(frozen=True)
class LedgerEntry:
    """One verified line.

    Attributes:
        seq: position, from 0.
        kind: one of :data:`KINDS`.
        data: the JSON object without ``hash``.
        sha256: hash of the entry.
        event: charged event of a ``reserve`` entry; else None.
    """

    seq: int
    kind: str
    data: Mapping[str, Any]
    sha256: str
    event: Event | None = None


@dataclass(frozen=True)
class Withdrawal:
    """A subject's word that nothing of its data may be used from now on; ``str()`` gives the sentence with which it is refused.

    Attributes:
        subject: who has withdrawn.
        time: when (UTC).
        reason: in the words of who wrote it; may be empty.
    """

    subject: str
    time: str
    reason: str = ""

    def __str__(self) -> str:
        said = f" ({self.reason.rstrip('.')})" if self.reason else ""
        return f"{self.subject}: has withdrawn its data on {self.time}{said}; nothing is trained, measured or answered on them."


def run_of(job: str) -> str:
    """The run of a job: the job's name without the number of the start after its last ``/``."""
    return job.rpartition("/")[0] or job


@dataclass
class Summary:
    """The sums over a ledger's entries.

    Attributes:
        path: address of the ledger.
        entries: number of entries.
        head: the last entry; None in an empty ledger.
        spent: each subject's events with the number of charges of each.
        charges: each subject's number of ``reserve`` entries.
        commits: number of ``commit`` entries.
        jobs: jobs that opened the ledger, in order.
        times: each run's times of its first and last entry (UTC); entries of an early version without a time are ignored.
        terms: the plans in the ledger, by their SHA-256.
        units: pairs (unit, adjacency) of the charges; charges of more than one pair have no common epsilon.
        last: job and plan of each subject's last charge.
        owner: the client whose own ledger it is; None for a driver's ledger.
        limits: the folder's limits that the ledger was last held to; None if there were none.
        records: the subjects that were charged under each commitment to records.
        withdrawn: the subjects that have withdrawn and were not readmitted.
        notices: the notices that were entered (see :mod:`fedray.privacy.ledger.withdrawal`).
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
    withdrawn: dict[str, Withdrawal] = field(default_factory=dict)
    notices: set[str] = field(default_factory=set)

    def epsilons(self, delta: float) -> dict[str, float]:
        """Each subject's epsilon at ``delta``.

        Raises:
            LedgerError: the ledger mixes units or adjacencies, or contains an event that no accountant bounds.
        """
        from fedray.privacy.accounting.accountant import bound

        if len(self.units) > 1:
            pairs = "; ".join(f"{unit} under {adjacency}" for unit, adjacency in sorted(self.units))
            raise LedgerError(f"{self.path}: contains charges of different kinds ({pairs}), which have no common epsilon.")
        return {subject: bound(self.charged(subject), delta, adjacency=self.adjacency) for subject in self.spent}

    def refined(self, delta: float, most: int = 1) -> dict[str, float]:
        """:meth:`epsilons`, on the fine grid for the ``most`` largest different charges and for all subjects that could have the largest figure."""
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
        """All charges that count for a subject: its own, and in a ledger of whole clients also those of the whole population.

        For the whole population, each event of single clients counts as often as the client with the largest count of it was charged.
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
        """Neighbouring relation of the charges; ``zero_out`` for an empty ledger."""
        return next((adjacency for _, adjacency in self.units), "zero_out")

    @property
    def deltas(self) -> list[float]:
        """Deltas of the plans, in ascending order."""
        return sorted({float(terms["delta"]) for terms in self.terms.values() if terms.get("delta") is not None})

    def take(self, entry: LedgerEntry) -> None:
        """Add a verified entry to the sums."""
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
        elif entry.kind in ("withdraw", "readmit"):
            self.notices.add(str(data.get("notice", "")))
            self.withdrawn.pop(data["subject"], None)
            if entry.kind == "withdraw":
                since = str(data.get("since", data.get("time", "an unknown day")))
                self.withdrawn[data["subject"]] = Withdrawal(data["subject"], since, str(data["reason"]))


def read(path: str | Location) -> Iterator[LedgerEntry]:
    """The verified entries of a ledger, read without the writer's lock.

    Raises:
        LedgerError: the ledger is missing or broken; the sentence names the line and the difference.
    """
    path = location(path)
    for number, item in enumerate(scan(path, read_lines(path)), start=1):
        if isinstance(item, bytes):
            raise LedgerError(
                f"{path}: line {number} has no end, as after a crash or during a write; the next run on this ledger repairs it."
            )
        yield item[0]


def _dump(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def seal(data: Mapping[str, Any]) -> tuple[bytes, LedgerEntry]:
    """The line of an entry, with its hash and line end, and the entry."""
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
    body |= {"purpose": EVALUATION} if charge.evaluates else {}
    return body if charge.data is None else {**body, "data": charge.data}


def is_commitment(data: Any) -> bool:
    """Whether ``data`` has the form of a commitment to records: 64 lower-case hex digits."""
    return isinstance(data, str) and len(data) == 64 and set(data) <= _HEX


def scan(path: Location, lines: Iterable[bytes]) -> Iterator[tuple[LedgerEntry, int] | bytes]:
    """The verified entries with their sizes in bytes; a last line without an end is yielded as bytes."""
    prev = GENESIS
    for seq, line in enumerate(lines):
        if not line.endswith(b"\n"):
            yield line
            return
        entry = parse(path, line[:-1], seq, prev)
        prev = entry.sha256
        yield entry, len(line)


def parse(path: Location, line: bytes, seq: int, prev: str) -> LedgerEntry:
    """Verify one line, without its end, that should have the number ``seq`` and follow the hash ``prev``.

    Raises:
        LedgerError: the line is broken; the sentence names the line and the difference.
    """
    where = f"{path}: line {seq + 1}"
    body, seal = line[:-_TAIL] + b"}", line[-_TAIL:]
    digest = hashlib.sha256(body).hexdigest()
    if seal != f',"hash":"{digest}"}}'.encode():
        raise LedgerError(
            f"{where}: its content has the hash {digest[:12]}..., which is not the written hash; the line was changed: {_MEND}."
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
        raise LedgerError(f"{where}: is a {kind} entry, but a ledger begins with an open entry; its beginning is missing: {_MEND}.")
    if missing:
        raise LedgerError(f"{where}: the {kind} entry lacks {', '.join(missing)}: {_MEND}.")
    if kind == "reserve" and data["adjacency"] not in get_args(Adjacency):
        raise LedgerError(f"{where}: the adjacency '{data['adjacency']}' is not known to this version: {_MEND}.")
    if kind == "reserve" and "data" in data and not is_commitment(data["data"]):
        raise LedgerError(f"{where}: its data is not a commitment to records (64 hex digits): {_MEND}.")
    try:
        event = from_canonical(_dump(data["event"])) if kind == "reserve" else None
    except LedgerError as error:
        raise LedgerError(f"{where}: {error}") from None
    return LedgerEntry(seq, kind, data, digest, event)
