"""Keeps two drivers from working in one output, by a file lock that the kernel releases when the driver's process ends.

The lock works between processes of one machine, and between machines if their shared file system supports locks.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedray.errors import ConfigError
from fedray.runfiles import RunFiles

log = logging.getLogger(__name__)

#: Seconds that a resumed run waits for an earlier driver to end.
PATIENCE = 30.0

_LOOK = 0.1


@contextmanager
def occupied(files: RunFiles, wait: float = 0.0, insist: bool = True) -> Iterator[None]:
    """Hold the output's lock within the block.

    Args:
        files: the output's files; their directory exists.
        wait: seconds to wait for another driver to end.
        insist: whether a lock that another process keeps is an error. A restarted driver continues without the lock, because the node
            of the process that holds it is out of reach.

    Raises:
        ConfigError: another driver is at work there, or the lock cannot be made.
    """
    path = _lock_path(files)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"--output {files.root}: {path.name} cannot be written ({error.strerror}); choose another directory.") from None
    try:
        if _taken(handle, wait):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "node": socket.gethostname()}).encode(), 0)
        elif insist:
            raise _refusal(files, path)
        yield
    finally:
        os.close(handle)


def check_free(files: RunFiles, wait: float = 0.0) -> None:
    """Check that no driver is at work in these files, as far as this node can tell.

    Raises:
        ConfigError: another driver is at work there.
    """
    path = _lock_path(files)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # most often there is no such file; any other error is the driver's to report
        return
    try:
        if not _taken(handle, wait):
            raise _refusal(files, path)
    finally:
        os.close(handle)


def _lock_path(files: RunFiles) -> Path:
    """Return the lock's path; for a run in a store it lies beside the working directory, which is emptied when a driver begins."""
    return files.root / ".lock" if files.remote is None else files.root.with_name(f".{files.root.name}.lock")


def _taken(handle: int, wait: float) -> bool:
    limit = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= limit:
                return False
        except OSError as error:
            log.debug("this file system has no locks (%s)", error)
            return True
        time.sleep(_LOOK)


def _refusal(files: RunFiles, path: Path) -> ConfigError:
    who = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text())
        who = f"process {found['pid']} on {found['node']}"
    return ConfigError(
        f"--output {files.remote or files.root}: another run is at work there ({who}); wait until it has ended, or choose another directory."
    )
