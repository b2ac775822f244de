"""A client's half of secure aggregation: what it says in each phase, and what it refuses.

The phases and the masks are described in :mod:`fedray.secure.secagg`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedray.secure.masks import HASH, add_masks, agreed_key
from fedray.secure.protocol import Member, Order, Refused, Ring
from fedray.secure.roster import Keys, Roster
from fedray.secure.shamir import SHARE, share
from fedray.secure.signing import Signer
from fedray.secure.turns import Turns
from fedray.secure.wire import pack, unpack, unpack_set

PHASES = ("keys", "shares", "train", "consistency", "unmask")
_NONCE, _TAG = 12, 16
#: Bytes of a member's two shares, sealed: a nonce, a share of b_u, a share of s_u, a tag.
SEALED = _NONCE + 2 * SHARE + _TAG


@dataclass(repr=False)
class _Secrets:
    """A member's secrets, made for one attempt: its two X25519 keys, its own mask's key, and the keys of its channels by member."""

    channel: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    pairs: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    channels: dict[int, bytes] = field(default_factory=dict)

    def forget(self) -> None:
        """Have no secrets any more."""
        vars(self).clear()


class SecAggMember(Member):
    """A client's half of :class:`fedray.secure.secagg.SecAgg`.

    Once it has refused something, it refuses everything. It cannot be pickled or copied, and its ``repr`` reveals no secret.

    Args:
        make_roster: what follows from an attempt and all members' keys, by the arguments that the client knows itself.
        order: the attempt.
        number: the member's number.
        signer: the client's identity; None if clients have none.
    """

    _roster: Roster
    _near: frozenset[int]
    _model: bytes
    _survivors: frozenset[int]
    _confirmation: bytes

    def __init__(self, make_roster: Callable[[Order, bytes], Roster], order: Order, number: int, signer: Signer | None = None) -> None:
        self._make_roster, self._order, self._number, self._signer = make_roster, order, number, signer
        self._answers = {"keys": self._advertise, "shares": self._share, "consistency": self._confirm, "unmask": self._unmask}
        self._turns = Turns(PHASES, f"Secure aggregation: member {number}", order, self._forget)
        self._secrets = _Secrets()
        self._masks: tuple[Sequence[bytes], Sequence[bytes]] | None = None  # keys of the masks that are added, and that are subtracted
        channel, pairs = (key.public_key().public_bytes_raw() for key in (self._secrets.channel, self._secrets.pairs))
        self._keys = Keys.signed(channel, pairs, order, number, signer)
        self._held: dict[int, tuple[bytes, bytes]] = {}  # shares of b_v and of s_v by v, of all that have shared, itself included

    def answer(self, phase: str, message: bytes) -> bytes:
        """See :meth:`Member.answer`."""
        return self._turns.answer(self._answers, phase, message)

    def ready(self, inbox: bytes, model: bytes) -> None:
        """See :meth:`Member.ready`."""
        with self._turns.take("train"):
            own, roster, number = self._secrets, self._roster, self._number
            if len(model) != HASH:
                raise ValueError(f"the hash of the globals has {len(model)} bytes")
            sealed = unpack(inbox, SEALED)
            if strangers := sealed.keys() - own.channels.keys():
                raise ValueError(f"a share came from member {min(strangers)}, with which it shares nothing")
            if len(sealed) + 1 < roster.graph.threshold:
                raise ValueError(
                    f"only {len(sealed) + 1} in its neighbourhood have shared their secrets, and it takes {roster.graph.threshold}"
                )
            for other, data in sealed.items():
                self._held[other] = self._opened(other, data)
            self._model = model
            keys = {v: agreed_key(own.pairs, roster.keys[v].mask, b"mask", roster.view + model, (number, v)) for v in sealed}
            self._masks = [own.seed, *(k for v, k in keys.items() if v > number)], [k for v, k in keys.items() if v < number]
            own.forget()  # the others have shares of what they need

    def mask(self, values: Ring) -> None:
        """See :meth:`Member.mask`."""
        masks, self._masks = self._masks, None
        if masks is None:
            raise Refused(f"Secure aggregation: member {self._number} has no mask, or has added it before.")
        add_masks(values, *masks)

    def _forget(self) -> None:
        self._secrets.forget()
        self._held.clear()

    def _advertise(self, message: bytes) -> bytes:
        """Its public keys."""
        if message:
            raise ValueError("the message is too long")
        return self._keys.written()

    def _share(self, message: bytes) -> bytes:
        """Given all public keys: its shares, sealed to each neighbour."""
        own, number = self._secrets, self._number
        self._roster = roster = self._make_roster(self._order, message)
        if roster.keys.get(number) != self._keys:
            raise ValueError("its own keys are not among those of all members, as it has sent them")
        if len(roster.keys) < roster.least:
            raise ValueError(f"only {len(roster.keys)} members have keys, and it takes {roster.least}")
        if self._signer is not None:
            for other, keys in roster.keys.items():
                keys.check(self._order, other, self._signer)
        points = [other + 1 for other in roster.graph.near(number)]
        seeds = share(own.seed, roster.graph.threshold, points)
        pairs = share(own.pairs.private_bytes_raw(), roster.graph.threshold, points)
        self._held[number] = seeds[number + 1], pairs[number + 1]
        sealed = {}
        for other in roster.graph.near(number) - {number}:
            key = own.channels[other] = agreed_key(own.channel, roster.keys[other].channel, b"channel", roster.view, (number, other))
            nonce = secrets.token_bytes(_NONCE)
            sealed[other] = nonce + AESGCM(key).encrypt(nonce, seeds[other + 1] + pairs[other + 1], roster.channel(number, other))
        return pack(sealed)

    def _opened(self, other: int, data: bytes) -> tuple[bytes, bytes]:
        """The two shares that a member has sealed for this one."""
        cipher = AESGCM(self._secrets.channels[other])
        try:
            both = cipher.decrypt(data[:_NONCE], data[_NONCE:], self._roster.channel(other, self._number))
        except InvalidTag:
            raise ValueError(f"what should be member {other}'s share was not sealed by it for this member in this attempt") from None
        return both[:SHARE], both[SHARE:]

    def _confirm(self, message: bytes) -> bytes:
        """Given the survivors: the hash of the globals that it trained from, and its signature of both if it has an identity."""
        survivors, roster = frozenset(unpack_set(message)), self._roster
        if strangers := survivors - roster.keys.keys():
            raise ValueError(f"member {min(strangers)} is said to be in the sum, but has no keys")
        if self._number not in survivors:
            raise ValueError("it is said not to be in the sum, for which it has trained")
        if len(survivors) < roster.least:
            raise ValueError(f"the sum is said to be that of {len(survivors)} members, and it takes {roster.least}")
        if silent := (survivors & roster.graph.near(self._number)) - self._held.keys():
            raise ValueError(f"member {min(silent)} is said to be in the sum, but has not shared its secrets")
        self._survivors = survivors
        signature = b"" if self._signer is None else self._signer.own.sign(roster.agreement(survivors, self._model))
        self._confirmation = self._model + signature
        return self._confirmation

    def _unmask(self, message: bytes) -> bytes:
        """Given all confirmations: of each survivor the share of b_v, of each other member that shared its secrets the share of s_v."""
        roster, confirmed = self._roster, unpack(message, len(self._confirmation))
        if confirmed.get(self._number) != self._confirmation:
            raise ValueError("its own confirmation is not among those of all members, as it has sent it")
        if len(confirmed) < roster.quorum:
            raise ValueError(f"only {len(confirmed)} members have confirmed whose sum it is, and it takes {roster.quorum}")
        for other, confirmation in confirmed.items():
            if other not in self._survivors:
                raise ValueError(f"member {other} is said to have confirmed a sum that it is not in")
            if confirmation[:HASH] != self._model:
                raise ValueError(f"member {other} has trained from other globals")
            if self._signer is not None:
                agreement, claim = roster.agreement(self._survivors, self._model), f"the confirmation of member {other}"
                self._signer.check(roster.keys[other].identity, confirmation[HASH:], agreement, claim)
        shares = {v: of_seed if v in self._survivors else of_pairs for v, (of_seed, of_pairs) in self._held.items()}
        self._held.clear()
        self.revealed = True
        return pack(shares)

    def __repr__(self) -> str:
        return f"SecAggMember({self._number})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SecAggMember holds the keys of masks and cannot be pickled or copied; make a new one where it is needed.")
