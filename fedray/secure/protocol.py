"""A round of several phases: what a protocol's half at the driver and its half at a client are.

The driver's half is a generator. It yields :class:`Ask`, and is sent the answers of the members that gave one, or it yields :class:`Train`
once, and is sent what the members said whose updates are in the sum. It returns what is to be added to the sum, if anything. The client's
half is a :class:`Member`, which lives in the client's process for one attempt of one round and keeps its secrets there.

Sums are vectors of 64-bit integers modulo 2**64. What leaves an actor is such a vector, to which members have added their masks, or, where
the protocol seals sums, a :class:`SealedValues` in its place, which can be added to others and not be read. The driver's half gets the sealed sum by
yielding :class:`Total`. In both cases the sum after the correction has the bytes of a sum that nobody has hidden.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray import components
from fedray.choices import Choice
from fedray.errors import ConfigError, FedrayError

#: A sum of updates, modulo 2**64, int64 ``[size]``.
Ring = npt.NDArray[np.int64]
#: Bytes by a member's number.
Messages = Mapping[int, bytes]
#: Changes the sum of all members that trained, in place, so that it is what it would be without masks; it may raise :class:`TooFew` before.
Correction = Callable[[Ring], None]


class Refused(FedrayError):
    """A member does not answer: what it is asked does not follow from what it was asked before, or would tell more than a sum."""


class TooFew(FedrayError):
    """So few members are left that the protocol does not let the driver read the sum of this attempt."""


class GivenUp(TooFew):
    """So few members are left after some have said what takes masks off. They take part in no other attempt of the round."""


def enough(protocol: str, phase: str, left: Sized, members: int, needed: int, error: type[TooFew] = TooFew) -> None:
    """Check that so many members as are needed were left after a phase.

    Raises:
        TooFew: they were not; or ``error``.
    """
    if len(left) < needed:
        raise error(f"{protocol}: of {members} members {len(left)} were left after the phase '{phase}', and it takes {needed}.")


@dataclass(frozen=True)
class Order:
    """One attempt of one round, as the driver and each client know it by themselves.

    Attributes:
        job: the run's name in the privacy ledgers.
        round: number of the round, from 0.
        attempt: how often the round was begun before.
        least: members below which nobody may read a sum (``cohort.min_clients``).
        terms: hash of what decides about the updates: the exchanged fields, the stages, and the plan for whole clients.
    """

    job: str
    round: int
    attempt: int
    least: int
    terms: str

    def digest(self) -> bytes:
        """SHA-256 of the order as JSON data, 32 bytes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()


@dataclass(frozen=True)
class Ask:
    """Members are asked something; who does not answer is not asked again.

    Attributes:
        phase: name of what they are asked.
        messages: for each member that is asked, by its number.
    """

    phase: str
    messages: Messages


@dataclass(frozen=True)
class Train:
    """Members train, and their updates are added up. Members that are not in it do not train.

    Attributes:
        inbox: for each member that trains, by its number, what it needs for its mask.
    """

    inbox: Messages


@dataclass(frozen=True)
class Total:
    """The sum is wanted as it has come, after :class:`Train`; it is the one message that is sent back, with the number 0."""


Conduct = Generator[Ask | Train | Total, Messages, Correction | None]


class SealedValues(ABC):
    """What leaves an actor in place of a sum that its members have sealed. It can be pickled, and added up by whoever holds it."""

    @abstractmethod
    def add(self, other: SealedValues) -> None:
        """Add what another holds.

        Raises:
            FedrayError: the two do not go together.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that it takes on its way."""

    @abstractmethod
    def data(self) -> bytes:
        """What it holds, for the member that opens it."""


class Member(ABC):
    """A client's half of a protocol in one attempt of one round. It refuses what is out of order, and answers no phase twice.

    Attributes:
        revealed: whether it has said what takes masks off. Its client then takes part in no other attempt of the round: from the sums of two
            attempts that differ by one client, the driver could read this client's update.
    """

    revealed: bool = False

    @abstractmethod
    def answer(self, phase: str, message: bytes) -> bytes:
        """What the member says in a phase.

        Raises:
            Refused: with the reason.
        """

    @abstractmethod
    def ready(self, inbox: bytes, model: bytes) -> None:
        """Take what the mask follows from, before the member trains; once.

        Args:
            inbox: of :class:`Train`.
            model: SHA-256 of the globals that the member trains from, 32 bytes. Members that train from others have masks that do not cancel.

        Raises:
            Refused: with the reason.
        """

    @abstractmethod
    def mask(self, values: Ring) -> None:
        """Add this member's mask to a sum to which its update has just been added; once, after :meth:`ready`.

        Args:
            values: the sum, modulo 2**64.

        Raises:
            Refused: the member has no mask; the sum must not leave the process.
        """

    def seal(self, values: Ring, members: Sequence[Member]) -> SealedValues | None:
        """What leaves the actor in place of a sum of these members' updates; None: the sum itself, which they have masked.

        Args:
            values: the sum.
            members: those whose updates are in it, this one among them.

        Raises:
            Refused: the update of one was not to be in it.
        """
        return None


class Protocol(ABC):
    """A protocol; subclasses are dataclasses of the arguments in the config."""

    @property
    @abstractmethod
    def trust(self) -> str:
        """What has to be trusted for the claim that the driver reads nothing but sums; a clause for privacy statements."""

    @property
    def identified(self) -> bool:
        """Whether each client has an identity of its own, so that a cohort's members learn which clients take part."""
        return False

    @property
    def encrypts(self) -> bool:
        """Whether all clients hold one key, with which each could read whatever the driver gets."""
        return False

    @property
    def approximate(self) -> bool:
        """Whether sums may differ from plain ones."""
        return False

    @property
    def expansion(self) -> int:
        """Times the bytes of a sum that what leaves an actor takes."""
        return 1

    @property
    def patience(self) -> float:
        """Seconds that a phase waits for answers."""
        return 60.0

    def check(self, least: int, clients: int) -> None:  # noqa: B027  (most protocols have nothing to refuse)
        """Refuse arguments that do not fit the run.

        Args:
            least: ``cohort.min_clients``.
            clients: members of the largest cohort.

        Raises:
            ConfigError: with what to change.
        """

    @abstractmethod
    def conduct(self, order: Order, members: int) -> Conduct:
        """The driver's half, for members with the numbers from 0 to ``members - 1``.

        Raises:
            TooFew: too few members are left; :class:`GivenUp` where some have revealed by then what takes masks off.
        """

    @abstractmethod
    def member(self, order: Order, number: int) -> Member:
        """A client's half, for the member with this number."""

    def enrol(self, client: str) -> Callable[[Order, int], Member]:
        """What makes the halves of the client with this name; asked once in the client's process, before the first round.

        Raises:
            ConfigError: what the client has of its own does not fit.
        """
        return self.member

    def terms(self) -> dict[str, Any]:
        """The protocol's constants for receipts, as JSON data."""
        return {type(self).__name__: dict(vars(self))}


def make_protocol(part: Choice) -> Protocol | None:
    """The protocol of the config's ``secure`` section; None for ``none``.

    Raises:
        ConfigError: unknown protocol, wrong arguments, or no protocol.
    """
    path = components.PROTOCOLS.path
    if part.kind == "none":
        if part.arguments:
            raise ConfigError(f"secure.{next(iter(part.arguments))}: kind is none, so it would do nothing; take it out, or name a kind.")
        return None
    made = components.made(components.PROTOCOLS, part.kind, part.arguments)
    if not isinstance(made, Protocol):
        raise ConfigError(f"{path}: '{part.kind}' is not derived from fedray.secure.protocol.Protocol.")
    return made
