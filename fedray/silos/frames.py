"""Frames: what one message of the gRPC stream between a silo and the gateway is.

A frame is a kind (one byte), the order that it is about (16 bytes), a number and a checksum (unsigned integers of 32 bits, little-endian),
and a body. The checksum is the CRC-32 of the rest; that nobody changes bytes on their way is TLS's work, this finds a fault of a side.

======== ======== ============================ =============================================================
kind     sent by  number                       body
======== ======== ============================ =============================================================
HELLO    silo     version of the protocol      JSON: client, boot (16 random bytes of the process, hex), cause
WELCOME  gateway  version of the protocol      empty
OFFER    both     1 if control, plus 2 x an    size in bytes (64 bits), 16 random bytes that mark the
                  answer's status, plus 8 if   parcel's making
                  it was offered before
CHUNK    both     number of the chunk, from 0  1 MiB of the parcel, or the rest of it
HAVE     both     chunks that are there: the   empty
                  answer to what is offered
                  again, or not wanted
RELEASE  gateway  0                            empty: the answer is not needed any more
RELEASED silo     0                            empty
======== ======== ============================ =============================================================
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fedray.silos.parcels import CHUNK, MalformedMessage

LONGEST_HELLO = 4096
NOT_WANTED = 2**32 - 1  # in HAVE: the parcel is not needed (now), stop sending it
NO_ORDER = bytes(16)

_HEADER = struct.Struct("<B16sII")
_OFFER = struct.Struct("<Q16s")
LONGEST_FRAME = _HEADER.size + CHUNK


class Kind(IntEnum):
    """What a frame says; see the module's text."""

    HELLO = 1
    WELCOME = 2
    OFFER = 3
    CHUNK = 4
    HAVE = 5
    RELEASE = 6
    RELEASED = 7


class Status(IntEnum):
    """What a silo's answer is: the handler's, the reason of a refusal, or that the order's work was lost when the silo was restarted."""

    DONE = 0
    REFUSED = 1
    LOST = 2


_BODY = {
    Kind.HELLO: (2, LONGEST_HELLO),
    Kind.WELCOME: (0, 0),
    Kind.OFFER: (_OFFER.size, _OFFER.size),
    Kind.CHUNK: (1, CHUNK),
    Kind.HAVE: (0, 0),
    Kind.RELEASE: (0, 0),
    Kind.RELEASED: (0, 0),
}


@dataclass(frozen=True)
class Frame:
    """A frame that arrived."""

    kind: Kind
    order: bytes
    number: int
    body: memoryview


def frame(kind: Kind, order: bytes = NO_ORDER, number: int = 0, *body: memoryview | bytes) -> bytes:
    """Return a frame as bytes."""
    start = struct.pack("<B16sI", kind, order, number)
    checksum = zlib.crc32(start)
    for piece in body:
        checksum = zlib.crc32(piece, checksum)
    return b"".join((start, struct.pack("<I", checksum), *body))


def read_frame(data: bytes) -> Frame:
    """Return the frame that :func:`frame` has written.

    Raises:
        MalformedMessage: the bytes are no frame.
    """
    if len(data) < _HEADER.size:
        raise MalformedMessage(f"a frame of {len(data)} bytes is cut off")
    number_of_kind, order, number, checksum = _HEADER.unpack_from(data)
    view = memoryview(data)
    try:
        kind = Kind(number_of_kind)
    except ValueError:
        raise MalformedMessage(f"a frame has the unknown kind {number_of_kind}") from None
    least, most = _BODY[kind]
    body = view[_HEADER.size :]
    if not least <= len(body) <= most:
        raise MalformedMessage(f"a frame of the kind {kind.name} has a body of {len(body):,} bytes")
    if zlib.crc32(body, zlib.crc32(view[: _HEADER.size - 4])) != checksum:
        raise MalformedMessage(f"the checksum of a frame of the kind {kind.name} is wrong")
    return Frame(kind, order, number, body)


@dataclass(frozen=True)
class Offered:
    """What an OFFER says.

    Attributes:
        control: whether it goes before work.
        status: what an answer is.
        size: bytes of the parcel.
        tag: marks this making of the parcel, 16 bytes.
        again: whether it was offered before, so that the peer says from which chunk it goes on.
    """

    control: bool
    status: Status
    size: int
    tag: bytes
    again: bool = False


def offer(order: bytes, offered: Offered) -> bytes:
    """Return the frame that announces a parcel."""
    return frame(Kind.OFFER, order, offered.control + 2 * offered.status + 8 * offered.again, _OFFER.pack(offered.size, offered.tag))


def read_offer(found: Frame, largest: int) -> Offered:
    """Return what an OFFER says.

    Raises:
        MalformedMessage: it says nothing that is meant, or the parcel would be larger than ``largest`` bytes.
    """
    size, tag = _OFFER.unpack(found.body)
    status = found.number >> 1 & 3
    if found.number >= 16 or status >= len(Status):
        raise MalformedMessage(f"an OFFER has the unknown number {found.number}")
    if not 0 < size <= largest:
        raise MalformedMessage(f"a message of {size:,} bytes is offered; at most {largest:,} are taken")
    return Offered(bool(found.number & 1), Status(status), size, tag, bool(found.number & 8))


def hello(version: int, client: str, boot: str, cause: str) -> bytes:
    """Return a silo's first frame; ``cause`` says why its last link ended, if the silo ended it."""
    return frame(Kind.HELLO, NO_ORDER, version, json.dumps({"client": client, "boot": boot, "cause": cause[:500]}).encode())


def read_hello(found: Frame) -> tuple[str, str, str]:
    """Return client, boot and cause of a HELLO.

    Raises:
        MalformedMessage: it is no JSON object with these texts.
    """
    try:
        said: Any = json.loads(bytes(found.body))
        client, boot, cause = said["client"], said["boot"], said["cause"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise MalformedMessage("a HELLO is not JSON with client, boot and cause") from None
    if not all(isinstance(text, str) for text in (client, boot, cause)):
        raise MalformedMessage("a HELLO has other than texts as client, boot and cause")
    return printable(client), printable(boot), printable(cause)


def printable(text: str, longest: int = 500) -> str:
    """Return a peer's text so that it can stand in a line of a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])
