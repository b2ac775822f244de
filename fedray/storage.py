"""Files that are either whole or not there."""

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


@contextmanager
def reading(*paths: Path) -> Iterator[None]:
    """Within: what these files hold is used. Where it is not what it should be, the error names them.

    Raises:
        FedrayError: instead of an error of a missing key or a wrong type.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        named = " or ".join(str(path) for path in paths)
        why = f"{type(error).__name__}: {error}"
        raise FedrayError(f"{named}: is damaged, or was written by another version ({why}); bring it back from a copy.") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None where there is no file.

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
    """What a file of JSON lines holds.

    Attributes:
        path: the file.
        whole: the lines that are JSON objects, in order.
        broken: numbers, from 1, of the lines that are not.
        torn: the last line has no end, as after a crash; it is in neither.
    """

    path: Path
    whole: list[dict[str, Any]]
    broken: list[int]
    torn: bool

    def all(self) -> list[dict[str, Any]]:
        """All lines.

        Raises:
            FedrayError: one of them is broken. A torn last line is left out: a crash leaves one.
        """
        if self.broken:
            raise damaged(
                self.path, f"line {self.broken[0]} is not what was written; a run that is continued with --resume keeps the others"
            )
        return self.whole


def read_lines(path: Path, good: Callable[[dict[str, Any]], bool] = lambda line: True) -> JsonLines:
    """Read a file of JSON lines; one that is not there has none.

    Args:
        path: the file.
        good: whether an object is what a line should hold.

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
