"""Bytes by member number, as bytes: what the messages of a protocol are made of.

The count of entries, then each entry in ascending order of the members' numbers: the number, the length, the bytes. All of the former are
unsigned integers of 32 bits, little-endian. A mapping has exactly one form, and whatever is not the form of a mapping is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

_COUNT, _ENTRY = struct.Struct("<I"), struct.Struct("<II")


def pack(messages: Mapping[int, bytes]) -> bytes:
    """Return a mapping of numbers from 0 to 2**32 - 1 to bytes as bytes."""
    parts = [_COUNT.pack(len(messages))]
    for number in sorted(messages):
        parts += (_ENTRY.pack(number, len(messages[number])), messages[number])
    return b"".join(parts)


def pack_set(numbers: Iterable[int]) -> bytes:
    """Return a set of numbers as bytes: a mapping to nothing."""
    return pack(dict.fromkeys(numbers, b""))


def unpack(data: bytes, *lengths: int) -> dict[int, bytes]:
    """Return the mapping that :func:`pack` has written, in ascending order of the numbers.

    Args:
        data: the bytes.
        lengths: the lengths that an entry's bytes may have; any, if none is given.

    Raises:
        ValueError: the bytes are cut off, too long, not in ascending order, or an entry has another length.
    """
    if len(data) < _COUNT.size:
        raise ValueError("the message is cut off")
    (count,), at = _COUNT.unpack_from(data), _COUNT.size
    found: dict[int, bytes] = {}
    last = -1
    for _ in range(count):
        if len(data) < at + _ENTRY.size:
            raise ValueError("the message is cut off")
        number, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if number <= last:
            raise ValueError(f"member {number} is not in ascending order")
        if lengths and length not in lengths:
            raise ValueError(f"what is said of member {number} has {length} bytes")
        if len(data) < at + length:
            raise ValueError("the message is cut off")
        found[number], last, at = data[at : at + length], number, at + length
    if at != len(data):
        raise ValueError("the message is too long")
    return found


def unpack_set(data: bytes) -> tuple[int, ...]:
    """Return the numbers that :func:`pack_set` has written, ascending.

    Raises:
        ValueError: as :func:`unpack`.
    """
    return tuple(unpack(data, 0))
