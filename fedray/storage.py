"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedray.errors import FedrayError


def write_atomic(path: Path, data: bytes | Callable[[Path], None]) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old or the new content, never a part.

    The bytes are on disk (fsync of file and directory) when this returns.

    Args:
        path: of the file.
        data: its content, or what writes that to a path, where it need not be whole in memory.

    Raises:
        FedrayError: the disk is full, broken or not writable; the old content stands.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                if not callable(data):
                    file.write(data)
            if callable(data):
                data(Path(temporary))
            with open(temporary, "rb") as file:  # not the one from above, in whose place a writer may have put another
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line to a file; on disk when this returns.

    Raises:
        FedrayError: the disk is full, broken or not writable; no part of the line stays behind.
    """
    with _writing(path), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        data = memoryview(f"{line}\n".encode())
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def damaged(path: Path, why: str) -> FedrayError:
    """The error of a file that is not what was written."""
    return FedrayError(f"{path}: is damaged ({why}); bring it back from a copy.")


def write_json(path: Path, value: Any) -> None:
    """:func:`write_atomic` of indented JSON."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False, default=str) + "\n").encode())


def sync_directory(path: Path) -> None:
    """Make a rename or a new file in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FedrayError(
            f"{path}: cannot be written ({error.strerror or error}); see to the disk, then start again (a run with --resume)."
        ) from error
