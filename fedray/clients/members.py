"""The members of a secure sum that the clients of one actor are, for one attempt of one round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Final

from fedray.aggregation.exact import ExactSum
from fedray.aggregation.sealed import SealedSum
from fedray.clients.messages import Inquiry, PartialSum, RoundTask
from fedray.data.records import ClientData, Federation
from fedray.errors import FedrayError
from fedray.exchange import Exchange
from fedray.parameters import Vector
from fedray.secure.protocol import Member, Order, Protocol, Refused, Ring

#: The phase in which a member gets the inbox that its mask follows from.
TRAIN: Final = "train"


#: Makes a client's members, each for the attempt and the number that it is given.
Enrolled = Callable[[Order, int], Member]


def enrolled(protocol: Protocol, data: Federation | ClientData) -> Callable[[int], Enrolled]:
    """What makes the members of a client, by its index; a silo that holds its own records, or the first of many clients, is enrolled at once.

    Raises:
        ConfigError: what the silo has of its own does not fit.
    """
    if isinstance(data, Federation):
        makers = cache(lambda client: protocol.enrol(data.names[client]))
        makers(0)  # what does not fit is said before the first round
        return makers
    own = protocol.enrol(data.name)
    return lambda client: own


class Members:
    """The members of this actor's clients.

    They are made when their client is asked for the first time in an attempt, and forgotten with their secrets when another begins. Rounds
    and attempts only go on, and a client that has helped to take the masks off in a round takes part in no other attempt of it.

    Args:
        makers: see :func:`enrolled`.
        job: the run's name in the privacy ledgers.
        least: updates below which nobody may read a sum.
        exchange: the exchanged fields.
    """

    def __init__(self, makers: Callable[[int], Enrolled], job: str, least: int, exchange: Exchange) -> None:
        self._makers, self._job, self._least, self._exchange = makers, job, least, exchange
        self._order: Order | None = None
        self._members: dict[int, Member] = {}
        self._inboxes: dict[int, bytes] = {}
        self._revealed: set[int] = set()  # clients that have, in this round

    def consult(self, task: RoundTask, phase: str, messages: Mapping[int, Inquiry]) -> dict[int, bytes | str]:
        """What clients' members answer in a phase, or why they refuse, by the client's index."""
        order, found = self._order_of(task), dict[int, bytes | str]()
        for client, (number, message) in messages.items():
            try:
                if phase == TRAIN:
                    self._member(order, client)
                    self._inboxes[client], found[client] = message, b""
                else:
                    found[client] = self._asked(order, client, number).answer(phase, message)
            except FedrayError as error:
                found[client] = str(error)
        return found

    def ready(self, task: RoundTask, clients: Sequence[int], globals_: Vector) -> dict[int, str]:
        """Take what the clients' masks follow from, before they train from ``globals_``; returns why some cannot be masked, by index."""
        order, model, refused = self._order_of(task), hashlib.sha256(globals_.data).digest(), dict[int, str]()
        for client in clients:
            try:
                member = self._member(order, client)
                if client not in self._inboxes:
                    raise Refused("it was told to train before the others' messages came, so its update could not be masked.")
                member.ready(self._inboxes.pop(client), model)
            except FedrayError as error:
                refused[client] = str(error)
        return refused

    def mask(self, client: int, values: Ring) -> None:
        """Mask a sum to which a client's update has just been added."""
        self._members[client].mask(values)

    def leaving(self, part: PartialSum) -> PartialSum:
        """What leaves the actor of a part whose clients have masked it."""
        if not part.clients:
            return part
        assert isinstance(part.total, ExactSum)
        members = [self._members[client] for client in part.clients]
        sealed = members[0].seal(part.total.values, members)
        return part if sealed is None else replace(part, total=SealedSum.of(part.total, sealed), travelled=sealed.nbytes)

    def _asked(self, order: Order, client: int, number: int) -> Member:
        if order != self._order:  # an earlier attempt's secrets go first
            if self._order is not None:
                if (order.round, order.attempt) <= (self._order.round, self._order.attempt):
                    raise Refused(f"round {order.round + 1}, attempt {order.attempt + 1}, is over.")
                now = {index for index, member in self._members.items() if member.revealed}
                self._revealed = self._revealed | now if order.round == self._order.round else set()
            self._order, self._members, self._inboxes = order, {}, {}
        if client in self._revealed:
            raise Refused(
                f"it has helped to read a sum of round {order.round + 1} already; the sums of two attempts could be compared to read one update."
            )
        if client not in self._members:
            self._members[client] = self._makers(client)(order, number)
        return self._members[client]

    def _member(self, order: Order, client: int) -> Member:
        if order != self._order or client not in self._members:
            raise Refused("its actor holds no keys of it for this round.")
        return self._members[client]

    def _order_of(self, task: RoundTask) -> Order:
        return Order(self._job, task.round, task.attempt, self._least, task.agreed(self._exchange))
