"""Clients' commitments to their records, and whether another book of the same folder knows those records.

A client that took a new name, or another placement, must not begin anew. A book's own subjects are compared where it is opened
(:meth:`fedray.privacy.ledger.ledger.Ledger.check_names`); other books have other salts, under which the records are committed to once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fedray.clients.terms import Site, Terms
from fedray.data.commitment import commit_records, find_salt, load_salt
from fedray.data.records import Federation, Records, positions
from fedray.errors import LedgerError
from fedray.privacy.account import Account
from fedray.privacy.ledger.chain import Summary, scan
from fedray.privacy.ledger.location import ledger_directory, records_path, subject_path
from fedray.privacy.ledger.place import find_books, read_lines
from fedray.privacy.rules import claim
from fedray.stores.object_path import Location


def commit_silo(directory: Location, name: str, records: Records) -> str:
    """A silo's commitment to its records, for the entries of its own book in ``directory``.

    Raises:
        LedgerError: another book of the folder was charged for these records, or the store is away.
        DataError: see :func:`fedray.data.commitment.commit_records`.
    """
    made = commit_records(records.x, records.y, load_salt(directory, name))
    refuse_known_records(directory, subject_path(directory, name), {name: made}, lambda _: records)
    return made


def open_own_book(terms: Terms, site: Site, records: Records | None) -> Account:
    """Open the book of a silo.

    Args:
        terms: the run's, for the silo.
        site: the silo's, with a ledger.
        records: that it trains on; None where they are not those that were agreed on, and nothing is charged.

    Raises:
        LedgerError: as :func:`commit_silo` and :meth:`fedray.privacy.account.Account.open_silo`.
    """
    assert site.ledger is not None and site.book is not None and site.client is not None
    config, directory, name = terms.config, ledger_directory(site.ledger, "."), site.client.name
    return Account.open_silo(
        directory,
        name,
        site.book,
        job=terms.job,
        pinned=site.pinned,
        fewer_steps=config.privacy.fewer_steps,
        data=None if records is None or not config.privacy.record else commit_silo(directory, name, records),
        void=claim(config).reasons,
    )


def commit_federation(directory: Location, federation: Federation, lasting: bool) -> dict[str, str]:
    """Each hosted client's commitment to its records, for its entries in the driver's book in ``directory``; raises as :func:`commit_silo`.

    ``lasting``: the folder outlives the run, so that it may hold other books.
    """
    salt, index = load_salt(directory, "records"), positions(federation.names)

    def records(name: str) -> Records:
        return federation.client(index(name)).train

    made = {name: commit_records(own.x, own.y, salt) for name in federation.names for own in (records(name),)}
    if lasting:
        refuse_known_records(directory, records_path(directory), made, records)
    return made


def refuse_known_records(directory: Location, book: Location, data: Mapping[str, str], records: Callable[[str], Records]) -> None:
    """Refuse clients whose very records were charged in another book of the folder.

    Records that the own book knows are not looked for, so that only a client that is new, or has new records, costs anything.

    Args:
        directory: the folder.
        book: the clients' own, which need not be there yet.
        data: client to the commitment to its records under the own book's salt.
        records: a client's records, by its name.

    Raises:
        LedgerError: names the book, and the name under which it knows the records; or a book of the folder is broken.
    """
    others = _beside(directory, book)
    if not others:
        return
    known = _read(book).records if _exists(book) else {}
    new = [name for name, commitment in data.items() if name not in known.get(bytes.fromhex(commitment), ())]
    for other in others if new else ():
        summary = _read(other)
        salt = find_salt(directory, summary.owner or "records") if summary.records else None
        for name in new if salt is not None else ():
            mine = records(name)
            charged = summary.records.get(bytes.fromhex(commit_records(mine.x, mine.y, salt or b"")))
            if charged:
                raise LedgerError(
                    f"{other}: the records of client '{name}' were charged here as those of '{min(charged)}', and in {book} nothing of that "
                    "would count; give the client that name and clients.placement again, so that its charges go on."
                )


def _exists(book: Location) -> bool:
    return book.exists() if isinstance(book, Path) else bool(find_books(book))


def _beside(directory: Location, book: Location) -> list[Location]:
    """The other books that lie in the folder itself."""
    found: Iterable[Location] = sorted(directory.glob("*.jsonl")) if isinstance(directory, Path) else find_books(directory)
    return [path for path in found if path != book]


def _read(book: Location) -> Summary:
    """A book without its writer's lock; what is being written to its end is left out."""
    summary = Summary(book)
    for item in scan(book, read_lines(book)):
        if not isinstance(item, bytes):
            summary.take(item[0])
    return summary
