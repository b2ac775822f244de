"""Encrypted sums: what leaves an actor is encrypted, whoever adds it up has no key, and one client opens the total.

All clients of a consortium hold the same secret key. The phases:

    nonce      each member says a number that it has drawn for the attempt, by which it is named
    (training) each trains; what leaves its actor is encrypted, with marks by which sums are known (:mod:`fedray.secure.marks`)
    confirm    each is told whose updates are in the sum (the survivors), and confirms it
    open       one member is sent the sum and the confirmations, and answers what it decrypts

A member confirms one sum of a round, and opens no other. It does so if more than two thirds of the survivors have confirmed the sum, and if
its marks say that it is the sum of all of these updates, each once, of this attempt, by members that trained from the same globals. So a driver
cannot have a single update decrypted, nor a sum in which one counts for more than others. Whoever holds the key and the driver's messages
reads every update. A client that opens a sum can say anything in its place, and the driver cannot tell.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedray.errors import ConfigError
from fedray.secure.ciphertexts import Scheme, tenseal
from fedray.secure.consortium import read_consortium_key
from fedray.secure.encrypted_member import CONFIRMATION, NONCE, EncryptedMember, quorum
from fedray.secure.keyfiles import check_absolute
from fedray.secure.protocol import Ask, Conduct, Correction, GivenUp, Member, Order, Protocol, Ring, TooFew, Total, Train, enough
from fedray.secure.wire import pack

#: Members that are asked in turn to open a sum, if some do not answer.
_OPENERS = 3
_TRUST = (
    "all clients hold one secret key, and the driver holds none: every client is trusted not to collude with the driver, because one that "
    "gives it the key lets it read all updates (with that exception, no client decrypts anything but the sum of a cohort that its clients "
    "have confirmed); the client that opens a sum is trusted to say what it decrypts; whoever can run code in the Ray cluster is trusted "
    "not to read the memory of clients' processes nor the file of the key"
)


@dataclass(frozen=True)
class Encrypted(Protocol, ABC):
    """A protocol of encrypted sums; see the module's text.

    Attributes:
        key: path of the consortium's secret key on each client's machine.
        fewest: clients whose sum a client opens at the least, at least 3; ``cohort.min_clients`` counts if it is more.
        patience: seconds that a phase waits for answers.
        scheme: that updates are encrypted with.
    """

    key: str
    fewest: int = 5
    patience: float = 60.0
    scheme: ClassVar[Scheme]

    @property
    def trust(self) -> str:
        """See :attr:`Protocol.trust`."""
        return _TRUST

    @property
    def encrypts(self) -> bool:
        """See :attr:`Protocol.encrypts`."""
        return True

    @property
    def expansion(self) -> int:
        """See :attr:`Protocol.expansion`: for 8 bytes two polynomials' coefficients of 8 bytes, in two slots (BFV) or one of half as many (CKKS)."""
        return 4

    def __post_init__(self) -> None:
        for key, value, right, should in (
            ("fewest", self.fewest, self.fewest >= 3, "at least 3"),
            ("patience", self.patience, self.patience > 0.0, "above 0"),
        ):
            if not right:
                raise ConfigError(f"secure.{key}: should be {should}, but is {value:g}.")
        check_absolute("secure.key", self.key)

    def check(self, least: int, clients: int) -> None:
        """Refuse cohorts that are too small for any sum, or too large for the plaintexts and for the noise, and a missing library."""
        tenseal(self.scheme.name)
        if clients < self.fewest:
            raise ConfigError(
                f"secure.fewest: no sum of fewer than {self.fewest} clients is opened, but a cohort has {clients} at the most; draw more clients."
            )
        if clients > self.scheme.most:
            raise ConfigError(
                f"secure.kind: {self.scheme.name} adds up {self.scheme.most} clients at the most, above which sums could be wrong, but a cohort has "
                f"{clients}; draw fewer clients, or use secure.kind=secagg."
            )

    def terms(self) -> dict[str, Any]:
        """See :meth:`Protocol.terms`; where the key lies is each client's own affair."""
        scheme = {"degree": self.scheme.degree, "moduli": list(self.scheme.moduli)}
        return {type(self).__name__: {"fewest": self.fewest, "patience": self.patience, **scheme}}

    def member(self, order: Order, number: int) -> EncryptedMember:
        """A client's half, whose number means nothing.

        Raises:
            ConfigError: the consortium's key cannot be read.
        """
        key = read_consortium_key(type(self.scheme), self.key)
        return EncryptedMember(self.scheme, key, order, max(self.fewest, order.least))

    def enrol(self, client: str) -> Callable[[Order, int], Member]:
        """See :meth:`Protocol.enrol`.

        Raises:
            ConfigError: the consortium's key cannot be read.
        """
        read_consortium_key(type(self.scheme), self.key)
        return self.member

    def conduct(self, order: Order, members: int) -> Conduct:
        """The driver's half. An answer that is malformed counts as none."""
        least = max(self.fewest, order.least)
        said = yield Ask("nonce", dict.fromkeys(range(members), b""))
        numbers = {nonce: number for number, nonce in said.items() if 0 <= number < members and len(nonce) == NONCE}
        enough("Encrypted sum", "nonce", numbers, members, least)
        said = yield Train(dict.fromkeys(numbers.values(), b""))
        survivors = sorted(nonce for nonce, number in numbers.items() if number in said)
        enough("Encrypted sum", "training", survivors, members, least)
        named = b"".join(survivors)
        said = yield Ask("confirm", dict.fromkeys((numbers[nonce] for nonce in survivors), named))
        confirmed = {
            place: said[numbers[nonce]] for place, nonce in enumerate(survivors) if len(said.get(numbers[nonce], b"")) == CONFIRMATION
        }
        enough("Encrypted sum", "confirm", confirmed, members, quorum(len(survivors)), GivenUp if confirmed else TooFew)
        sealed = (yield Total())[0]
        message = pack({0: pack(confirmed), 1: sealed})
        for place in list(confirmed)[:_OPENERS]:
            opener = numbers[survivors[place]]
            said = yield Ask("open", {opener: message})
            if opener in said:
                return _added(said[opener])
        raise GivenUp("Encrypted sum: no client that was asked to open the sum has answered.")


def _added(opened: bytes) -> Correction:
    def correct(values: Ring) -> None:
        if len(opened) != values.nbytes:
            raise GivenUp("Encrypted sum: what the client that opened it has answered has another length than the sum.")
        values += np.frombuffer(opened, dtype="<i8")

    return correct
