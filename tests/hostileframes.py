"""Frames as no honest peer sends them."""

from __future__ import annotations

import json
import random
import struct
import zlib

from fedray.silos.frames import NO_ORDER, Kind, frame, hello
from fedray.silos.parcels import CHUNK


def stamped(kind: int, order: bytes, number: int, body: bytes) -> bytes:
    """A frame of any kind, with the right checksum."""
    start = struct.pack("<B16sI", kind, order, number)
    return start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body


def malformed(draw: random.Random) -> bytes:
    """A frame that either side must refuse."""
    order = draw.choice([NO_ORDER, draw.randbytes(16)])
    sort = draw.randrange(9)
    if sort == 0:
        return draw.randbytes(draw.choice([0, 1, 24, 25, 26, 60, 1000]))
    if sort == 1:  # an unknown kind
        return stamped(draw.choice([0, 8, 77, 255]), order, draw.randrange(2**32), draw.randbytes(draw.randrange(50)))
    if sort == 2:  # bodies where there are none, and none where there are
        return stamped(draw.choice([2, 5, 6, 7]), order, 0, draw.randbytes(1 + draw.randrange(9)))
    if sort == 3:
        return stamped(draw.choice([1, 3, 4]), order, draw.randrange(6), b"")
    if sort == 4:  # more than is ever taken, or nothing
        size = draw.choice([0, 2**32 + 1, 2**40, 2**63, 2**64 - 1])
        return stamped(Kind.OFFER, order, draw.randrange(6), struct.pack("<Q16s", size, order))
    if sort == 5:
        return stamped(Kind.OFFER, order, draw.choice([6, 7, 14, 15, 16, 2**31, 2**32 - 1]), struct.pack("<Q16s", 10, order))
    if sort == 6:  # a chunk of nothing that was offered
        return stamped(Kind.CHUNK, draw.randbytes(16), draw.randrange(2**32), draw.randbytes(draw.choice([1, 100, 4096])))
    if sort == 7:  # a bit of a good frame turned
        whole = bytearray(frame(draw.choice([Kind.HAVE, Kind.RELEASE, Kind.RELEASED]), order, draw.randrange(9)))
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        return bytes(whole)
    return draw.choice([hello(1, "x", "y", ""), stamped(Kind.HELLO, order, 1, json.dumps([1] * draw.randrange(90)).encode())])


def hostile(draw: random.Random, orders: list[bytes]) -> bytes:
    """A well-formed frame that means harm: claims, answers to nothing, parts of what is not."""
    order = draw.choice([*orders, draw.randbytes(16)])
    sort = draw.randrange(5)
    if sort == 0:
        return frame(Kind.HAVE, order, draw.choice([0, 1, 5, 2**31, 2**32 - 1]))
    if sort == 1:
        return frame(draw.choice([Kind.RELEASE, Kind.RELEASED]), order)
    if sort == 2:
        return stamped(
            Kind.OFFER,
            order,
            draw.choice([0, 1, 2, 5, 8, 9, 12]),
            struct.pack("<Q16s", draw.choice([1, 15, 16, 80, 2**20 + 1, 2**32]), draw.randbytes(16)),
        )
    return frame(Kind.CHUNK, order, draw.choice([0, 1, 4095, 2**31]), bytes(draw.choice([1, 16, 80, CHUNK])))
