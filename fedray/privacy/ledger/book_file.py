"""A ledger as a file: one writer at a time holds its lock, and every block is on disk (fsync) before the writer goes on.

The file gets its name only after its first block is written. A crash therefore never leaves an empty file of that name: something else
emptied it, and it is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from fedray.errors import LedgerError
from fedray.storage import sync_directory


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a ledger with their ends, read without the writer's lock; the last line may have no end.

    Raises:
        LedgerError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror or error}); mount the volume or name the right ledger.") from error


def find_books(path: Path) -> list[Path]:
    """The ledgers in a directory and its subdirectories, sorted."""
    return sorted(path.rglob("*.jsonl")) if path.is_dir() else []


class FileBook:
    """A ledger's file, locked for writing."""

    def __init__(self, path: Path, job: str, *, must_exist: bool, make_directory: bool, wait: float) -> None:
        """Lock the file, or a new file if there is none.

        Args:
            path: path of the file.
            job: name of the job that locks it.
            must_exist: whether a missing file is an error.
            make_directory: create the directory if it is missing; its parent must exist.
            wait: seconds to wait for another writer to end.

        Raises:
            LedgerError: the file is missing or locked, or the volume has no file locks.
        """
        if make_directory:
            make_ledger_directory(path.parent)
        self._path = path
        self._pid = os.getpid()
        self._unborn: Path | None = None
        if must_exist or path.exists():
            self._descriptor = _open_locked(path, job, wait)
        else:
            self._unborn = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
            self._descriptor = _open_locked(path, job, 0.0, self._unborn)

    def lines(self) -> Iterator[bytes]:
        """See :func:`read_lines`; a new ledger has no lines."""
        return iter(()) if self._unborn is not None else read_lines(self._path)

    def append(self, block: bytes, at: int) -> None:
        """Append ``block`` to a file of ``at`` bytes; it is on disk when this returns.

        Raises:
            LedgerError: the file was replaced, has another length, or cannot be written.
        """
        fault = None if self._unborn is not None else self._find_fault(at)
        if fault is not None:
            raise LedgerError(f"{self._path}: {fault}; nothing more can be written to it, so nothing may be trained.")
        try:
            _write(self._descriptor, block, at)
            os.fsync(self._descriptor)
            if self._unborn is not None:
                self._name(self._unborn)
        except OSError as error:
            raise LedgerError(f"{self._path}: a write failed ({error}); free the disk or mend the volume, then start again.") from error

    def _name(self, unborn: Path) -> None:
        """Give a new ledger its name, unless another writer has taken it meanwhile."""
        try:
            os.link(unborn, self._path)
        except FileExistsError:
            raise LedgerError(f"{self._path}: another run began this book a moment ago; start again, and wait for that run.") from None
        _holder_path(unborn).replace(_holder_path(self._path))
        self._discard(unborn)
        sync_directory(self._path.parent)

    def _discard(self, unborn: Path) -> None:
        self._unborn = None
        unborn.unlink(missing_ok=True)
        _holder_path(unborn).unlink(missing_ok=True)

    def cut(self, tail: bytes, at: int) -> str:
        """Cut off ``tail``, which follows the first ``at`` bytes, and keep it in a file beside the ledger; returns the file, in words.

        Raises:
            LedgerError: the disk is full or broken; the ledger is unchanged.
        """
        aside = self._path.with_name(f"{self._path.name}.torn-{hashlib.sha256(tail).hexdigest()[:16]}")
        try:
            aside.write_bytes(tail)
            sync_directory(self._path.parent)
            os.ftruncate(self._descriptor, at)
            os.fsync(self._descriptor)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise LedgerError(
                f"{self._path}: its last line is torn, and cannot be set aside in {aside.name} ({error.strerror or error}); "
                "free the disk or mend the volume, then start again."
            ) from error
        return f"kept as {aside.name}"

    def _find_fault(self, size: int) -> str | None:
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
        except OSError:
            return "the file is gone while the run holds it"
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            return "the file was replaced while the run holds it"
        if ours.st_size != size:
            return f"the file has {ours.st_size} bytes instead of {size}: someone else wrote to it"
        return None

    def close(self) -> None:
        """Release the lock. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            if os.getpid() == self._pid:
                _holder_path(self._path).unlink(missing_ok=True)
                if self._unborn is not None:
                    self._discard(self._unborn)
            os.close(descriptor)


def _holder_path(path: Path) -> Path:
    return path.with_name(path.name + ".holder")


def _open_locked(path: Path, job: str, wait: float, unborn: Path | None = None) -> int:
    """The locked file of the ledger at ``path``, or of ``unborn``, the new file that will get this name."""
    file = path if unborn is None else unborn
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | (0 if unborn is None else os.O_CREAT | os.O_EXCL), 0o600)
    except FileNotFoundError:
        missing = "the book is missing though it has been written before" if unborn is None else "its directory is missing"
        raise LedgerError(f"{path}: {missing}; mount the volume that holds it, or bring it back.") from None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be opened ({error.strerror or error}); mount the volume that holds it.") from error
    try:
        _lock(path, descriptor, wait)
        if os.stat(file).st_ino != os.fstat(descriptor).st_ino:
            raise LedgerError(f"{path}: was replaced while it was being opened; start again.")
        if unborn is None and not os.fstat(descriptor).st_size:
            raise LedgerError(f"{path}: is empty, but a book begins with an entry; something emptied it, so bring the full book back.")
        os.fsync(descriptor)
        sync_directory(path.parent)
        _holder_path(file).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "job": job}))
    except OSError as error:
        os.close(descriptor)
        raise LedgerError(
            f"{path}: cannot be locked or made durable ({error.strerror or error}); free the disk, or use a volume with file locks."
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_ledger_directory(directory: Path) -> None:
    """Make the directory of ledgers if it is missing, durably.

    Raises:
        LedgerError: it cannot be made, as where the directory above it is missing.
    """
    try:
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
    except OSError as error:
        raise LedgerError(
            f"{directory}: cannot be made ({error.strerror or error}); mount the volume that holds it; the directory above it must be there."
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
