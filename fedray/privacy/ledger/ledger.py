"""The privacy ledger: an append-only, hash-chained list of the charges of all subjects.

A ``reserve`` entry is a charge. It is durable (on disk, or acknowledged by the object store) before the data is read, and is never
taken back: neither by a crash, nor by a resume from an older checkpoint, nor by a failed round. One writer at a time holds the ledger's
lock. A broken chain, a missing ledger or a ledger that another program changed is a :class:`LedgerError`, and nothing may be trained.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NoReturn

from fedray.errors import LedgerError
from fedray.privacy.accounting.events import Event
from fedray.privacy.ledger.chain import (
    EVALUATION,
    GENESIS,
    VERSION,
    Charge,
    Head,
    LedgerEntry,
    Summary,
    Withdrawal,
    is_commitment,
    parse,
    reserve_entry,
    run_of,
    scan,
    seal,
)
from fedray.privacy.ledger.notices import Notice, find_notices, remove_notice
from fedray.privacy.ledger.place import Store, open_store
from fedray.stores.object_path import Location, location

#: Number of a subject's latest reservations that a commit may name.
_KEPT = 16


class Ledger:
    """A ledger opened for writing by :meth:`open`. Close it, or use it in a ``with`` statement."""

    def __init__(self, path: Location, store: Store, job: str, unit: str, adjacency: str) -> None:
        self.path = path
        self.job = job
        self._run = run_of(job)
        self._store: Store | None = store
        self._unit, self._adjacency = unit, adjacency
        self._pid = os.getpid()
        self._broken: str | None = None
        self._summary = Summary(path)
        self._mine: Counter[str] = Counter()
        self._rounds: set[int] = set()
        self._last: dict[tuple[str, bool], tuple[int, int]] = {}  # of the subject's trainings, and of its evaluations
        self._reserved: dict[tuple[str, bool], tuple[tuple[int, int], ...]] = {}
        self._size = 0

    @classmethod
    def open(
        cls,
        path: str | Location,
        job: str,
        *,
        subject: str | None = None,
        pinned: str | None = None,
        must_exist: bool = False,
        make_directory: bool = False,
        wait: float = 0.0,
        unit: str = "record",
        adjacency: str = "zero_out",
    ) -> Ledger:
        """Lock the ledger, verify its chain, repair a line that a crash cut short, and write an ``open`` entry.

        Args:
            path: address of the ledger, which is created if it is missing.
            job: name of the run, followed by ``/n`` for its n-th start.
            subject: name of the silo whose own ledger it is; charges of other subjects are refused.
            pinned: hash of an entry that the ledger must contain (an earlier ``head``).
            must_exist: whether a missing ledger is an error, as for a resumed run or a silo that has trained before.
            make_directory: create the directory if it is missing; its parent must exist.
            wait: seconds to wait for another writer to end.
            unit: protected unit of this ledger.
            adjacency: neighbouring relation of this ledger.

        Raises:
            LedgerError: the ledger is locked, missing, broken, rolled back, or belongs to another unit or subject.
        """
        path = location(path)
        must_exist = must_exist or pinned is not None
        store = open_store(path, job, must_exist=must_exist, make_directory=make_directory, wait=wait)
        ledger = cls(path, store, job, unit, adjacency)
        try:
            ledger._load(subject, pinned)
            # The random writer makes the blocks of two writers differ even if everything else that they write is equal.
            opening = {"subject": subject, "unit": unit, "adjacency": adjacency, "writer": secrets.token_hex(8)}
            ledger._append([{"kind": "open", "job": job, **opening}])
            ledger.take_notices()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _load(self, subject: str | None, pinned: str | None) -> None:
        store = self._usable()
        pin_seen = pinned is None
        tail = b""
        for item in scan(self.path, store.lines()):
            if isinstance(item, bytes):
                tail = item
                break
            entry, size = item
            self._size += size
            self._admit(entry, subject)
            pin_seen = pin_seen or entry.sha256 == pinned
        if not pin_seen:
            raise LedgerError(
                f"{self.path}: lacks the entry {str(pinned)[:12]}..., which is on record; "
                "the ledger was rolled back or replaced, so restore the right one."
            )
        if tail:
            self._repair(tail, subject)

    def _admit(self, entry: LedgerEntry, subject: str | None) -> None:
        self._check_owner(entry, subject)
        self._summary.take(entry)
        trains = entry.kind == "reserve" and entry.data.get("purpose") != EVALUATION
        if trains and run_of(entry.data["job"]) == self._run:
            self._mine[entry.data["subject"]] += 1
            self._rounds.add(entry.data["round"])

    def _check_owner(self, entry: LedgerEntry, subject: str | None) -> None:
        data = entry.data
        if entry.kind != "reserve":
            return
        if subject is not None and data["subject"] != subject:
            raise LedgerError(
                f"{self.path}: is the book of '{data['subject']}', not of '{subject}'; name the directory that holds the book of '{subject}'."
            )
        if (data["unit"], data["adjacency"]) != (self._unit, self._adjacency):
            raise LedgerError(
                f"{self.path}: charges {data['unit']} under {data['adjacency']} adjacency, not {self._unit} under {self._adjacency}, and charges "
                "of both kinds have no common epsilon; set privacy.regime, privacy.person and cohort to those of the runs before."
            )

    def _repair(self, tail: bytes, subject: str | None) -> None:
        """Repair a last line that a crash cut short, so that its ``reserve`` never returned and nothing was trained on it.

        If only the line's end is missing, the entry is kept as a charge. Any other tail is cut off, kept in a file beside the ledger, and
        noted with its hash.
        """
        store = self._usable()
        digest = hashlib.sha256(tail).hexdigest()
        head = self._summary.head
        if head is None:
            raise LedgerError(f"{self.path}: consists of {len(tail)} bytes that are no entry; restore the right ledger.")
        try:
            entry = parse(self.path, tail, self._summary.entries, head.sha256)
        except LedgerError:
            what = f"a torn last line of {len(tail)} bytes was cut off and {store.cut(tail, self._size)}"
        else:
            store.append(b"\n", self._size + len(tail))
            self._size += len(tail) + 1
            self._admit(entry, subject)
            what = "the last line had lost its end and was kept"
        self._append([{"kind": "note", "job": self.job, "note": what, "torn_sha256": digest}])

    @property
    def head(self) -> Head:
        """Number and hash of the last entry."""
        if self._summary.head is None:
            raise LedgerError(f"{self.path}: is empty.")
        return self._summary.head

    @property
    def subjects(self) -> list[str]:
        """All subjects that were ever charged in this ledger."""
        return list(self._summary.spent)

    def spent(self, subject: str) -> Counter[Event]:
        """A copy of all runs' charges that count for a subject, as the count of each event; see :meth:`Summary.charged`."""
        return self._summary.charged(subject)

    def charges(self, subject: str, this_run: bool = False) -> int:
        """Number of a subject's charges by all runs, or of those by all starts of this run that are not for evaluations."""
        return (self._mine if this_run else self._summary.charges)[subject]

    @property
    def earlier_rounds(self) -> frozenset[int]:
        """The rounds, from 0, whose training earlier starts of this run charged."""
        return frozenset(self._rounds)

    def withdrawn(self) -> Mapping[str, Withdrawal]:
        """The subjects that have withdrawn as of now, after entering the notices that came while this process has held the lock."""
        self.take_notices()
        return self._summary.withdrawn

    def take_notices(self, more: Iterable[Notice] = ()) -> None:
        """Enter the notices of withdrawals that were left for the ledger, and ``more`` from elsewhere, each once."""
        left = find_notices(self.path)
        new = [notice for notice in (*left, *more) if notice.id not in self._summary.notices]
        self._append([notice.entry(self.job) for notice in new])
        for notice in left:  # a crash before this enters nothing twice
            remove_notice(self.path, notice)

    def reserve(self, charges: Sequence[Charge]) -> list[Head]:
        """Write all charges in one block, which is durable on return.

        Returns:
            the entries in the order of ``charges``. A receipt must name the hash of its entry as the reservation.

        Raises:
            LedgerError: a subject has withdrawn; its (round, attempt) is not above the last one that this process reserved for it, for
                training or for evaluation; the unit or adjacency is
                not the ledger's; a commitment is malformed; or the entries could not be made durable. Nothing may be trained then.
        """
        last: dict[tuple[str, bool], tuple[int, int]] = {}
        withdrawn = self.withdrawn()
        for charge in charges:
            if charge.subject in withdrawn:
                raise LedgerError(f"{self.path}: {withdrawn[charge.subject]}")
            key, whose = (charge.round, charge.attempt), (charge.subject, charge.evaluates)
            before = last.get(whose, self._last.get(whose))
            if before is not None and key <= before:
                raise LedgerError(
                    f"{self.path}: round {charge.round}, attempt {charge.attempt} of '{charge.subject}' is asked for after "
                    f"round {before[0]}, attempt {before[1]} was reserved; a retry needs a new attempt number and is charged anew."
                )
            if (charge.unit, charge.adjacency) != (self._unit, self._adjacency):
                raise LedgerError(
                    f"{self.path}: is a book of {self._unit} under {self._adjacency}, not of {charge.unit} under {charge.adjacency}."
                )
            if charge.data is not None and not is_commitment(charge.data):
                raise LedgerError(f"{self.path}: '{charge.data}' is not a commitment to the records of '{charge.subject}' (64 hex digits).")
            last[whose] = key
        heads = self._append([reserve_entry(charge, self.job) for charge in charges])
        self._last.update(last)
        for charge in charges:
            whose = (charge.subject, charge.evaluates)
            self._mine[charge.subject] += not charge.evaluates
            self._reserved[whose] = (*self._reserved.get(whose, ())[1 - _KEPT :], (charge.round, charge.attempt))
        return heads

    def commit(
        self, round: int, attempt: int, subjects: Iterable[str] | Mapping[str, Mapping[str, Any] | None], evaluates: bool = False
    ) -> Head:
        """Record that results left the subjects. Nothing is charged or taken back.

        Args:
            round: number of the results' round.
            attempt: number of the attempt at that round.
            subjects: the subjects; as a mapping, each with its receipt (JSON data, see :mod:`fedray.privacy.ledger.verification`) or None.
            evaluates: whether they are results of an evaluation.

        Raises:
            LedgerError: the round and attempt are not among the subject's latest reservations of this process.
        """
        receipts = subjects if isinstance(subjects, Mapping) else dict.fromkeys(subjects)
        key = (round, attempt)
        for subject in receipts:
            if key not in self._reserved.get((subject, evaluates), ()):
                raise LedgerError(f"{self.path}: round {round}, attempt {attempt} of '{subject}' is committed but was never reserved.")
        bodies: list[dict[str, Any]] = []
        for subject, receipt in receipts.items():
            body: dict[str, Any] = {"kind": "commit", "job": self.job, "subject": subject, "round": round, "attempt": attempt}
            body |= {"purpose": EVALUATION} if evaluates else {}
            bodies.append(body if receipt is None else {**body, "receipt": dict(receipt)})
        self._append(bodies)
        return self.head

    def note(self, text: str, **more: Any) -> Head:
        """Write a note for the readers of the ledger."""
        self._append([{"kind": "note", "job": self.job, "note": text, **more}])
        return self.head

    def describe(self, plan: str, terms: Mapping[str, Any]) -> None:
        """Write a plan into the ledger once, so that its charges can be read without the run's files."""
        if plan not in self._summary.terms:
            self.note("plan", plan=plan, terms=dict(terms))

    def hold_to(self, limits: Mapping[str, Any] | None) -> None:
        """Note the limits of the ledger's folder if they have changed; None if there are none.

        Raises:
            LedgerError: the ledger was held to limits, and there are none now.
        """
        known = self._summary.limits
        if limits is None and known is not None:
            raise LedgerError(
                f"{self.path}: was held to limits, but the file limits.yaml beside it is missing; nothing may be charged until it is restored."
            )
        if limits is not None and limits != known:
            self.note("limits", limits=dict(limits))

    def check_names(self, data: Mapping[str, str]) -> None:
        """Refuse a subject whose records were charged under a name that is not in use now, because its charges would begin at zero.

        Args:
            data: each subject's commitment to its records.

        Raises:
            LedgerError: there is such a subject; the sentence names both names.
        """
        for subject, commitment in data.items():
            known = self._summary.records.get(bytes.fromhex(commitment), {subject})
            if subject not in known and not any(data.get(name) == commitment for name in known):  # else two subjects hold equal records
                raise LedgerError(
                    f"{self.path}: the records of client '{subject}' were charged as those of '{min(known)}', and these charges would not count "
                    f"under another name; give the client the name '{min(known)}' again, so that its charges go on."
                )

    def _append(self, bodies: Sequence[dict[str, Any]]) -> list[Head]:
        if not bodies:
            return []
        store = self._usable()
        head = self._summary.head
        seq, prev = (head.seq + 1, head.sha256) if head else (0, GENESIS)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines, entries = [], []
        for body in bodies:
            data = {"v": VERSION, "seq": seq, "prev": prev, "time": now, **body}
            line, entry = seal(data)
            prev = entry.sha256
            entries.append(entry)
            lines.append(line)
            seq += 1
        block = b"".join(lines)
        try:
            store.append(block, self._size)
        except BaseException as error:
            self._broken = f"an earlier write failed ({error})"
            raise
        self._size += len(block)
        for entry in entries:
            self._summary.take(entry)
        return [Head(entry.seq, entry.sha256) for entry in entries]

    def _usable(self) -> Store:
        broken = self._broken
        if self._store is None:
            broken = "the book was closed"
        elif os.getpid() != self._pid:
            broken = "the book was opened by another process"
        if broken is not None or self._store is None:
            raise LedgerError(f"{self.path}: {broken}; nothing more can be charged through it, so nothing may be trained.")
        return self._store

    def close(self) -> None:
        """Release the lock. A second call does nothing."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an open ledger belongs to one process and cannot be pickled or copied.")
