"""The registration of a federation: what data its parties have agreed on, client by client, as a JSON file.

It names for each client the root of its records (:mod:`fedray.data.commitment`), their number, and for all the schema. Each part is made
where its data are, and the parts are joined. The file holds no record and no salt; a client that is compared with it later either holds
what it registered, or a sentence names what changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedray.config import Config
from fedray.data.commitment import commit_records, find_salt, mark_of
from fedray.data.records import ClientData, Features, Records, Targets
from fedray.errors import DataError
from fedray.inputs import Input, described
from fedray.stores.object_path import Location
from fedray.stores.s3 import Bucket

FORMAT = "fedray registration 1"


@dataclass(frozen=True)
class Schema:
    """The form of a client's records, as it trains on them.

    Attributes:
        columns: names of the features if the source is a table.
        features: dtype of the features.
        shape: shape of one record's features.
        targets: dtype of the targets.
        target_shape: shape of one record's targets; () for a single one.
        classes: number of classes; None in regression.
        scale: divisor of the user's values.
        inputs: the inputs that stand side by side in a record.
    """

    columns: tuple[str, ...]
    features: str
    shape: tuple[int, ...]
    targets: str
    target_shape: tuple[int, ...]
    classes: int | None
    scale: float
    inputs: tuple[Input, ...]

    @classmethod
    def of(cls, data: ClientData) -> Schema:
        """Describe a client's training records."""
        x, y = data.train.x, data.train.y
        about = tuple(data.columns), x.dtype.name, tuple(x.shape[1:]), y.dtype.name, tuple(y.shape[1:])
        return cls(*about, data.classes, data.scale, tuple(data.inputs))

    def document(self) -> dict[str, Any]:
        """The schema as JSON data."""
        return {
            "columns": list(self.columns),
            "features": self.features,
            "shape": list(self.shape),
            "targets": self.targets,
            "target_shape": list(self.target_shape),
            "classes": self.classes,
            "scale": self.scale,
            "inputs": [one.document() for one in self.inputs],
        }

    @classmethod
    def of_document(cls, found: Mapping[str, Any]) -> Schema:
        """The schema of :meth:`document`."""
        return cls(
            tuple(found["columns"]),
            np.dtype(found["features"]).name,
            tuple(map(int, found["shape"])),
            np.dtype(found["targets"]).name,
            tuple(map(int, found["target_shape"])),
            found["classes"],
            float(found["scale"]),
            tuple(Input.of(one) for one in found["inputs"]),
        )

    @property
    def sha256(self) -> str:
        """SHA-256 of :meth:`document`, hexadecimal."""
        return _sha256(self.document())

    def zeros(self, records: int) -> Records:
        """Records of zeros of this form, which take no memory and cannot be written."""
        x = np.broadcast_to(np.zeros((), dtype=self.features), (records, *self.shape))
        y = np.broadcast_to(np.zeros((), dtype=self.targets), (records, *self.target_shape))
        return Records(cast(Features, x), cast(Targets, y))

    def changes(self, now: Schema) -> Iterator[str]:
        """What differs in another schema, in words."""
        gone, new = ([c for c in one.columns if c not in other.columns] for one, other in ((self, now), (now, self)))
        if gone or new:
            yield from (f"column '{name}' is gone" for name in gone)
            yield from (f"column '{name}' is new" for name in new)
        elif self.columns != now.columns:
            moved = next(k for k, (a, b) in enumerate(zip(self.columns, now.columns, strict=False)) if a != b)
            yield f"columns in another order: column {moved + 1} was '{self.columns[moved]}' and is '{now.columns[moved]}'"
        elif self.shape != now.shape:
            yield f"shape of a record {self.shape} to {now.shape}"
        if self.features != now.features:
            yield f"{_columns(self.columns)} {self.features} to {now.features}"
        if (self.targets, self.target_shape) != (now.targets, now.target_shape):
            yield f"targets {self.targets} {self.target_shape} to {now.targets} {now.target_shape}"
        if self.classes != now.classes:
            yield f"classes {self.classes or 'none'} to {now.classes or 'none'}"
        if self.scale != now.scale:
            yield f"values divided by {self.scale:g}, now by {now.scale:g}"
        if self.inputs != now.inputs:
            yield f"inputs {described(self.inputs) or 'none'} to {described(now.inputs) or 'none'}"


@dataclass(frozen=True)
class Registered:
    """One client's part of a registration.

    Attributes:
        root: of its records, 64 hex digits.
        records: number of training records.
        salt: mark of the salt under which the root was made (:func:`fedray.data.commitment.mark_of`).
    """

    root: str
    records: int
    salt: str


@dataclass(frozen=True)
class Registration:
    """What the parties have agreed on.

    Attributes:
        schema: of all clients' records.
        clients: each client's part, by its name.
        settings: what else in the config decides the records: the keys of ``data`` but for places, and the seed.
    """

    schema: Schema
    clients: Mapping[str, Registered]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The registration as JSON data."""
        clients = {name: vars(self.clients[name]) for name in sorted(self.clients)}
        about = {"format": FORMAT, "settings": dict(self.settings), "schema": self.schema.document(), "schema_sha256": self.schema.sha256}
        return {**about, "clients": clients}

    @property
    def sha256(self) -> str:
        """SHA-256 of :meth:`document`, hexadecimal, by which the parties know that they have the same file."""
        return _sha256(self.document())

    def compare(self, data: ClientData, directory: Location, quiet: bool = False) -> str:
        """What of a client's records is not as it was registered, as a sentence; empty if nothing is.

        Records are hashed only if their number and schema agree.

        Args:
            data: of a client that is registered.
            directory: where its salt is.
            quiet: say that something changed, but not what, where even the number of records is private.

        Raises:
            StoreError: the object store with the salt cannot be reached.
        """
        entry, now = self.clients[data.name], Schema.of(data)
        found = [f"count {entry.records:,} to {len(data.train):,}"] if entry.records != len(data.train) else []
        found += [f"schema: {other}"] if (other := ", ".join(self.schema.changes(now))) else []
        if not found:
            salt = salt_of(entry, data.name, directory)
            if salt is None:
                found = [f"the salt with which it registered is not in {directory}"]
            elif commit_records(data.train.x, data.train.y, salt) != entry.root:
                found = ["same count and schema, but other records"]
        if not found:
            return ""
        return f"client {data.name} does not hold the data that it registered" + ("." if quiet else f" ({'; '.join(found)}).")


def enter(data: ClientData, salt: bytes, settings: Mapping[str, Any]) -> Registration:
    """The registration of one client alone.

    Args:
        data: its records.
        salt: its secret salt.
        settings: see :class:`Registration`.
    """
    root = commit_records(data.train.x, data.train.y, salt)
    return Registration(Schema.of(data), {data.name: Registered(root, len(data.train), mark_of(salt))}, settings)


def joined(parts: Sequence[Registration]) -> Registration:
    """Several parts as one registration.

    Raises:
        DataError: they were made with other settings or have other schemas, or a client stands in two parts with other data.
    """
    first, clients = parts[0], dict[str, Registered]()
    for part in parts:
        name = next(iter(part.clients), "")
        if other := ", ".join(first.schema.changes(part.schema)):
            raise DataError(f"client {name} registers records of another schema than the clients before it: {other}.")
        if other := differences(first.settings, part.settings):
            raise DataError(f"client {name} was registered with another config than the clients before it: {other}.")
        for name, entry in part.clients.items():
            if clients.setdefault(name, entry) != entry:
                raise DataError(f"client {name} stands in two parts with other data; keep the part that is valid.")
    return Registration(first.schema, clients, first.settings)


def settings_of(config: Config) -> dict[str, Any]:
    """What in a config decides the bytes of the records, but for where they are."""
    data = config.data.model_dump(mode="json", exclude={"source", "test"})
    return {"seed": config.seed, **{f"data.{key}": value for key, value in data.items()}}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, with both values."""
    keys = [key for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key)]
    return "; ".join(f"{key} was {json.dumps(then.get(key))} and is {json.dumps(now.get(key))}" for key in keys)


def salt_of(entry: Registered, name: str, directory: Location) -> bytes | None:
    """The salt with which a client registered: its own, or that of the driver's book; None if it is not in the directory."""
    found = (find_salt(directory, book) for book in (name, "records"))
    return next((salt for salt in found if salt is not None and mark_of(salt) == entry.salt), None)


def read_registration(where: Location) -> Registration:
    """Read a registration.

    Raises:
        DataError: there is none, or it is not as it was written.
        StoreError: the object store cannot be reached.
    """
    found = read_document(where, FORMAT, "a registration, which `fedray register` makes")
    try:
        schema = Schema.of_document(found["schema"])
        clients = {name: Registered(str(e["root"]), int(e["records"]), str(e["salt"])) for name, e in found["clients"].items()}
        registration = Registration(schema, clients, dict(found["settings"]))
        whole = bool(clients) and found["schema_sha256"] == schema.sha256
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: is damaged ({type(error).__name__}: {error}); bring it back from a copy.") from None
    if not whole:
        raise DataError(f"{where}: its schema is not the one whose hash it names, or it has no client; bring it back from a copy.")
    return registration


def read_document(where: Location, form: str, what: str) -> dict[str, Any]:
    """Read a JSON object of a format.

    Args:
        where: the file.
        form: what its ``format`` must be.
        what: what it should be, in words.

    Raises:
        DataError: it is missing, or is none.
        StoreError: the object store cannot be reached.
    """
    try:
        text = where.read_bytes() if isinstance(where, Path) else Bucket(where.parent).get(where.name)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}); it should be {what}.") from None
    try:
        found = json.loads(text or b"")
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != form:
        raise DataError(f"{where}: is not {what} (format '{form}').")
    return found


def _columns(names: Sequence[str]) -> str:
    return f"columns '{names[0]}' to '{names[-1]}'" if len(names) > 1 else f"column '{names[0]}'" if names else "features"


def _sha256(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
