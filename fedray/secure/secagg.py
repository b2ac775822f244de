"""Secure aggregation: the driver reads the sum of many members' updates, and no single one.

Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning, figure 4, with the consistency check of active
adversaries; from 100 members up with the graph of Bell et al. 2020 (:mod:`fedray.secure.graph`). Each member u adds to its update

    PRG(b_u) + sum over neighbours v > u of PRG(k_uv) - sum over neighbours v < u of PRG(k_uv)    (modulo 2**64)

where b_u is a secret of its own, and k_uv is a key that u and v have agreed on. In the sum of all, the pairwise masks cancel. The phases:

    keys         each member makes two X25519 keys, one for channels to other members and one for masks (s_u)
    shares       each gets all public keys, and shares b_u and s_u among its neighbourhood, each share sealed to its receiver
    (training)   each gets the shares that are for it, trains, and masks its update
    consistency  each is told whose updates are in the sum (the survivors), and confirms it
    unmask       each gets all confirmations, and reveals its shares of b_u for survivors, and of s_u for members that dropped out

From them the driver computes the masks that did not cancel. Who has both b_u and s_u can read the update of u, so a member gives a share of
one of them at most. The keys k_uv are bound to the globals that the members trained from: masks of members that were sent different globals
do not cancel (Pasquini, Francati & Ateniese 2022, Eluding Secure Aggregation in Federated Learning via Model Inconsistency).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedray.errors import ConfigError
from fedray.secure.graph import make_graph
from fedray.secure.identities import check_paths, read_signer
from fedray.secure.masks import HASH, add_masks, agreed_key
from fedray.secure.protocol import Ask, Conduct, Correction, GivenUp, Messages, Order, Protocol, Ring, TooFew, Train, enough
from fedray.secure.roster import Roster, distinct, read_keys, view
from fedray.secure.secagg_member import SEALED, SecAggMember
from fedray.secure.shamir import SHARE, reconstruct
from fedray.secure.signing import SIGNATURE, Signer
from fedray.secure.wire import pack, pack_set, unpack

_UNSIGNED = (
    "the driver is trusted to follow the protocol, to pass members' keys on unchanged (no identity signs them, so a driver that puts its "
    "own in their place could read single updates), and to collude with no more of a cohort's members than the protocol's settings "
    "allow; whoever can run code in the Ray cluster is trusted not to read the memory of clients' processes"
)
_SIGNED = (
    "the driver is trusted to collude with no more of a cohort's members than the protocol's settings allow (each member signs its keys and "
    "whose sum it unmasks by an identity on the clients' own lists, so a driver that puts its own keys in their place, or tells members "
    "different things, is refused; a cohort's members learn which clients take part); whoever can run code in the Ray cluster is trusted "
    "not to read the memory of clients' processes, nor their private keys, and not to write to their lists of identities"
)


@dataclass(frozen=True)
class SecAgg(Protocol):
    """Masks that cancel in the sum of a cohort, and can be taken off if members drop out.

    Source: Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning; Bell et al. 2020 (sparse graphs)

    Attributes:
        threshold: share of the members that have to stay to the end, more than a half; also that of the shares that give a secret back.
        fewest: members whose sum a client lets the driver read at the least, at least 3; ``cohort.min_clients`` counts if it is more.
        complete: members below which each shares its secrets with all others.
        dropping: share of the members that may drop out so that sparse graphs do not fail more often than once in 2**20 sums.
        colluding: share of the members that may collude with the driver, below ``2 * threshold - 1``.
        patience: seconds that a phase waits for answers.
        identities: path of the list of all clients' public keys, on each client's machine; empty if clients have no identities.
        key: path of a client's private key on its machine, with ``{client}`` for its name.
    """

    threshold: float = 2 / 3
    fewest: int = 5
    complete: int = 100
    dropping: float = 0.1
    colluding: float = 0.1
    patience: float = 60.0
    identities: str = ""
    key: str = ""

    @property
    def trust(self) -> str:
        """See :attr:`Protocol.trust`."""
        return _SIGNED if self.identified else _UNSIGNED

    @property
    def identified(self) -> bool:
        """See :attr:`Protocol.identified`."""
        return bool(self.identities)

    def __post_init__(self) -> None:
        check_paths(self.identities, self.key)
        for key, value, right, should in (
            ("threshold", self.threshold, 0.5 < self.threshold <= 1.0, "above 0.5 and at most 1"),
            ("fewest", self.fewest, self.fewest >= 3, "at least 3"),
            ("complete", self.complete, self.complete >= 1, "at least 1"),
            ("dropping", self.dropping, 0.0 <= self.dropping < 0.5, "at least 0 and below 0.5"),
            ("colluding", self.colluding, 0.0 <= self.colluding < 2 * self.threshold - 1, "at least 0 and below 2 * secure.threshold - 1"),
            ("patience", self.patience, self.patience > 0.0, "above 0"),
        ):
            if not right:
                raise ConfigError(f"secure.{key}: should be {should}, but is {value:g}.")

    def check(self, least: int, clients: int) -> None:
        """Refuse cohorts that are too small for any sum."""
        if clients < self.fewest:
            raise ConfigError(
                f"secure.fewest: no sum of fewer than {self.fewest} members is read, but a cohort has {clients} at the most; draw more clients."
            )

    def roster(self, order: Order, message: bytes) -> Roster:
        """What follows from all members' keys.

        Raises:
            ValueError: the message is malformed, or two keys are the same.
        """
        keys, seen = read_keys(message), view(order, message)
        quorum = max(ceil(self.threshold * len(keys) - 1e-9), len(keys) // 2 + 1)
        graph = make_graph(seen, keys, quorum, self.complete, self.dropping, self.colluding)
        return Roster(seen, keys, graph, quorum, max(quorum, self.fewest, order.least))

    def member(self, order: Order, number: int, signer: Signer | None = None) -> SecAggMember:
        """A client's half; with an identity, it accepts nothing that other identities have not signed."""
        return SecAggMember(self.roster, order, number, signer)

    def enrol(self, client: str) -> Callable[[Order, int], SecAggMember]:
        """What makes the halves of a client, which reads its identity, if there are any, once."""
        if not self.identified:
            return self.member
        return partial(self.member, signer=read_signer(client, self.identities, self.key))

    def terms(self) -> dict[str, Any]:
        """See :meth:`Protocol.terms`; where a client's files lie is its own affair."""
        constants = {name: value for name, value in vars(self).items() if name not in ("identities", "key")}
        return {type(self).__name__: constants | {"identities": self.identified}}

    def conduct(self, order: Order, members: int) -> Conduct:
        """The driver's half. An answer that is malformed counts as none."""
        said = yield Ask("keys", dict.fromkeys(range(members), b""))
        adverts = distinct({number: keys for number, keys in said.items() if 0 <= number < members})
        enough("Secure aggregation", "keys", adverts, members, max(self.fewest, order.least))
        listed = pack(adverts)
        roster = self.roster(order, listed)
        said = yield Ask("shares", dict.fromkeys(adverts, listed))
        sealed = _parsed(said, {number: roster.graph.near(number) - {number} for number in adverts}, SEALED)
        enough("Secure aggregation", "shares", sealed, members, roster.least)
        inboxes = {u: pack({v: sealed[v][u] for v in roster.graph.near(u) if v in sealed and v != u}) for u in sealed}
        said = yield Train(inboxes)
        survivors = {number for number in said if number in sealed}
        enough("Secure aggregation", "training", survivors, members, roster.least)
        said = yield Ask("consistency", dict.fromkeys(survivors, pack_set(survivors)))
        confirmed = {number: answer for number, answer in said.items() if number in survivors and len(answer) in (HASH, HASH + SIGNATURE)}
        enough("Secure aggregation", "consistency", confirmed, members, roster.quorum)
        model, *others = {answer[:HASH] for answer in confirmed.values()}
        if others:
            raise TooFew(f"Secure aggregation: members trained from {1 + len(others)} different globals, so their masks do not cancel.")
        said = yield Ask("unmask", dict.fromkeys(confirmed, pack(confirmed)))
        revealed = _parsed(said, {number: roster.graph.near(number) & sealed.keys() for number in confirmed}, SHARE)
        enough("Secure aggregation", "unmask", revealed, members, roster.quorum, GivenUp)
        return _correction(roster, model, survivors, sealed.keys() - survivors, revealed)


def _parsed(said: Messages, wanted: Mapping[int, AbstractSet[int]], length: int) -> dict[int, dict[int, bytes]]:
    """The answers that hold an entry of this length for each wanted number, and for no other."""
    found = {}
    for number, answer in said.items():
        try:
            entries = unpack(answer, length)
        except ValueError:
            continue
        if number in wanted and entries.keys() == wanted[number]:
            found[number] = entries
    return found


def _correction(
    roster: Roster, model: bytes, survivors: AbstractSet[int], dropped: AbstractSet[int], revealed: Mapping[int, Messages]
) -> Correction:
    """What takes the masks off that did not cancel: the survivors' own, and those that they share with members that dropped out."""
    plus: list[bytes] = []
    minus = [_revealed(roster, number, revealed) for number in sorted(survivors)]
    for number in sorted(dropped):
        neighbours = roster.graph.near(number) & survivors
        if not neighbours:  # none of its masks is in the sum
            continue
        private = X25519PrivateKey.from_private_bytes(_revealed(roster, number, revealed))
        if private.public_key().public_bytes_raw() != roster.keys[number].mask:
            raise GivenUp(f"Secure aggregation: the shares of member {number} give a key that is not its own, so the sum cannot be read.")
        for other in neighbours:
            key = agreed_key(private, roster.keys[other].mask, b"mask", roster.view + model, (number, other))
            (minus if other < number else plus).append(key)  # each adds the masks of members with larger numbers, and subtracts the others

    def correct(values: Ring) -> None:
        add_masks(values, plus, minus)

    return correct


def _revealed(roster: Roster, number: int, revealed: Mapping[int, Messages]) -> bytes:
    """The secret of a member of which shares came."""
    near, needed = sorted(roster.graph.near(number) & revealed.keys()), roster.graph.threshold
    if len(near) < needed:
        raise GivenUp(
            f"Secure aggregation: {len(near)} shares of the mask of member {number} came in the phase 'unmask', and it takes {needed}."
        )
    try:
        return reconstruct({other + 1: revealed[other][number] for other in near[:needed]})
    except ValueError as error:
        raise GivenUp(
            f"Secure aggregation: the shares of the mask of member {number} are wrong ({error}), so the sum cannot be read."
        ) from error


PROTOCOLS = {"secagg": SecAgg}
