"""A throw-away PostgreSQL of the programs that Debian installs, which answers at a socket alone."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any


def _programs() -> Path | None:
    """The folder of the newest version's programs; Debian has them on nobody's path."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found += [Path(path).parent for path in [shutil.which("initdb")] if path]
    return max(found, key=lambda folder: [int(part) for part in folder.parts if part.isdigit()], default=None)


PROGRAMS = _programs()

_USER = "fedray"


@contextmanager
def database() -> Iterator[str]:
    """Make a cluster with an empty database, and end it; gives the URI of an MLflow store."""
    assert PROGRAMS is not None
    folder = Path(mkdtemp(prefix="fedray-pg-"))  # a short path, for a socket's has 107 bytes at most
    runner = _not_root()
    if runner:
        shutil.chown(folder, runner["user"], runner["group"])

    def call(program: str, *arguments: str) -> None:
        line = [str(PROGRAMS / program), *arguments]
        done = subprocess.run(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=300, **runner)
        assert done.returncode == 0, done.stderr

    data = str(folder / "data")
    try:
        call("initdb", "-D", data, "-A", "trust", "-U", _USER, "--no-sync", "-E", "UTF8", "--locale=C")
        call("pg_ctl", "-D", data, "-w", "-t", "120", "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -k {folder} -F", "start")
        try:
            call("createdb", "-h", str(folder), "-U", _USER, _USER)
            yield f"postgresql+psycopg2://{_USER}@/{_USER}?host={folder}"
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _not_root() -> dict[str, Any]:
    """How a process is started that refuses to be root's."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
