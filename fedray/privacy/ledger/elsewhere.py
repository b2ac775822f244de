"""Other books that lie beside a run's own and may hold charges to the same records, which the run's budget then does not see."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from fedray.errors import FedrayError
from fedray.privacy.ledger.book_file import read_lines
from fedray.privacy.ledger.chain import scan
from fedray.privacy.ledger.location import SILOS, ledger_directory

_NAMED = 3  # books or ledgers in a sentence
_UNSEEN = "what the same records were charged there is not counted in this budget"


def elsewhere(of_records: Iterable[str], of_clients: Iterable[str], dedicated: bool) -> list[str]:
    """A sentence for each ledger that begins anew beside others.

    Only the directory that holds a ledger's directory is looked at, and only on this machine's disk. Whose records other books are of is not
    known here.

    Args:
        of_records: settings such as ``privacy.ledger``, of ledgers for records.
        of_clients: the same for whole clients.
        dedicated: whether each client charges a book for its own records, and not the driver one for all.
    """
    record, others = list(dict.fromkeys(of_records)), list(dict.fromkeys(of_clients))
    mine = {_directory(setting) for setting in (*record, *others)}
    found = [_other_books(setting, dedicated) or _neighbours(setting, mine) for setting in record]
    found += [_neighbours(setting, mine) for setting in others if setting not in record]
    return [text for text in found if text]


def _other_books(setting: str, dedicated: bool) -> str:
    """What is said of a ledger that was charged by clients in another placement alone."""
    directory = _directory(setting)
    books = set() if directory is None else _books(directory)
    together, apart = books & {"records"}, books - {"records", "clients"}
    if dedicated and together and not apart:
        return f"privacy.ledger: {setting} holds the book of hosted clients (records), which dedicated clients do not read: {_UNSEEN}."
    if not dedicated and apart and not together:
        return (
            f"privacy.ledger: {setting} holds books of dedicated clients ({_listed(apart)}), which hosted clients do not read: {_UNSEEN}."
        )
    return ""


def _neighbours(setting: str, mine: Collection[Path | None]) -> str:
    """What is said of a ledger without a charge that has neighbours with charges, besides those of the same run."""
    directory = _directory(setting)
    if directory is None or _books(directory):
        return ""
    with suppress(OSError):
        beside = {path.name for path in directory.parent.iterdir() if path not in mine and _books(path)}
        if beside:
            lies = "lies" if len(beside) == 1 else "lie"
            return (
                f"privacy.ledger: {setting} is a new ledger, and {_listed(beside)} {lies} beside it: {_UNSEEN}. Runs on the same records should "
                "share one ledger."
            )
    return ""


def _directory(setting: str) -> Path | None:
    """The directory of a ledger that outlives the run, if it lies on a disk."""
    where = None if setting in ("run", SILOS) else ledger_directory(setting, ".")
    return where.absolute() if isinstance(where, Path) else None


def _books(directory: Path) -> set[str]:
    """The names of the books with charges that lie directly in a directory."""
    return {path.stem for path in directory.glob("*.jsonl") if _charged(path)} if directory.is_dir() else set()


def _charged(path: Path) -> bool:
    with suppress(FedrayError):  # it is no book
        return any(not isinstance(item, bytes) and item[0].kind == "reserve" for item in scan(path, read_lines(path)))
    return False


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {more} more" if more > 0 else "")
