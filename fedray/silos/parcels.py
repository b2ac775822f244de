"""Messages between a silo and the gateway as bytes: a head and raw arrays, never pickled.

A parcel's bytes are a preamble (magic, version, number of buffers, length of the head), the buffers' lengths as unsigned integers of 64
bits, the head, and the buffers, each of which begins at a multiple of 64 bytes; all integers are little-endian, and what lies between is
zero. A parcel has exactly one form. It travels in chunks of 1 MiB (:mod:`fedray.silos.frames`); neither side makes a second copy of it.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PROTOCOL = 1  # version of the parcels and of the frames
CHUNK = 2**20  # bytes of a parcel in one frame
LONGEST_HEAD = 2**20
MOST_BUFFERS = 2**16
LARGEST = 2**32  # bytes of a parcel, unless a side sets less

_PREAMBLE = struct.Struct("<4sIII")
_MAGIC = b"fedr"
_ALIGNED = 64


class MalformedMessage(ValueError):
    """What the peer sent is not a message of this protocol; the text says why."""


@dataclass(frozen=True)
class Parcel:
    """One message, either way.

    Attributes:
        head: UTF-8 JSON, at most 1 MiB.
        buffers: raw arrays, C-contiguous; dtypes and shapes are in the head.
    """

    head: bytes
    buffers: tuple[memoryview | bytes, ...] = ()


class Stretch:
    """Bytes that lie in several places, read as one.

    Args:
        parts: the places, in order.
    """

    def __init__(self, parts: Sequence[memoryview | bytes]) -> None:
        self._parts = [memoryview(part) for part in parts if len(part)]
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))
        self.size = self._ends[-1] if self._ends else 0

    @property
    def chunks(self) -> int:
        """How many chunks the bytes are."""
        return chunks_of(self.size)

    def chunk(self, number: int) -> list[memoryview]:
        """Return the pieces of a chunk, none of them copied."""
        at, end = number * CHUNK, min((number + 1) * CHUNK, self.size)
        pieces = []
        for index in range(bisect.bisect_right(self._ends, at), len(self._parts)):
            start = self._ends[index] - len(self._parts[index])
            if start >= end:
                break
            pieces.append(self._parts[index][max(at - start, 0) : end - start])
        return pieces

    def parts(self) -> Iterator[memoryview]:
        """The places, in order."""
        return iter(self._parts)


def chunks_of(size: int) -> int:
    """Return the number of chunks of ``size`` bytes."""
    return -(-size // CHUNK)


def packed(parcel: Parcel) -> Stretch:
    """Return a parcel's bytes; the buffers are not copied and must not change.

    Raises:
        ValueError: the head is too long, there are too many buffers, or one is not contiguous.
    """
    if len(parcel.head) > LONGEST_HEAD:
        raise ValueError(f"the head of a message has {len(parcel.head):,} bytes; at most {LONGEST_HEAD:,} are allowed")
    if len(parcel.buffers) > MOST_BUFFERS:
        raise ValueError(f"a message has {len(parcel.buffers):,} arrays; at most {MOST_BUFFERS:,} are allowed")
    buffers = [_raw(buffer) for buffer in parcel.buffers]
    lengths = struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    preamble = _PREAMBLE.pack(_MAGIC, PROTOCOL, len(buffers), len(parcel.head)) + lengths
    parts: list[memoryview | bytes] = [preamble, parcel.head]
    at = len(preamble) + len(parcel.head)
    for buffer in buffers:
        parts += (bytes(-at % _ALIGNED), buffer)
        at += -at % _ALIGNED + len(buffer)
    return Stretch(parts)


def unpacked(data: memoryview) -> Parcel:
    """Return the parcel that :func:`packed` has laid out; its buffers are views of ``data``.

    Raises:
        MalformedMessage: the bytes are not the form of a parcel, or are of another version.
    """
    if len(data) < _PREAMBLE.size:
        raise MalformedMessage(f"a message of {len(data)} bytes is cut off")
    magic, version, count, head = _PREAMBLE.unpack_from(data)
    if magic != _MAGIC:
        raise MalformedMessage("a message does not begin as one")
    if version != PROTOCOL:
        raise MalformedMessage(f"a message has version {version}, and this side speaks version {PROTOCOL}")
    if head > LONGEST_HEAD or count > MOST_BUFFERS:
        raise MalformedMessage(f"a message claims a head of {head:,} bytes and {count:,} arrays")
    at = _PREAMBLE.size + 8 * count
    if len(data) < at + head:
        raise MalformedMessage("a message is cut off in its head")
    lengths = struct.unpack_from(f"<{count}Q", data, _PREAMBLE.size)
    parcel_head, at = bytes(data[at : at + head]), at + head
    buffers = []
    for length in lengths:
        start = at + -at % _ALIGNED
        if len(data) < start + length:
            raise MalformedMessage("a message is cut off in an array")
        if any(data[at:start]):
            raise MalformedMessage("a message has bytes between its arrays")
        buffers.append(data[start : start + length])
        at = start + length
    if at != len(data):
        raise MalformedMessage(f"a message has {len(data) - at:,} bytes after its end")
    return Parcel(parcel_head, tuple(buffers))


class Assembly:
    """A parcel on its way in: one buffer of its size, whose pages are used as chunks arrive.

    Args:
        size: bytes of the parcel, as the peer claims.
        tag: marks one making of the parcel's bytes; another tag is another parcel.
    """

    def __init__(self, size: int, tag: bytes) -> None:
        self.size = size
        self.tag = tag
        self.arrived = 0  # chunks without a gap from the first
        self._there = bytearray(chunks_of(size))
        self._data: mmap.mmap | bytearray = mmap.mmap(-1, size) if size > CHUNK else bytearray(size)

    @property
    def whole(self) -> bool:
        """Whether every chunk has arrived."""
        return self.arrived == len(self._there)

    def put(self, number: int, data: memoryview) -> None:
        """Take a chunk; one that is there already has no effect.

        Raises:
            MalformedMessage: there is no such chunk, or it has another length.
        """
        if number >= len(self._there):
            raise MalformedMessage(f"chunk {number} of a message of {len(self._there)} chunks")
        length = min(CHUNK, self.size - number * CHUNK)
        if len(data) != length:
            raise MalformedMessage(f"chunk {number} has {len(data):,} bytes, and {length:,} are due")
        if self._there[number]:
            return
        self._data[number * CHUNK : number * CHUNK + length] = data
        self._there[number] = 1
        while self.arrived < len(self._there) and self._there[self.arrived]:
            self.arrived += 1

    def parcel(self) -> Parcel:
        """Return the parcel, once it is whole; its buffers are views of the one buffer.

        Raises:
            MalformedMessage: the bytes are not the form of a parcel.
        """
        return unpacked(memoryview(self._data))


def _raw(buffer: memoryview | bytes) -> memoryview:
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")
