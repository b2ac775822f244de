"""Reads and writes files so that a file is never half written, and a damaged file is noticed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import FedrayError


def write_atomic(path: Path, data: bytes | Callable[[Path], None]) -> None:
    """Replace a file so that any reader sees, and any crash leaves, the old or the new content as a whole.

    The bytes are on disk (fsync of file and directory) when this returns.

    Args:
        path: the file; missing directories are made.
        data: the content, or a function that writes it to a path, so that it need not be in memory as a whole.

    Raises:
        FedrayError: the disk is full, broken or not writable; the old content stays.
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
            with open(temporary, "rb") as file:  # opened again, because the function may have replaced the file
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file; the line is on disk when this returns.

    Raises:
        FedrayError: the disk is full, broken or not writable; no part of the line stays in the file.
    """
    with _writing(path), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        data = memoryview(f"{line}\n".encode())
        try:
            while data:  # a disk that is nearly full may take only a part
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def damaged(path: Path, why: str) -> FedrayError:
    """Return the error of a file that is not as it was written."""
    return FedrayError(f"{path}: is damaged ({why}); bring it back from a copy.")


@contextmanager
def reading(*paths: Path) -> Iterator[None]:
    """Use the content of these files within the block, with errors that name the files.

    Raises:
        FedrayError: in place of an error about a missing key or a wrong type.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        named = " or ".join(str(path) for path in paths)
        why = f"{type(error).__name__}: {error}"
        raise FedrayError(f"{named}: is damaged, or was written by another version ({why}); bring it back from a copy.") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file; None if the file does not exist.

    Raises:
        FedrayError: the file cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        raise damaged(path, "it is not JSON") from None
    if not isinstance(found, dict):
        raise damaged(path, "it is no JSON object")
    return found


@dataclass(frozen=True)
class JsonLines:
    """The content of a file of JSON lines.

    Attributes:
        path: the file.
        whole: the lines that are as expected, in order.
        broken: numbers, from 1, of the other lines.
        torn: whether the last line has no end, as after a crash; such a line is neither in ``whole`` nor in ``broken``.
    """

    path: Path
    whole: list[dict[str, Any]]
    broken: list[int]
    torn: bool

    def all(self) -> list[dict[str, Any]]:
        """Return all lines, without a torn last line, which a crash may leave.

        Raises:
            FedrayError: a line is broken.
        """
        if self.broken:
            raise damaged(
                self.path, f"line {self.broken[0]} is not what was written; a run that is continued with --resume keeps the others"
            )
        return self.whole


def read_lines(path: Path, good: Callable[[dict[str, Any]], bool] = lambda line: True) -> JsonLines:
    """Read a file of JSON lines; a file that does not exist has no lines.

    Args:
        path: the file.
        good: returns whether an object is as expected.

    Raises:
        FedrayError: the file cannot be read.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return JsonLines(path, [], [], False)
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}") from error
    whole, broken = [], []
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and good(found):
            whole.append(found)
        else:
            broken.append(number)
    return JsonLines(path, whole, broken, bool(rest))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON by :func:`write_atomic`."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False, default=str) + "\n").encode())


def sync_directory(path: Path) -> None:
    """Make renamed and new files in the directory ``path`` durable."""
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
