"""Notices: what a ledger is to enter of withdrawals that were written while a run holds its lock.

They lie beside the ledger, in a folder of its name and ``.notices``. A notice counts from when it is written, which is before this returns to
its writer; whoever holds the ledger's lock enters it before the next charge, once, however often it is read.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedray.errors import LedgerError
from fedray.storage import sync_directory, write_atomic
from fedray.stores.object_path import Location
from fedray.stores.s3 import Bucket

#: What the name of a ledger's folder of notices ends with.
NOTICES = ".notices"
_KEYS = {"id", "kind", "subject", "reason", "since"}


@dataclass(frozen=True)
class Notice:
    """A withdrawal, or its end, that a ledger is to enter.

    Attributes:
        id: by which it is entered once; ids of one ledger's notices are in the order of writing.
        kind: ``withdraw`` or ``readmit``.
        subject: who withdraws.
        reason: in the words of who wrote it.
        since: when it was written (UTC), from when on it counts.
    """

    id: str
    kind: str
    subject: str
    reason: str
    since: str

    @classmethod
    def now(cls, kind: str, subject: str, reason: str) -> Notice:
        """A new notice."""
        return cls(f"{time.time_ns():020d}-{secrets.token_hex(8)}", kind, subject, reason, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))

    def entry(self, job: str) -> dict[str, Any]:
        """The body of the entry that ``job`` writes of it."""
        about = {"subject": self.subject, "reason": self.reason, "since": self.since, "notice": self.id}
        return {"kind": self.kind, "job": job, **about}

    @property
    def name(self) -> str:
        """Of its file or object."""
        return f"{self.id}.json"


def leave_notice(book: Location, notice: Notice) -> None:
    """Leave a notice for a ledger; it is durable when this returns.

    Raises:
        FedrayError: it could not be written, so it does not count.
    """
    data = json.dumps(asdict(notice), sort_keys=True).encode()
    folder = notice_folder(book)
    if isinstance(folder, Path):
        write_atomic(folder / notice.name, data)
        sync_directory(folder.parent)  # where the folder is new
    else:
        Bucket(folder).create(notice.name, data)


def find_notices(book: Location) -> list[Notice]:
    """The notices that are left for a ledger, in the order of writing.

    Raises:
        LedgerError: one cannot be read, so nothing may be charged.
        StoreError: the object store cannot be reached, so nothing may be charged.
    """
    return list(_notices(notice_folder(book)))


def _notices(folder: Location) -> Iterator[Notice]:
    bucket = None if isinstance(folder, Path) else Bucket(folder)
    for name in notice_names(folder, bucket):
        try:
            found = (folder / name).read_bytes() if isinstance(folder, Path) else None if bucket is None else bucket.get(name)
        except FileNotFoundError:  # it was entered meanwhile
            continue
        except OSError as error:
            raise LedgerError(
                f"{folder / name}: cannot be read ({error.strerror or error}), so nothing may be charged; let this process read it."
            ) from None
        if found is None:
            continue
        try:
            data = json.loads(found)
            if set(data) != _KEYS or data["kind"] not in ("withdraw", "readmit") or not all(isinstance(v, str) for v in data.values()):
                raise ValueError
            yield Notice(**data)
        except (ValueError, TypeError):
            raise LedgerError(
                f"{folder / name}: is no notice of a withdrawal, so nothing may be charged; remove the file, and withdraw again."
            ) from None


def notice_names(folder: Location, bucket: Bucket | None) -> list[str]:
    """The files, or keys in ``bucket``, of the notices in a folder."""
    if bucket is not None:
        return [name for name in bucket.names() if name.endswith(".json")]
    assert isinstance(folder, Path)
    try:
        return sorted(path.name for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise LedgerError(
            f"{folder}: cannot be read ({error.strerror or error}), so nothing may be charged; let this process read it."
        ) from None


def remove_notice(book: Location, notice: Notice) -> None:
    """Remove a notice that was entered."""
    folder = notice_folder(book)
    if isinstance(folder, Path):
        with suppress(OSError):  # it is entered, and not entered again
            (folder / notice.name).unlink()
    else:
        Bucket(folder).delete(notice.name)


def notice_folder(book: Location) -> Location:
    """Where the notices for a ledger are left."""
    return book.parent / f"{book.name}{NOTICES}"
