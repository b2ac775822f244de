"""The members of one attempt, with their keys: what all of them and the driver have to see alike.

The hash of the roster goes into all keys that are derived and all shares that are sealed, and the graph follows from it. So members that
were shown different rosters cannot read each other's shares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from fedray.secure.graph import Graph
from fedray.secure.masks import VERSION
from fedray.secure.protocol import Order
from fedray.secure.signing import PUBLIC, SIGNATURE, Signer
from fedray.secure.wire import pack_set, unpack

_KEY = 32
#: Bytes of a member's keys, without and with its identity.
LENGTHS = (2 * _KEY, 2 * _KEY + PUBLIC + SIGNATURE)


@dataclass(frozen=True)
class Keys:
    """A member's public keys.

    Attributes:
        channel: X25519 key to which shares are sealed, 32 bytes.
        mask: X25519 key from which masks are derived, 32 bytes.
        identity: the Ed25519 key that signs both; empty without one.
        signature: by the identity.
    """

    channel: bytes
    mask: bytes
    identity: bytes = b""
    signature: bytes = b""

    @classmethod
    def signed(cls, channel: bytes, mask: bytes, order: Order, number: int, signer: Signer | None) -> Self:
        """A member's keys, signed by its identity if it has one."""
        if signer is None:
            return cls(channel, mask)
        return cls(channel, mask, signer.public, signer.own.sign(_statement(channel, mask, order, number)))

    @classmethod
    def read(cls, data: bytes) -> Self:
        """The keys that :meth:`written` has written."""
        ends = (0, _KEY, 2 * _KEY, 2 * _KEY + PUBLIC, len(data))
        return cls(*(data[start:stop] for start, stop in pairwise(ends)))

    def written(self) -> bytes:
        """The keys as bytes, with one of the lengths ``LENGTHS``."""
        return self.channel + self.mask + self.identity + self.signature

    def check(self, order: Order, number: int, signer: Signer) -> None:
        """Refuse keys that no known client has signed for this member of this attempt.

        Raises:
            ValueError: as :meth:`Signer.check`.
        """
        signer.check(self.identity, self.signature, _statement(self.channel, self.mask, order, number), f"the keys of member {number}")


def _statement(channel: bytes, mask: bytes, order: Order, number: int) -> bytes:
    return b"/".join((VERSION, b"keys", order.digest() + number.to_bytes(4, "little") + channel + mask))


def read_keys(message: bytes) -> dict[int, Keys]:
    """Return the keys of all members by number.

    Raises:
        ValueError: the message is malformed, or two keys are the same.
    """
    found = unpack(message, *LENGTHS)
    if distinct(found) != found:
        raise ValueError("two members have the same key")
    return {number: Keys.read(data) for number, data in found.items()}


def distinct(messages: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return those members' keys, as bytes by ascending number, that are neither malformed nor the keys of a member before them."""
    kept: dict[int, bytes] = {}
    taken: set[bytes] = set()
    for number, data in sorted(messages.items()):
        keys = Keys.read(data)
        own = {keys.channel, keys.mask, keys.identity or keys.mask}
        if len(data) in LENGTHS and len(own) == 2 + bool(keys.identity) and own.isdisjoint(taken):
            kept[number] = data
            taken |= own
    return kept


def view(order: Order, message: bytes) -> bytes:
    """The hash of an attempt and all keys in it, 32 bytes."""
    return hashlib.sha256(b"/".join((VERSION, b"view", order.digest() + message))).digest()


@dataclass(frozen=True)
class Roster:
    """The members of one attempt.

    Attributes:
        view: hash of the attempt and all keys, 32 bytes.
        keys: by number.
        graph: who shares with whom.
        quorum: members that have to stay to the end.
        least: members whose updates have to be in a sum that is read, at least ``quorum``.
    """

    view: bytes
    keys: Mapping[int, Keys]
    graph: Graph
    quorum: int
    least: int

    def channel(self, sender: int, receiver: int) -> bytes:
        """What is bound to a sealed share: the attempt and all keys in it, who sends it and to whom."""
        return b"/".join((VERSION, b"share", self.view + sender.to_bytes(4, "little") + receiver.to_bytes(4, "little")))

    def agreement(self, survivors: Iterable[int], model: bytes) -> bytes:
        """What a member signs that has trained from ``model`` (a hash, 32 bytes), and was told that the sum is that of ``survivors``."""
        return b"/".join((VERSION, b"survivors", self.view + model + pack_set(survivors)))
