"""A protocol of two phases, for the tests of rounds with phases: each member tells the driver the key of its mask."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from stateparts import end_once

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Turn
from fedray.secure.protocol import Ask, Conduct, Member, Order, Protocol, Refused, Ring, TooFew, Train


def pad(key: bytes, size: int) -> Ring:
    """The mask that follows from a key."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(key))).integers(-(2**63), 2**63 - 1, size, dtype=np.int64)


@dataclass(frozen=True)
class Pads(Protocol):
    """A protocol that hides nothing from the driver, with as many members needed as the config says."""

    trust = "the driver is told every mask"
    most_lost: int = 1
    refuses: int | None = None
    ends: str = ""

    def conduct(self, order: Order, members: int) -> Conduct:
        """Ask for numbers, let those train who answered, and ask for keys."""
        numbers = yield Ask("number", dict.fromkeys(range(members), b"?"))
        if len(numbers) < members - self.most_lost:
            raise TooFew(f"{len(numbers)} of {members} members answered")
        trained = yield Train(numbers)
        if len(trained) < members - self.most_lost or len(trained) < order.least:
            raise TooFew(f"{len(trained)} of {members} members are in the sum")
        keys = yield Ask("key", trained)
        return unmasked(list(keys.values()))

    def member(self, order: Order, number: int) -> Padded:
        """See :class:`Padded`."""
        return Padded(self, order, number)


def unmasked(keys: list[bytes]) -> Callable[[Ring], None]:
    """Takes the masks of these keys off."""

    def correct(values: Ring) -> None:
        for key in keys:
            values -= pad(key, len(values))

    return correct


class Padded(Member):
    """A member; the first whose number the protocol refuses says so, and only in the first attempt."""

    def __init__(self, protocol: Pads, order: Order, number: int) -> None:
        self._protocol, self._order, self._number = protocol, order, number
        self._key, self._ready = secrets.token_bytes(16), False

    def answer(self, phase: str, message: bytes) -> bytes:
        """Its number, then its key."""
        if phase == "key":
            return self._key
        if self._number == self._protocol.refuses and not self._order.attempt:
            raise Refused("the first attempt does not suit it.")
        if self._protocol.ends and self._number == 0:
            end_once(self._protocol.ends)
        return self._number.to_bytes(2)

    def ready(self, inbox: bytes, model: bytes) -> None:
        """Compare what comes back."""
        if int.from_bytes(inbox) != self._number or len(model) != 32:
            raise Refused("that is not its number.")
        self._ready = True

    def mask(self, values: Ring) -> None:
        """Add the pad."""
        assert self._ready
        values += pad(self._key, len(values))


@dataclass(frozen=True)
class Falling(FedAvg):
    """FedAvg; in round 1 the first turn ends its actor.

    Attributes:
        mark: path of a file.
    """

    mark: str = ""

    def local(self, turn: Turn) -> Update:
        """See :class:`FedAvg`."""
        update = super().local(turn)
        if turn.number == 1:
            end_once(self.mark)
        return update
