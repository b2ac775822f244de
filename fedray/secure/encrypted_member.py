"""A client's half of encrypted sums: what it says in each phase, and what it refuses.

The phases are described in :mod:`fedray.secure.encrypted`.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NoReturn

from fedray.secure.ciphertexts import Ciphertexts, Scheme
from fedray.secure.consortium import ConsortiumKey
from fedray.secure.marks import MARKS, derived
from fedray.secure.protocol import Member, Order, Ring
from fedray.secure.turns import Turns
from fedray.secure.wire import unpack

PHASES = ("nonce", "train", "mask", "seal", "confirm", "open")
#: Bytes of a member's nonce, and of a confirmation.
NONCE, CONFIRMATION = 16, 32


def quorum(survivors: int) -> int:
    """Confirmations that a sum of so many members takes: more than two thirds of them. As each member confirms one sum of a round, two sums
    that are opened have so few members in common that their difference tells no single update.
    """
    return 2 * survivors // 3 + 1


class EncryptedMember(Member):
    """A client's half of :class:`fedray.secure.encrypted.Encrypted`. Once it has refused something, it refuses everything.

    Args:
        scheme: that updates are encrypted with.
        key: of the consortium.
        order: the attempt.
        fewest: members whose sum it opens at the least.
    """

    _survivors: bytes

    def __init__(self, scheme: Scheme, key: ConsortiumKey, order: Order, fewest: int) -> None:
        self._scheme, self._key, self._order, self._fewest = scheme, key, order, fewest
        self._nonce, self._context = secrets.token_bytes(NONCE), order.digest()
        self._turns = Turns(PHASES, "a member", order, lambda: None)  # the consortium's key is not its own to forget
        self._answers: dict[str, Callable[[bytes], bytes]] = {
            "nonce": lambda message: self._nonce,
            "confirm": self._confirm,
            "open": self._open,
        }

    def __reduce__(self) -> NoReturn:
        raise TypeError("a member of an encrypted sum does not leave the client's process.")

    def answer(self, phase: str, message: bytes) -> bytes:
        """See :meth:`Member.answer`."""
        return self._turns.answer(self._answers, phase, message)

    def ready(self, inbox: bytes, model: bytes) -> None:
        """See :meth:`Member.ready`."""
        with self._turns.take("train"):
            self._context += model

    def mask(self, values: Ring) -> None:
        """See :meth:`Member.mask`; the sum is encrypted when it leaves the actor, with the members that have called this."""
        with self._turns.take("mask"):
            pass

    def seal(self, values: Ring, members: Sequence[Member]) -> Ciphertexts:
        """See :meth:`Member.seal`."""
        own = []
        for member in members:
            assert isinstance(member, EncryptedMember)
            with member._turns.take("seal"):
                own.append(member._mark(member._nonce))
        numbers = self._scheme.encode(values)
        return self._scheme.encrypt(self._key.context, numbers, self._scheme.marks(numbers, self._vectors(), own))

    def _mark(self, nonce: bytes) -> bytes:
        return derived(self._key.secret, b"mark", self._context, nonce)

    def _vectors(self) -> bytes:
        return derived(self._key.secret, b"vectors", self._context)

    def _confirmation(self, nonce: bytes, survivors: bytes) -> bytes:
        return derived(self._key.secret, b"confirm", self._context, nonce, survivors)

    def _confirm(self, message: bytes) -> bytes:
        """Confirm that a sum is that of its members, which are named by their nonces."""
        named = split(message)
        if self._nonce not in named:
            raise ValueError("it is said not to be in the sum, for which it has trained")
        if len(named) < self._fewest:
            raise ValueError(f"the sum is said to be that of {len(named)} members, and it takes {self._fewest}")
        self._survivors, self.revealed = message, True
        return self._confirmation(self._nonce, message)

    def _open(self, message: bytes) -> bytes:
        """Decrypt the sum that it has confirmed, if enough others have confirmed it as well, and if it is the sum that it is said to be."""
        named = split(self._survivors)
        sent = unpack(message)
        if sent.keys() != {0, 1}:
            raise ValueError("a sum is opened with its confirmations")
        confirmed, ciphertexts = unpack(sent[0], CONFIRMATION), unpack(sent[1])
        for place, confirmation in confirmed.items():
            if place >= len(named) or not hmac.compare_digest(confirmation, self._confirmation(named[place], self._survivors)):
                raise ValueError(
                    "a member has not confirmed the sum that this one has, has trained from other globals, or holds another secure.key"
                )
        if len(confirmed) < quorum(len(named)):
            raise ValueError(f"only {len(confirmed)} of {len(named)} members have confirmed the sum, and it takes {quorum(len(named))}")
        found = self._scheme.decrypt(self._key.context, list(ciphertexts.values()))
        numbers, marks = found[:-MARKS], found[-MARKS:]
        if not self._scheme.agree(marks, self._scheme.marks(numbers, self._vectors(), [self._mark(nonce) for nonce in named])):
            raise ValueError(
                "what it was to open is not the sum of the members' updates, each once, or they have trained from other globals or hold another "
                "secure.key"
            )
        return self._scheme.decode(numbers).astype("<i8").tobytes()


def split(survivors: bytes) -> list[bytes]:
    """Return the nonces of members that were put one after another.

    Raises:
        ValueError: they are not in ascending order, or cut off.
    """
    nonces = [survivors[at : at + NONCE] for at in range(0, len(survivors), NONCE)]
    if not nonces or len(nonces[-1]) < NONCE or any(a >= b for a, b in pairwise(nonces)):
        raise ValueError("the members of the sum are not named in ascending order")
    return nonces
