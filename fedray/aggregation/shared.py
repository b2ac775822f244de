"""A sum that several processes of one machine add into, instead of one in each of them.

Its values lie in anonymous memory, which one process, the keeper, offers to the others by a path of ``/proc``. The memory is gone when
nobody holds it any more, in whatever way they ended. A block of values is locked while something is added to it. What was
added, weight and count, each process knows for its own part alone; who reads the values adds that up.

A process that ends in the middle of an update leaves half of it, and nobody can tell. So the values are worth something only if every
process that added to them has lived to say what: whoever reads them has to see to that.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.exact import ExactSum

#: Bytes in front of the values: a page, which begins with the token.
_HEAD = mmap.PAGESIZE
_TOKEN = 16


@dataclass(frozen=True)
class SharedAt:
    """Where a sum lies.

    Attributes:
        path: of the memory, for processes on the keeper's machine.
        token: what the memory begins with. The keeper's descriptor may stand for other memory by now; it is opened for no sum but its own.
        size: number of values.
    """

    path: str
    token: bytes
    size: int


class SharedMemory:
    """Memory for a sum of zeros, held until :meth:`close`.

    Args:
        size: number of values.

    Raises:
        OSError: the system has no such memory.
    """

    def __init__(self, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no anonymous memory that processes can share.")
        fd = os.memfd_create("fedray-sum")
        self.close = weakref.finalize(self, os.close, fd)
        os.ftruncate(fd, _HEAD + 8 * size)
        token = secrets.token_bytes(_TOKEN)
        os.pwrite(fd, token, 0)
        self.at = SharedAt(f"/proc/{os.getpid()}/fd/{fd}", token, size)


@dataclass
class SharedSum(ExactSum):
    """An :class:`ExactSum` whose values other processes add to, too; ``weight`` and ``count`` are of what was added here."""

    _memory: mmap.mmap = field(repr=False, kw_only=True)
    _fd: int = field(repr=False, kw_only=True)

    @classmethod
    def at(cls, where: SharedAt, empty: ExactSum) -> SharedSum:
        """The sum that lies there.

        Args:
            where: in memory of this machine.
            empty: one of the same length and grid.

        Raises:
            OSError: it is not there any more, or of another length.
        """
        fd = os.open(where.path, os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            if os.pread(fd, _TOKEN, 0) != where.token or not _HEAD + 8 * where.size == size == _HEAD + empty.values.nbytes:
                raise OSError(f"{where.path} is not the memory of this sum.")
            memory = mmap.mmap(fd, size)
        except BaseException:
            os.close(fd)
            raise
        values = np.frombuffer(memory, dtype=np.int64, offset=_HEAD)
        found = cls(values, 0.0, 0, empty.bits, empty.capacity, empty.ones_from, empty.ones_bits, _memory=memory, _fd=fd)
        weakref.finalize(found, os.close, fd)
        return found

    def __reduce__(self) -> Any:
        """What travels is an ordinary sum."""
        return ExactSum, (self.values, self.weight, self.count, self.bits, self.capacity, self.ones_from, self.ones_bits)

    def _add_at(self, start: int, numbers: npt.NDArray[np.int64]) -> None:
        place = 8 * len(numbers), _HEAD + 8 * start
        fcntl.lockf(self._fd, fcntl.LOCK_EX, *place)
        try:
            super()._add_at(start, numbers)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, *place)

    def _forget(self, start: int, stop: int) -> None:
        page = mmap.PAGESIZE  # whole pages only: the others hold values of two blocks
        first = -(-(_HEAD + 8 * start) // page) * page
        last = _HEAD + 8 * len(self.values) if stop >= len(self.values) else (_HEAD + 8 * stop) // page * page
        if last > first:
            self._memory.madvise(mmap.MADV_REMOVE, first, last - first)
