"""Files of keys on a client's machine: written for their owner alone, and read only where nobody else may use them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fedray.errors import ConfigError, FedrayError


def check_absolute(about: str, path: str) -> None:
    """Refuse the path that a config key names, where it depends on a process's working directory.

    Raises:
        ConfigError: with what to change.
    """
    if not Path(path).expanduser().is_absolute():
        raise ConfigError(f"{about}: '{path}' is not absolute; it is read where the process runs that needs it, so write it from / or ~.")


def write_secret(path: Path, data: bytes, about: str, reason: str) -> None:
    """Write a new file that only its owner may read; it is on disk when this returns.

    Args:
        path: of the file.
        data: what it holds.
        about: what errors begin with; may be empty.
        reason: why an old file is not replaced, as the rest of a sentence.

    Raises:
        FedrayError: the file exists or cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise FedrayError(f"{about}{path} exists; name another file, because {reason}.") from None
    except OSError as error:
        raise FedrayError(f"{about}{path} cannot be written ({error.strerror}).") from None


def read_guarded(about: str, path: Path, forbidden: int, should: str) -> bytes:
    """The bytes of a file that others may not use in a way.

    Args:
        about: what errors begin with, such as the config key that names the file.
        path: of the file.
        forbidden: bits that its mode may not have.
        should: what to do if it has them, as the rest of a sentence.

    Raises:
        ConfigError: it cannot be read, or its mode has forbidden bits.
    """
    try:
        with path.open("rb") as file:
            mode, data = stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read()
    except OSError as error:
        raise ConfigError(f"{about}: {path} cannot be read where the process runs that needs it ({error.strerror}).") from None
    if mode & forbidden:
        raise ConfigError(f"{about}: {path} has the mode {mode:04o}; {should}.")
    return data
