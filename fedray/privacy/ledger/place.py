"""The interface of a book's storage, and the choice between files and objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fedray.privacy.ledger import book_file, book_object
from fedray.stores.object_path import Location


class Store(Protocol):
    """A book locked for one writer, which only grows. Positions are byte offsets from the book's beginning."""

    def lines(self) -> Iterator[bytes]:
        """The book's lines with their line ends, in order; the last line has none if a crash tore it."""
        ...

    def append(self, block: bytes, at: int) -> None:
        """Add whole lines at position ``at``, durably before this returns.

        Raises:
            LedgerError: the book does not end at ``at`` any more, or its disk failed. Nothing may be trained.
            StoreError: it is not known whether the block was written. Nothing may be trained.
        """
        ...

    def cut(self, tail: bytes, at: int) -> str:
        """Remove a torn last line, which begins at ``at``; returns where it was kept, in words."""
        ...

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        ...


def open_store(path: Location, job: str, *, must_exist: bool, make_directory: bool, wait: float) -> Store:
    """Lock the book at ``path`` for writing; it is made if there is none.

    Args:
        path: the book.
        job: the run that writes, for those who find it locked.
        must_exist: a missing book is an error.
        make_directory: make its directory if it is missing (the parent must exist); object stores have no directories.
        wait: seconds to wait for another writer to end.

    Raises:
        LedgerError: locked or missing.
        StoreError: the store cannot be reached.
    """
    if isinstance(path, Path):
        return book_file.FileBook(path, job, must_exist=must_exist, make_directory=make_directory, wait=wait)
    return book_object.ObjectBook(path, job, must_exist=must_exist, wait=wait)


def read_lines(path: Location) -> Iterator[bytes]:
    """The lines of a book, without the writer's lock.

    Raises:
        LedgerError: there is none, or it is damaged.
        StoreError: the store cannot be reached.
    """
    return book_file.read_lines(path) if isinstance(path, Path) else book_object.read_lines(path)


def find_books(path: Location) -> list[Location]:
    """The book at ``path``, or else the books directly below it."""
    if isinstance(path, Path):
        return [path] if path.is_file() else list(book_file.find_books(path))
    return list(book_object.find_books(path))
