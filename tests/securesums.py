"""The driver's loop for a protocol without a driver: members that drop out where a test wants, and messages that it may change."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedray.secure.protocol import Ask, Member, Order, Protocol, Refused, Ring, SealedValues, Total, Train
from fedray.secure.secagg_member import SecAggMember

ORDER = Order("run", 3, 0, 1, "terms")
MODEL = bytes(range(32))
#: What a driver sends a member in a phase: (phase, number, message) to the message that arrives.
Tamper = Callable[[str, int, bytes], bytes]


@dataclass
class Outcome:
    """What came of an attempt.

    Attributes:
        total: the sum after the correction.
        masked: the sum as the members masked it.
        survivors: numbers of the members in it.
        refusals: by number of the member that refused.
        said: all answers, by phase and number.
        told: all messages to members, by phase and number.
    """

    total: Ring
    masked: Ring
    survivors: list[int]
    refusals: dict[int, str]
    said: dict[str, dict[int, bytes]]
    told: dict[str, dict[int, bytes]]


@dataclass
class Attempt:
    """One attempt of one round.

    Attributes:
        protocol: whose halves are played.
        updates: int64 ``[members, size]``.
        drops: by phase, members that do not answer it any more; for "train", members whose update does not arrive.
        order: of the driver and of all members.
        models: hash of the globals by number of the member, if it is not ``MODEL``.
        tamper: what the driver does to messages to members.
        arguments: of the protocol's ``member``, by number.
    """

    protocol: Protocol
    updates: Ring
    drops: Mapping[str, Collection[int]] = field(default_factory=dict)
    order: Order = ORDER
    models: Mapping[int, bytes] = field(default_factory=dict)
    tamper: Tamper = lambda phase, number, message: message
    arguments: Mapping[int, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members: list[Member] = [self.protocol.member(self.order, i, *self.arguments.get(i, ())) for i in range(len(self.updates))]
        self.said: dict[str, dict[int, bytes]] = {}
        self.told: dict[str, dict[int, bytes]] = {}
        self.refusals: dict[int, str] = {}
        self.gone: set[int] = set()
        self.sealed: SealedValues | None = None

    def run(self) -> Outcome:
        """Play it.

        Raises:
            TooFew: as the driver's half.
        """
        conduct = self.protocol.conduct(self.order, len(self.updates))
        total = np.zeros(self.updates.shape[1], dtype=np.int64)
        survivors: list[int] = []
        step = next(conduct)
        while True:
            if isinstance(step, Total):
                step = conduct.send({0: b"" if self.sealed is None else self.sealed.data()})
                continue
            phase = step.phase if isinstance(step, Ask) else "train"
            messages = step.messages if isinstance(step, Ask) else step.inbox
            self.gone |= set(self.drops.get(phase, ()))
            self.told[phase], self.said[phase] = dict(messages), {}
            for number, message in messages.items():
                if number in self.gone:
                    continue
                try:
                    self.said[phase][number] = self.one(phase, number, self.tamper(phase, number, message), total)
                except Refused as error:
                    self.refusals[number] = str(error)
                    self.gone.add(number)
            if isinstance(step, Train):
                survivors, masked = sorted(self.said[phase]), total.copy()
            try:
                step = conduct.send(self.said[phase])
            except StopIteration as stop:
                if stop.value is not None:
                    stop.value(total)
                return Outcome(total, masked, survivors, self.refusals, self.said, self.told)

    def one(self, phase: str, number: int, message: bytes, total: Ring) -> bytes:
        """What one member says in a phase; in "train" it adds its masked update to the total."""
        if phase != "train":
            return self.members[number].answer(phase, message)
        masked = self.updates[number].copy()
        self.members[number].ready(message, self.models.get(number, MODEL))
        self.members[number].mask(masked)
        sealed = self.members[number].seal(masked, [self.members[number]])
        if sealed is None:
            total += masked
        elif self.sealed is None:
            self.sealed = pickle.loads(pickle.dumps(sealed))
        else:
            self.sealed.add(pickle.loads(pickle.dumps(sealed)))
        return b""


def random_updates(members: int, size: int, seed: int) -> Ring:
    """int64 ``[members, size]``, uniform over the whole ring."""
    return np.random.default_rng(seed).integers(-(2**63), 2**63, (members, size), dtype=np.int64)


def is_shut(member: Member) -> bool:
    """Whether a member refuses whatever it is asked."""
    assert isinstance(member, SecAggMember)
    for phase in ("keys", "shares", "consistency", "unmask"):
        try:
            member.answer(phase, b"")
            return False
        except Refused as error:
            if "refused before" not in str(error):
                return False
    return True
