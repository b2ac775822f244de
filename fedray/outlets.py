"""Standard output and error that may be closed while fedray writes: by ``| head -3``, a terminal that is gone, a lost connection.

What nobody reads any more ends no work: the rest goes nowhere, without an error.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

#: What the system says of a pipe without a reader, and of a terminal that is gone.
_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET)


class _Outlet(io.FileIO):
    """A descriptor to write to; when its reader is gone, the null device takes its place."""

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
    """Let this process' standard output and error be closed at any time; for the beginning of a command.

    Descriptors that are closed already become the null device: a file that was opened next would take their place, and what is printed
    would be written into it.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest descriptor that is free: this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        encoding, errors = ("utf-8", "backslashreplace") if old is None else (old.encoding, old.errors)
        outlet = _outlets[name] = _Outlet(descriptor, "w", closefd=False)
        line = name == "stderr" or outlet.isatty()
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(outlet), encoding=encoding, errors=errors, line_buffering=line))


def gone(name: str = "stdout") -> bool:
    """Whether nobody reads ``stdout`` or ``stderr`` any more."""
    return name in _outlets and _outlets[name].gone


def lost() -> bool:
    """Whether standard output has lost its reader since this was asked last."""
    if not gone() or _told:
        return False
    _told.append("stdout")
    return True
