"""Lets standard output and error be closed while fedray writes: by ``| head -3``, a closed terminal, a lost connection.

A lost reader does not end the work: further output is discarded without an error.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

#: Error numbers of a pipe without a reader and of a closed terminal.
_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET)


class _Outlet(io.FileIO):
    """A file descriptor to write to, replaced by the null device when its reader is lost."""

    gone = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
        self.gone = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return len(memoryview(data).cast("B"))


_outlets: dict[str, _Outlet] = {}
_told: list[str] = []


def forgive() -> None:
    """Let this process' standard output and error be closed at any time; to be called at the beginning of a command.

    Descriptors that are closed already become the null device: otherwise the next opened file would get their number, and printed text
    would be written into that file.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free descriptor, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        encoding, errors = ("utf-8", "backslashreplace") if old is None else (old.encoding, old.errors)
        outlet = _outlets[name] = _Outlet(descriptor, "w", closefd=False)
        line = name == "stderr" or outlet.isatty()
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(outlet), encoding=encoding, errors=errors, line_buffering=line))


def gone(name: str = "stdout") -> bool:
    """Return whether the reader of ``stdout`` or ``stderr`` is lost."""
    return name in _outlets and _outlets[name].gone


def lost() -> bool:
    """Return True once, on the first call after standard output has lost its reader."""
    if not gone() or _told:
        return False
    _told.append("stdout")
    return True
