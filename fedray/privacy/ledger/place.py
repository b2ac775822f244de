"""What a ledger needs of the place where its book lies, and which place is meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fedray.privacy.ledger import book_file, book_object
from fedray.privacy.ledger.location import Location


class Store(Protocol):
    """A book locked for one writer: bytes that only grow. Positions are counted in bytes from the book's beginning."""

    def lines(self) -> Iterator[bytes]:
        """The book's lines with their ends, in order; the last has none where a crash tore it."""
        ...

    def append(self, block: bytes, at: int) -> None:
        """Add whole lines at position ``at``, durably before this returns.

        Raises:
            LedgerError: the book does not end at ``at`` any more, or it cannot be known that the block is safe. Nothing may be trained.
        """
        ...

    def cut(self, tail: bytes, at: int) -> str:
        """Take a torn last line, which begins at ``at``, out of the book; returns what became of it, in words."""
        ...

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        ...


def open_store(path: Location, job: str, *, must_exist: bool, make_directory: bool, wait: float) -> Store:
    """Lock the book at ``path`` for writing, making it where there is none.

    Args:
        path: the book.
        job: who writes, for those who find it locked.
        must_exist: a missing book is an error.
        make_directory: make its directory if it is missing (whose parent must be there); object stores have none.
        wait: seconds to wait for another writer to end.

    Raises:
        LedgerError: locked, missing, or out of reach.
    """
    if isinstance(path, Path):
        return book_file.FileBook(path, job, must_exist=must_exist, make_directory=make_directory, wait=wait)
    return book_object.ObjectBook(path, job, must_exist=must_exist, wait=wait)


def read_lines(path: Location) -> Iterator[bytes]:
    """The lines of a book, without the writer's lock.

    Raises:
        LedgerError: it cannot be read.
    """
    return book_file.read_lines(path) if isinstance(path, Path) else book_object.read_lines(path)


def find_books(path: Location) -> list[Location]:
    """The books at ``path``: itself, or those below it."""
    if isinstance(path, Path):
        return [path] if path.is_file() else list(book_file.find_books(path))
    return list(book_object.find_books(path))
