"""A book as objects of an S3 store: each block of lines is one object that is written once and never changed.

A block's key is its position in the book. It is made on the condition that the key does not exist yet
(``If-None-Match: *``), so of two writers with the same view of the book one wins and the other stops: a
writer that was thought dead cannot write any more. The lock is an object beside the book that names its
holder, who renews it; it keeps writers from getting in each other's way, and safety does not rest on it.

Source: Amazon S3 user guide, "How to prevent object overwrites with conditional writes"
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fedray.errors import LedgerError
from fedray.privacy.ledger.location import ObjectPath
from fedray.privacy.ledger.object_lock import ObjectLock
from fedray.stores.s3 import Bucket, Taken

_DIGITS = 16
_READERS = 8


def read_lines(path: ObjectPath) -> Iterator[bytes]:
    """The lines of a book with their ends, without the writer's lock.

    Raises:
        LedgerError: there is no book, or an object of it is missing, has another length or was not written by a ledger.
    """
    blocks = 0
    for block in _blocks(Bucket(path)):
        blocks += 1
        yield from block.splitlines(keepends=True)
    if not blocks:
        raise LedgerError(f"{path}: holds no book; name the right ledger, or bring its objects back.")


def find_books(path: ObjectPath) -> list[ObjectPath]:
    """The books at an address: itself, or those directly below it.

    Raises:
        LedgerError: the store is out of reach.
    """
    bucket = Bucket(path)
    if path.name.endswith(".jsonl") and bucket.keys("/"):
        return [path]
    return [path / name for name in bucket.folders("/") if name.endswith(".jsonl")]


class ObjectBook:
    """A book in an object store, locked for writing."""

    def __init__(self, path: ObjectPath, job: str, *, must_exist: bool, wait: float) -> None:
        """Take the lock.

        Args:
            path: the book.
            job: who locks it.
            must_exist: a missing book is an error.
            wait: seconds to wait for another writer to end.

        Raises:
            LedgerError: missing, locked, out of reach, or in a store without conditional writes.
        """
        self._path = path
        self._pid = os.getpid()
        self._bucket = Bucket(path)
        if must_exist and not self._bucket.keys("/"):
            raise LedgerError(f"{path}: the book is missing though it has been written before; name its bucket or bring it back.")
        self._lock = ObjectLock(self._bucket, job, wait)

    def lines(self) -> Iterator[bytes]:
        """See :func:`read_lines`; a new book has none."""
        for block in _blocks(self._bucket):
            yield from block.splitlines(keepends=True)

    def append(self, block: bytes, at: int) -> None:
        """Make the object of position ``at``; the store has acknowledged it, or has been seen to hold it, when this returns.

        Raises:
            LedgerError: someone else wrote there or took the lock, or the store could not be reached.
        """
        if self._lock.lost:
            raise LedgerError(
                f"{self._path}: {self._lock.lost} took this book over; nothing more can be charged through it, so nothing may be trained."
            )
        try:
            self._bucket.create(_key(at), block)
        except Taken:
            raise LedgerError(
                f"{self._path}: someone else wrote at position {at}; nothing more can be charged through it, so nothing may be trained."
            ) from None

    def cut(self, tail: bytes, at: int) -> str:
        """Objects are whole or absent, so no crash tears a line here.

        Raises:
            LedgerError: always.
        """
        raise LedgerError(
            f"{self._path}: the last line, at position {at}, has no end; its object was changed, so bring the right one back."
        )

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        if os.getpid() == self._pid:
            self._lock.release()


def _key(at: int) -> str:
    return f"/{at:0{_DIGITS}d}"


def _blocks(bucket: Bucket) -> Iterator[bytes]:
    """The book's objects in order, each checked to begin where the one before it ends."""
    keys = bucket.keys("/")
    at = 0
    with ThreadPoolExecutor(min(_READERS, max(1, len(keys)))) as pool:
        for start in range(0, len(keys), 16 * _READERS):  # bounds what is read ahead of the reader
            some = keys[start : start + 16 * _READERS]
            for key, block in zip(some, pool.map(bucket.get, some), strict=True):
                if key != _key(at):
                    raise LedgerError(
                        f"{bucket.path}: has an object '{key}' where '{_key(at)}' should follow; objects are missing, added or changed in length."
                    )
                if block is None or not block.endswith(b"\n"):
                    raise LedgerError(
                        f"{bucket.path}: the object '{key}' does not hold whole lines; it was changed, so bring the right one back."
                    )
                at += len(block)
                yield block
