"""The manifest of a run: the SHA-256 of each of its files as they are when the run ends."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fedray.runfiles import MANIFEST, RunFiles
from fedray.stores.mirror import mirrored

#: Files that a later start of the run, or a command that reads it, writes anew; what ends with ``/`` is a directory with all that is in it.
REMADE = (".lock", "audit/", "owner.json", "report.html", "report.md", "report_files/", "tracking.json")


def file_digests(root: Path) -> dict[str, str]:
    """The SHA-256, hexadecimal, of each file of a run but the manifest, by its path from the run's directory with ``/``."""
    found: dict[str, str] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            where = path.relative_to(root).as_posix()
            if where != MANIFEST:
                with path.open("rb") as file:
                    found[where] = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(sorted(found.items()))


def is_remade(name: str) -> bool:
    """Whether a file of a run is one that may be written anew after the run has ended."""
    return any(name == one or (one.endswith("/") and name.startswith(one)) for one in REMADE)


def manifest_files(files: RunFiles) -> dict[str, object]:
    """What a manifest says of a run's files, as JSON data; of a run in an object store those that are copied there."""
    found = {name: digest for name, digest in file_digests(files.root).items() if files.remote is None or mirrored(name)}
    return {"files": {name: digest for name, digest in found.items() if not _passing(name)}, "remade": list(REMADE)}


def _passing(name: str) -> bool:
    """Whether a file is there only while the driver is: beside open ledgers, and for whoever waits for the run."""
    return name.endswith(".holder") or name.startswith(".request-")
