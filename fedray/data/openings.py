"""An auditor's opening of registered records: a challenge names positions, the holder answers with records and proofs, the auditor checks them.

The three steps exchange files, so that each is done where it belongs. The positions follow from a seed that is drawn after the registration,
so a holder cannot have known which of its records would be opened.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.components import nearest
from fedray.data.commitment import MerkleTree, Proof, check, content_of
from fedray.data.records import ClientData
from fedray.data.registration import Registration, Schema, read_document
from fedray.errors import DataError
from fedray.stores.object_path import Location

CHALLENGE, ANSWER = "fedray challenge 1", "fedray opening 1"


@dataclass(frozen=True)
class Challenge:
    """Which records are to be opened.

    Attributes:
        registration: SHA-256 of the registration.
        seed: from which the positions follow, hexadecimal.
        records: how many a client opens; None for all.
        clients: who is asked.
    """

    registration: str
    seed: str
    records: int | None
    clients: tuple[str, ...]

    @classmethod
    def draw(cls, registration: Registration, records: int | None, clients: Sequence[str] = (), seed: str = "") -> Challenge:
        """Draw a challenge.

        Args:
            registration: what was agreed on.
            records: how many each client is to open, at least 1; None for all.
            clients: who is asked; all if there are none.
            seed: 32 bytes as hexadecimal text, such as of a public beacon after the registration; empty: from the operating system.

        Raises:
            DataError: a client is not registered, or the seed is none.
        """
        for name in clients:
            if name not in registration.clients:
                raise DataError(f"client '{name}' has not registered.{nearest(name, list(registration.clients))}")
        if records is not None and records < 1:
            raise DataError(f"a challenge opens 1 record of each client or more, not {records}.")
        try:
            drawn = bytes.fromhex(seed) or secrets.token_bytes(32)
        except ValueError:
            drawn = b""
        if len(drawn) != 32:
            raise DataError("the seed of a challenge is 32 bytes as 64 hexadecimal digits; leave it out to draw one.")
        return cls(registration.sha256, drawn.hex(), records, tuple(clients or sorted(registration.clients)))

    def positions(self, name: str, records: int) -> list[int]:
        """The positions that a client with so many registered records opens, in ascending order, each as likely as any other."""
        if self.records is None or self.records >= records:
            return list(range(records))
        key = bytes.fromhex(self.seed)
        rank = {k: hmac.digest(key, f"{k}:{name}".encode(), "sha256") for k in range(records)}
        return sorted(sorted(rank, key=rank.__getitem__)[: self.records])

    def document(self) -> dict[str, Any]:
        """The challenge as JSON data."""
        return {"format": CHALLENGE, **vars(self), "clients": list(self.clients)}

    @property
    def sha256(self) -> str:
        """SHA-256 of :meth:`document`, hexadecimal."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Opened:
    """What an opening says of one client.

    Attributes:
        name: of the client.
        records: number of its registered records.
        opened: number of positions that were opened and are under the root.
        distinct: number of different leaves among them; equal records have equal leaves.
        faults: a sentence for each thing that is not as it was registered.
    """

    name: str
    records: int
    opened: int
    distinct: int
    faults: tuple[str, ...]

    @property
    def unseen(self) -> float:
        """Largest share of the positions without such records that this opening would have missed with a probability of 5 % or more."""
        return 1.0 if not self.opened else 0.0 if self.opened == self.records else float(1 - 0.05 ** (1 / self.opened))

    def __str__(self) -> str:
        if self.faults:
            return f"{self.name}: {len(self.faults)} faults, the first: {self.faults[0]}"
        twins = f" ({self.opened - self.distinct} equal to others among them)" if self.distinct < self.opened else ""
        if self.opened == self.records:
            return f"{self.name}: all {self.records:,} registered records{twins} are under the root, and there are no others."
        return (
            f"{self.name}: {self.opened:,} of {self.records:,} registered records{twins} are under the root; if more than "
            f"{100 * self.unseen:.2g} % were not there, that would have been seen with 95 % probability."
        )


def answer(challenge: Challenge, registration: Registration, data: ClientData, salt: bytes, hashes: bool = False) -> dict[str, Any]:
    """One client's answer to a challenge, as JSON data.

    Args:
        challenge: that was sent.
        registration: what was agreed on.
        data: the client's, as registered.
        salt: its secret salt.
        hashes: show each record's hash in place of the record.

    Raises:
        DataError: the challenge is of another registration, or the client holds other data than it registered.
    """
    _check_same(challenge, registration)
    entry, tree = registration.clients[data.name], MerkleTree(data.train.x, data.train.y, salt)
    if tree.root != entry.root:
        raise DataError(f"client {data.name} holds other data than it registered, so it cannot answer; bring back what it registered.")
    shown = []
    for position in challenge.positions(data.name, entry.records):
        proof, i = tree.prove(position), tree.record(position)
        x, y = data.train.x[i], data.train.y[i]
        what = {"content": content_of(x, y).hex()} if hashes else {"x": _text(x), "y": _text(y)}
        shown.append({"position": position, "salt": proof.salt, "path": list(proof.path), **what})
    return {"format": ANSWER, "challenge": challenge.sha256, "clients": {data.name: shown}}


def check_answers(challenge: Challenge, registration: Registration, answers: Sequence[Mapping[str, Any]]) -> list[Opened]:
    """What answers prove about each client that was asked.

    Raises:
        DataError: the challenge is of another registration, or an answer is to another challenge.
    """
    _check_same(challenge, registration)
    shown: dict[str, Any] = {}
    for one in answers:
        if one.get("challenge") != challenge.sha256:
            raise DataError("an answer is to another challenge than this one; each challenge is answered anew.")
        shown |= one.get("clients") or {}
    return [_check_client(challenge, registration, name, shown.get(name)) for name in challenge.clients]


def read_challenge(where: Location) -> Challenge:
    """Read a challenge; raises DataError if it is none."""
    found = read_document(where, CHALLENGE, "a challenge, which `fedray opening challenge` makes")
    try:
        records = found["records"]
        asked = Challenge(
            str(found["registration"]), str(found["seed"]), None if records is None else int(records), tuple(found["clients"])
        )
        bytes.fromhex(asked.seed)
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{where}: is damaged ({type(error).__name__}: {error}); ask for it again.") from None
    return asked


def read_answer(where: Location) -> dict[str, Any]:
    """Read an answer; raises DataError if it is none."""
    return read_document(where, ANSWER, "an answer, which `fedray opening answer` makes")


def _check_same(challenge: Challenge, registration: Registration) -> None:
    if challenge.registration != registration.sha256:
        raise DataError(
            f"the challenge is for registration {challenge.registration[:12]}..., and this one is {registration.sha256[:12]}...; use the same file."
        )


def _check_client(challenge: Challenge, registration: Registration, name: str, shown: Any) -> Opened:
    entry = registration.clients[name]
    asked = challenge.positions(name, entry.records)
    if not isinstance(shown, list):
        return Opened(name, entry.records, 0, 0, ("it has not answered.",))
    found: dict[int, Mapping[str, Any]] = {}
    for one in shown:
        if isinstance(one, Mapping) and isinstance(one.get("position"), int):
            found[one["position"]] = one
    faults, leaves = list[str](), list[tuple[str, bytes]]()
    for position in asked:
        try:
            one = found[position]
            content, proof = _content(one, registration.schema), Proof(str(one["salt"]), position, tuple(map(str, one["path"])))
        except KeyError:
            faults.append(f"position {position} is not opened.")
        except (TypeError, ValueError):
            faults.append(f"position {position} does not hold a record of the registered schema.")
        else:
            if check(entry.root, entry.records, content, proof):
                leaves.append((proof.salt, content))
            else:
                faults.append(f"position {position} holds a record that is not under the registered root.")
    return Opened(name, entry.records, len(leaves), len(set(leaves)), tuple(faults))


def _content(one: Mapping[str, Any], schema: Schema) -> bytes:
    """The hash of a record that was shown, or the hash that was shown in its place."""
    if "content" in one:
        return bytes.fromhex(one["content"])
    x, y = (base64.b64decode(one[key], validate=True) for key in ("x", "y"))
    features, targets = (np.dtype(kind).newbyteorder("<") for kind in (schema.features, schema.targets))
    return content_of(np.frombuffer(x, features).reshape(schema.shape), np.frombuffer(y, targets).reshape(schema.target_shape))


def _text(values: Any) -> str:
    """The little-endian bytes of an array, in base 64."""
    array = np.asarray(values)
    return base64.b64encode(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()).decode()
