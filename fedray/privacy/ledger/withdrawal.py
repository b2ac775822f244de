"""Withdrawals: a subject says that nothing of its data may be used any more, and its ledger refuses every charge from then on.

A withdrawal is a ``withdraw`` entry of the ledger; a ``readmit`` entry ends it. A run holds the lock of the ledgers that it charges as long
as it lasts, and a withdrawal must not wait for that, so a notice of it is left first (:mod:`fedray.privacy.ledger.notices`). Who holds no
lock reads the notices together with the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedray.errors import LedgerError
from fedray.privacy.ledger.book_file import make_ledger_directory
from fedray.privacy.ledger.chain import Summary, Withdrawal, scan
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path, records_path, subject_path
from fedray.privacy.ledger.notices import NOTICES, Notice, find_notices, leave_notice, notice_folder, notice_names
from fedray.privacy.ledger.place import find_books, read_lines
from fedray.stores.object_path import Location
from fedray.stores.s3 import Bucket


def withdrawn_of(book: Location) -> dict[str, Withdrawal]:
    """Who has withdrawn by a ledger and the notices beside it, read without the writer's lock; nobody where there is no ledger.

    Raises:
        LedgerError: the ledger or a notice is broken, so nothing may be trained.
        StoreError: the object store cannot be reached.
    """
    notices = find_notices(book)  # first: one that is being entered is then seen here or there
    summary = Summary(book)
    if _exists(book):
        for item in scan(book, read_lines(book)):
            if not isinstance(item, bytes):
                summary.take(item[0])
    found = dict(summary.withdrawn)
    for notice in notices:
        if notice.id in summary.notices:
            continue
        found.pop(notice.subject, None)
        if notice.kind == "withdraw":
            found[notice.subject] = Withdrawal(notice.subject, notice.since, notice.reason)
    return found


class LedgerWatch:
    """Says whether subjects have withdrawn, by ledgers that other processes may write to.

    Args:
        books: gives the ledgers, which need not be there yet.
    """

    def __init__(self, books: Callable[[], Iterable[Location]]) -> None:
        self._books = books
        self._known: dict[Location, tuple[object, dict[str, Withdrawal]]] = {}

    def now(self) -> Mapping[str, Withdrawal]:
        """Who has withdrawn as of now; raises as :func:`withdrawn_of`. A ledger that has not changed is not read again."""
        found: dict[str, Withdrawal] = {}
        for book in self._books():
            mark, known = self._known.get(book, (None, {}))
            seen = _mark(book)
            if seen != mark:
                known = withdrawn_of(book)
                self._known[book] = seen, known
            found |= known
        return found


def own_watch(directory: Location, subject: str) -> LedgerWatch:
    """What watches a subject's own ledger."""
    book = subject_path(directory, subject)
    return LedgerWatch(lambda: [book])


def _mark(book: Location) -> object:
    """What changes whenever a ledger or its notices do."""
    if not isinstance(book, Path):
        bucket = Bucket(book)
        return bucket.names()[-1:], bucket.at(book.parent / f"{book.name}{NOTICES}").names()
    try:
        about = book.stat()
        size: tuple[int, ...] = about.st_ino, about.st_size, about.st_mtime_ns
    except OSError:
        size = ()
    return size, notice_names(notice_folder(book), None)


def books_in(directory: Location) -> list[Location]:
    """The ledgers that lie in a directory itself, and those for which only a notice is there."""
    if not isinstance(directory, Path):
        names = {name.removesuffix(NOTICES) for name in Bucket(directory).folders()}
    else:
        names = {path.name.removesuffix(NOTICES) for path in directory.glob("*.jsonl*")}
    return [directory / name for name in sorted(names) if name.endswith(".jsonl")]


def beside_withdrawn(directory: Location, known: Collection[str]) -> list[Notice]:
    """Withdrawals that stand in clients' own ledgers beside a driver's, as notices for that, which have the same id whenever they are read.

    Args:
        directory: of the ledgers.
        known: subjects that need not be looked for.
    """
    drivers = (records_path(directory), clients_path(directory))
    found = [w for book in books_in(directory) if book not in drivers for w in withdrawn_of(book).values() if w.subject not in known]
    return [Notice(f"{w.subject}@{w.time}", "withdraw", w.subject, w.reason, w.time) for w in found]


@dataclass(frozen=True)
class Entered:
    """What became of a withdrawal in one ledger.

    Attributes:
        book: the ledger.
        entry: number of its entry; None if the run that holds the ledger's lock will write it.
        why: why it is not written yet.
        new: the ledger was made for it.
    """

    book: Location
    entry: int | None
    why: str = ""
    new: bool = False


def enter(kind: str, directory: Location, subject: str, reason: str) -> list[Entered]:
    """Withdraw a subject, or readmit it, in its own ledger in a directory and in the driver's ledgers that lie there.

    It counts when this returns, also for runs that are under way. A ledger that does not exist is made, so that a client which trains
    without privacy, or has not trained yet, can withdraw as well.

    Args:
        kind: ``withdraw`` or ``readmit``.
        directory: of the ledgers.
        subject: the client.
        reason: for those who read the ledger.

    Raises:
        LedgerError: a ledger is broken, the directory above ``directory`` is missing, or there is nothing to readmit.
        StoreError: the object store cannot be reached.
    """
    own = subject_path(directory, subject)
    there = [book for book in (records_path(directory), clients_path(directory)) if _exists(book)]
    books = [book for book in (own, *there) if (subject in withdrawn_of(book)) == (kind == "readmit")]
    if not books:
        state = "has withdrawn already" if kind == "withdraw" else "has not withdrawn, so there is nothing to take back"
        raise LedgerError(f"{directory}: client '{subject}' {state}.")
    notice = Notice.now(kind, subject, reason)
    if isinstance(directory, Path):
        make_ledger_directory(directory)
    for book in books:  # all count before the first is entered
        leave_notice(book, notice)
    return [_entered(book, notice, subject if book == own else None) for book in books]


def _exists(book: Location) -> bool:
    return book.exists() if isinstance(book, Path) else bool(find_books(book))


def _entered(book: Location, notice: Notice, owner: str | None) -> Entered:
    unit, adjacency, new = "record", "zero_out", not _exists(book)
    if not new:
        for item in scan(book, read_lines(book)):
            if not isinstance(item, bytes) and item[0].kind == "open":
                unit, adjacency = item[0].data["unit"], item[0].data["adjacency"]
    try:
        with Ledger.open(book, notice.kind, subject=owner, unit=unit, adjacency=adjacency) as ledger:
            return Entered(book, ledger.head.seq, new=new)
    except LedgerError as error:
        if notice.id not in {left.id for left in find_notices(book)}:
            raise
        return Entered(book, None, str(error))
