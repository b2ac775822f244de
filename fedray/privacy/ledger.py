"""The book of record: an append-only, hash-chained file of what was charged to whom.

A ``reserve`` entry is the charge. It is on disk (fsync) before the data is touched, and nothing takes it
back: not a crash, not a resume from an older checkpoint, not a failed round. One writer at a time holds
the file's lock. Whatever does not add up (a broken chain, a missing file, a file that someone else
changed) is a :class:`LedgerError`, and nothing may be trained.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import quote

from fedray.errors import ConfigError, LedgerError
from fedray.privacy.chain import GENESIS, VERSION, Charge, Entry, Head, Summary, parse, read, reserve_entry, scan, seal, verify
from fedray.privacy.events import Event
from fedray.storage import sync_directory

__all__ = ["Charge", "Entry", "Head", "Ledger", "Summary", "ledger_directory", "read", "records_path", "subject_path", "verify"]


def ledger_directory(setting: str, output: str | Path) -> Path:
    """The directory that ``privacy.ledger`` (or a group's ``ledger``) names: ``run`` is ``ledger`` in the run's output.

    Raises:
        ConfigError: a URI that is not ``file:``; object stores have neither locks nor fsync.
    """
    if setting == "run":
        return Path(output) / "ledger"
    if setting.startswith("file://"):
        return Path(setting.removeprefix("file://"))
    if "://" in setting:
        raise ConfigError(
            f"privacy.ledger: '{setting}' has no file lock and no fsync, so a charge could be lost; name a directory on a durable volume."
        )
    return Path(setting)


def records_path(directory: str | Path) -> Path:
    """The driver's book of many subjects in ``directory``."""
    return Path(directory) / "records.jsonl"


def subject_path(directory: str | Path, subject: str) -> Path:
    """One subject's own book in ``directory``; different subjects never share a file."""
    name = quote(subject, safe="")
    if name.startswith(".") or name in ("", "records"):
        name = f"%{ord(name[0]):02X}{name[1:]}" if name else "%"
    if len(name) > 180:
        name = f"{name[:100]}-{hashlib.sha256(subject.encode()).hexdigest()}"
    return Path(directory) / f"{name}.jsonl"


class Ledger:
    """A book opened for writing. Use :meth:`open`; close it, or use it in a ``with`` statement."""

    def __init__(self, path: Path, descriptor: int, job: str, unit: str, adjacency: str) -> None:
        self.path = path
        self.job = job
        self._run = _run_of(job)
        self._descriptor = descriptor
        self._unit, self._adjacency = unit, adjacency
        self._pid = os.getpid()
        self._broken: str | None = None
        self._summary = Summary(path)
        self._mine: Counter[str] = Counter()
        self._last: dict[str, tuple[int, int]] = {}
        self._size = 0

    @classmethod
    def open(
        cls,
        path: str | Path,
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
        """Lock, verify the whole chain, repair a line torn by a crash, and note who opened the book.

        Args:
            path: the file; made, durably, where there is none.
            job: the run that charges; what follows its last ``/`` numbers the run's starts.
            subject: in a silo's own book, its name; an entry of anyone else is refused.
            pinned: hash of an entry that this book is known to have had (an earlier ``head``); it must still be there.
            must_exist: a missing file is an error (a resumed run, a silo that has trained before).
            make_directory: make the directory if it is missing (its parent must be there).
            wait: seconds to wait for another writer to end.
            unit: privacy unit of this book.
            adjacency: adjacency of this book.

        Raises:
            LedgerError: locked, missing, broken, rolled back, or of another unit or subject.
        """
        path = Path(path)
        if make_directory:
            _make_directory(path.parent)
        must_exist = must_exist or pinned is not None
        ledger = cls(path, _open_locked(path, job, must_exist, wait), job, unit, adjacency)
        try:
            ledger._load(subject, pinned)
            if must_exist and ledger._summary.head is None:
                raise LedgerError(f"{path}: is empty though it has been written before; bring the full book back.")
            ledger._append([{"kind": "open", "job": job, "subject": subject, "unit": unit, "adjacency": adjacency}])
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _load(self, subject: str | None, pinned: str | None) -> None:
        pin_seen = pinned is None
        tail = b""
        with self.path.open("rb") as file:
            for item in scan(self.path, file):
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
                "the book was rolled back or replaced, so bring the right one back."
            )
        if tail:
            self._repair(tail, subject)

    def _admit(self, entry: Entry, subject: str | None) -> None:
        self._check_owner(entry, subject)
        self._summary.take(entry)
        if entry.kind == "reserve" and _run_of(entry.data["job"]) == self._run:
            self._mine[entry.data["subject"]] += 1

    def _check_owner(self, entry: Entry, subject: str | None) -> None:
        data = entry.data
        if entry.kind != "reserve":
            return
        if subject is not None and data["subject"] != subject:
            raise LedgerError(f"{self.path}: is the book of '{data['subject']}', not of '{subject}'; give each silo a ledger of its own.")
        if (data["unit"], data["adjacency"]) != (self._unit, self._adjacency):
            raise LedgerError(
                f"{self.path}: charges {data['unit']} under {data['adjacency']} adjacency, not {self._unit} under {self._adjacency}; "
                "use another ledger directory for this run."
            )

    def _repair(self, tail: bytes, subject: str | None) -> None:
        """A crash cut the last write short, so its reserve never returned and nothing was trained on it.

        A tail that is a whole entry but for its line end is kept as the charge it is. Any other is cut off, kept
        in a file beside the book, and noted with its hash.
        """
        digest = hashlib.sha256(tail).hexdigest()
        head = self._summary.head
        try:
            entry = parse(self.path, tail, self._summary.entries, head.sha256 if head else GENESIS)
        except LedgerError:
            aside = self.path.with_name(f"{self.path.name}.torn-{digest[:16]}")
            aside.write_bytes(tail)
            sync_directory(self.path.parent)
            os.ftruncate(self._descriptor, self._size)
            what = f"a torn last line of {len(tail)} bytes was cut off and kept as {aside.name}"
        else:
            os.pwrite(self._descriptor, b"\n", self._size + len(tail))
            self._size += len(tail) + 1
            self._admit(entry, subject)
            what = "the last line had lost its end and was kept"
        os.fsync(self._descriptor)
        self._append([{"kind": "note", "job": self.job, "note": what, "torn_sha256": digest}])

    @property
    def head(self) -> Head:
        """Number and hash of the last entry."""
        if self._summary.head is None:
            raise LedgerError(f"{self.path}: is empty.")
        return self._summary.head

    @property
    def subjects(self) -> list[str]:
        """Everyone who was ever charged in this book."""
        return list(self._summary.spent)

    def spent(self, subject: str) -> Counter[Event]:
        """What was charged to a subject, by all jobs: event to count (a copy)."""
        return Counter(self._summary.spent.get(subject, {}))

    def charges(self, subject: str, this_run: bool = False) -> int:
        """How often a subject was charged: by all jobs, or by all starts of this run."""
        return (self._mine if this_run else self._summary.charges)[subject]

    def reserve(self, charges: Sequence[Charge]) -> Head:
        """Charge, durably: on return every entry has reached the disk. One fsync for all of them.

        Raises:
            LedgerError: a (round, attempt) that this process has reserved for the subject before, or an earlier one;
                another unit or adjacency than the book's; or the disk did not take the entries. Nothing may be trained then.
        """
        last: dict[str, tuple[int, int]] = {}
        for charge in charges:
            key = (charge.round, charge.attempt)
            before = last.get(charge.subject, self._last.get(charge.subject))
            if before is not None and key <= before:
                raise LedgerError(
                    f"{self.path}: round {charge.round}, attempt {charge.attempt} of '{charge.subject}' is asked for after "
                    f"round {before[0]}, attempt {before[1]} was reserved; a retry needs a new attempt number and is charged anew."
                )
            if (charge.unit, charge.adjacency) != (self._unit, self._adjacency):
                raise LedgerError(
                    f"{self.path}: is a book of {self._unit} under {self._adjacency}, not of {charge.unit} under {charge.adjacency}."
                )
            last[charge.subject] = key
        self._append([reserve_entry(charge, self.job) for charge in charges])
        self._last.update(last)
        for charge in charges:
            self._mine[charge.subject] += 1
        return self.head

    def commit(self, round: int, attempt: int, subjects: Iterable[str]) -> Head:
        """Note that results left. Charges nothing and frees nothing.

        Raises:
            LedgerError: a subject for which this process never reserved that round and attempt.
        """
        names = list(subjects)
        for subject in names:
            if self._last.get(subject, (-1, -1)) < (round, attempt):
                raise LedgerError(f"{self.path}: round {round}, attempt {attempt} of '{subject}' is committed but was never reserved.")
        self._append([{"kind": "commit", "job": self.job, "subject": s, "round": round, "attempt": attempt} for s in names])
        return self.head

    def note(self, text: str, **more: Any) -> Head:
        """Write something down for the reader of the book."""
        self._append([{"kind": "note", "job": self.job, "note": text, **more}])
        return self.head

    def describe(self, plan: str, terms: Mapping[str, Any]) -> None:
        """Write a plan into the book once, so that its charges can be read without the run's files."""
        if plan not in self._summary.terms:
            self.note("plan", plan=plan, terms=dict(terms))

    def _append(self, bodies: Sequence[dict[str, Any]]) -> None:
        if not bodies:
            return
        self._check_state()
        head = self._summary.head
        seq, prev = (head.seq + 1, head.sha256) if head else (0, GENESIS)
        lines, entries = [], []
        for body in bodies:
            data = {"v": VERSION, "seq": seq, "prev": prev, **body}
            line, entry = seal(data)
            prev = entry.sha256
            entries.append(entry)
            lines.append(line)
            seq += 1
        block = b"".join(lines)
        try:
            _write(self._descriptor, block, self._size)
            os.fsync(self._descriptor)
        except OSError as error:
            self._broken = f"a write failed ({error})"
            raise LedgerError(f"{self.path}: {self._broken}; free the disk or mend the volume, then start again.") from error
        self._size += len(block)
        for entry in entries:
            self._summary.take(entry)

    def _check_state(self) -> None:
        if self._broken is None:
            self._broken = self._find_fault()
        if self._broken is not None:
            raise LedgerError(f"{self.path}: {self._broken}; nothing more can be charged through it, so nothing may be trained.")

    def _find_fault(self) -> str | None:
        if self._descriptor < 0:
            return "the book was closed"
        if os.getpid() != self._pid:
            return "the book was opened by another process"
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except OSError:
            return "the file is gone while the run holds it"
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            return "the file was replaced while the run holds it"
        if ours.st_size != self._size:
            return f"the file has {ours.st_size} bytes instead of {self._size}: someone else wrote to it"
        return None

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            if os.getpid() == self._pid:
                _holder_path(self.path).unlink(missing_ok=True)
            os.close(descriptor)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an open ledger belongs to one process and cannot be pickled or copied.")


def _run_of(job: str) -> str:
    return job.rpartition("/")[0] or job


def _holder_path(path: Path) -> Path:
    return path.with_name(path.name + ".holder")


def _open_locked(path: Path, job: str, must_exist: bool, wait: float) -> int:
    exists = path.exists()
    if must_exist and not exists:
        raise LedgerError(f"{path}: the book is missing though it has been written before; mount its volume or bring it back.")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(
            f"{path}: cannot be opened ({error.strerror or error}); mount the volume, or make its directory if the ledger is new."
        ) from error
    try:
        _lock(path, descriptor, wait)
        if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            raise LedgerError(f"{path}: was replaced while it was being opened; start again.")
        os.fsync(descriptor)
        sync_directory(path.parent)
        _holder_path(path).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "job": job}))
    except OSError as error:
        os.close(descriptor)
        raise LedgerError(f"{path}: cannot be locked or made durable ({error.strerror or error}); use a volume with file locks.") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
    except OSError as error:
        raise LedgerError(
            f"{directory}: cannot be made ({error.strerror or error}); mount the volume that holds it, or make it once by hand."
        ) from error


def _lock(path: Path, descriptor: int, wait: float) -> None:
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise LedgerError(f"{path}: is in use by {_holder(path)}; wait until that run ends, or stop it.") from None
        time.sleep(0.05)


def _write(descriptor: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def _holder(path: Path) -> str:
    try:
        data = json.loads(_holder_path(path).read_text())
        return f"job '{data['job']}' (process {data['pid']} on {data['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
