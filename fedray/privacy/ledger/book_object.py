"""A book as objects of an S3 store: each block of lines is one object that is written once and never changed.

A block's key is its position in the book. The object is written only if the key does not exist yet
(``If-None-Match: *``), so of two writers with the same view of the book one wins and the other stops: a
writer that was thought dead cannot write any more. The lock is an object beside the book that names its
holder, who renews it. It keeps writers out of each other's way; safety does not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fedray.errors import LedgerError
from fedray.privacy.ledger.object_lock import ObjectLock
from fedray.stores.object_path import ObjectPath
from fedray.stores.s3 import Bucket, Taken

_DIGITS = 16
_READERS = 8


def read_lines(path: ObjectPath) -> Iterator[bytes]:
    """The lines of a book with their ends, read without the writer's lock.

    Raises:
        LedgerError: there is no book, or an object of it is missing, has another length or was not written by a ledger.
        StoreError: the store cannot be read.
    """
    blocks = 0
    for block in _blocks(Bucket(path)):
        blocks += 1
        yield from block.splitlines(keepends=True)
    if not blocks:
        raise LedgerError(f"{path}: holds no book; name the right ledger, or bring its objects back.")


def find_books(path: ObjectPath) -> list[ObjectPath]:
    """The book at an address, or else the books directly below it.

    Raises:
        StoreError: the store cannot be read.
    """
    bucket = Bucket(path)
    if path.name.endswith(".jsonl") and bucket.names():
        return [path]
    return [path / name for name in bucket.folders() if name.endswith(".jsonl")]


class ObjectBook:
    """A book in an object store, locked for writing."""

    def __init__(self, path: ObjectPath, job: str, *, must_exist: bool, wait: float) -> None:
        """Take the lock.

        Args:
            path: the book.
            job: the run that locks it, for those who find it locked.
            must_exist: a missing book is an error.
            wait: seconds to wait for another writer to end.

        Raises:
            LedgerError: missing, locked, or in a store without conditional writes.
            StoreError: the store cannot be reached.
        """
        self._path = path
        self._pid = os.getpid()
        self._bucket = Bucket(path)
        if must_exist and not self._bucket.names():
            raise LedgerError(f"{path}: the book is missing though it has been written before; name its bucket or bring it back.")
        self._lock = ObjectLock(self._bucket.at(path.parent), path.name, job, wait)

    def lines(self) -> Iterator[bytes]:
        """See :func:`read_lines`; a new book has none."""
        for block in _blocks(self._bucket):
            yield from block.splitlines(keepends=True)

    def append(self, block: bytes, at: int) -> None:
        """Write the object of position ``at``. When this returns, the store has acknowledged it, or has been seen to hold it.

        Raises:
            LedgerError: another writer wrote there or took the lock.
            StoreError: it is not known whether the block was written.
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
        """Refuse: objects are whole or absent, so no crash leaves a torn line here.

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
    return f"{at:0{_DIGITS}d}"


def _blocks(bucket: Bucket) -> Iterator[bytes]:
    """The book's objects in order, each checked to begin where the one before it ends."""
    keys = bucket.names()
    at = 0
    with ThreadPoolExecutor(min(_READERS, max(1, len(keys)))) as pool:
        for start in range(0, len(keys), 16 * _READERS):  # limits how much is read ahead
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
