"""Names and addresses of privacy books."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

from fedray.errors import PrivacyRefusal
from fedray.stores.object_path import Location, location

#: Ray's directory of unpacked working directories: jobs start there, so relative paths lead into it.
_UNPACKED = "working_dir_files"

#: The code of a refusal of a ledger that a job would forget.
RELATIVE = "privacy.incompatible.job.ledger_relative"


#: What a run with silos outside the cluster says of ledgers that are theirs, and lie nowhere in the cluster.
SILOS = "silos"


def ledger_directory(setting: str, output: str | Path) -> Location:
    """The directory of the books that ``privacy.ledger`` (or a group's ``ledger``) names; ``run`` is ``ledger`` in the run's output.

    Raises:
        ConfigError: an address of a kind that cannot hold a ledger.
        PrivacyRefusal: a directory that is deleted when a job ends, together with the charges in it.
    """
    if setting == "run":
        return Path(output) / "ledger"
    where = location(setting)
    if isinstance(where, Path) and unpacked(where):
        raise PrivacyRefusal(
            f"privacy.ledger: {setting} would lie where Ray unpacks a job's files, and be gone with them, so that what is charged would be "
            "forgotten; give an absolute path on a durable volume, or s3://bucket/prefix.",
            RELATIVE,
        )
    return where


def unpacked(path: Path) -> bool:
    """Whether a path lies among a job's files, which Ray deletes when the job ends."""
    return _UNPACKED in path.absolute().parts


def records_path(directory: str | Location) -> Location:
    """The driver's record-level book of all clients, in ``directory``."""
    return location(directory) / "records.jsonl"


def clients_path(directory: str | Location) -> Location:
    """The driver's client-level book, in ``directory``."""
    return location(directory) / "clients.jsonl"


def subject_path(directory: str | Location, subject: str) -> Location:
    """The book of one subject in ``directory``. Different subjects never share a book."""
    name = quote(subject, safe="")
    if name.startswith(".") or name in ("", "records", "clients"):
        name = f"%{ord(name[0]):02X}{name[1:]}" if name else "%"
    if len(name) > 180:
        name = f"{name[:100]}-{hashlib.sha256(subject.encode()).hexdigest()}"
    return location(directory) / f"{name}.jsonl"
