"""What a round exchanges: named fields, each a slice of one float32 vector that goes down and of one that comes up.

Clipping, noise, the exact sum, shared memory and receipts see only a vector and its length, so a clip norm holds over all fields
together. Only the algorithm, at both of its ends, knows the names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from operator import methodcaller
from typing import Literal

import numpy as np

from fedray.errors import ConfigError
from fedray.parameters import Vector

#: The field that every algorithm has: the global model, or several one after the other, on the way down, and a direction for the server's
#: optimiser on the way up.
MODEL = "model"

#: Names the fields of one of the vectors of an exchange.
Way = Literal["down", "up", "kept"]


@dataclass(frozen=True)
class Field:
    """One named part of what is exchanged. One that goes neither way stays with the driver, from zeros on, and is in checkpoints.

    Attributes:
        name: of the field.
        size: number of float32 values, above 0.
        down: it is broadcast with the round.
        up: clients send a value, of which the mean is taken.
        weigh: the mean is weighted by the clients' weights (``client``), or each client counts once (``one``).
    """

    name: str
    size: int
    down: bool = True
    up: bool = True
    weigh: Literal["client", "one"] = "client"


@dataclass(frozen=True)
class Exchange:
    """The fields of a run, in the order in which they lie in the vectors.

    Raises:
        ConfigError: a name twice, no values, or an order that the sum cannot be laid out for.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        if len(set(names)) < len(names) or any(f.size < 1 for f in self.fields):
            raise ConfigError(f"algorithm.kind: it exchanges {names}; each field needs a name of its own and values.")
        if not self.fields or names[0] != MODEL or not self.fields[0].down:
            raise ConfigError(f"algorithm.kind: the first field that it exchanges must be '{MODEL}', which goes down.")
        weighed = [f.weigh for f in self.fields if f.up]
        if not weighed or weighed != sorted(weighed):
            raise ConfigError("algorithm.kind: fields that go up weighted by client must come before those that count each client once.")

    @cached_property
    def down(self) -> dict[str, slice]:
        """Where each field lies in the vector that is broadcast; the model comes first."""
        return _slices([f for f in self.fields if f.down])

    @cached_property
    def up(self) -> dict[str, slice]:
        """Where each field lies in the vector that a client sends."""
        return _slices([f for f in self.fields if f.up])

    @cached_property
    def kept(self) -> dict[str, slice]:
        """Where each field that stays with the driver lies in the vector of them all."""
        return _slices([f for f in self.fields if not (f.down or f.up)])

    @property
    def model_size(self) -> int:
        """Values of the global model, or of all where there are several; they come first in what is broadcast."""
        return self.fields[0].size

    @cached_property
    def sha256(self) -> str:
        """Hash of all fields, hexadecimal: what a client's receipt says of what its update was made for. Sizes may be numpy's numbers."""
        return hashlib.sha256(json.dumps([astuple(f) for f in self.fields], default=methodcaller("item")).encode()).hexdigest()

    @property
    def down_size(self) -> int:
        """Values that are broadcast."""
        return sum(f.size for f in self.fields if f.down)

    @property
    def up_size(self) -> int:
        """Values that a client sends."""
        return sum(f.size for f in self.fields if f.up)

    @property
    def ones_from(self) -> int:
        """Position in the vector that comes up from which on each client counts once."""
        return sum(f.size for f in self.fields if f.up and f.weigh == "client")

    def views(self, vector: Vector, way: Way) -> dict[str, Vector]:
        """Name to a view of the vector of all fields that go ``way`` or are kept."""
        return {name: vector[where] for name, where in getattr(self, way).items()}

    def joined(self, values: Mapping[str, Vector], way: Way) -> Vector:
        """One float32 vector of all fields that go ``way`` or are kept; where there is one field, its own array.

        Raises:
            ConfigError: a field is missing, is not known, or has another shape.
        """
        where = getattr(self, way)
        sizes = {name: s.stop - s.start for name, s in where.items()}
        found = {name: _float32(value) for name, value in values.items()}
        if {name: value.shape for name, value in found.items()} != {name: (size,) for name, size in sizes.items()}:
            given = {name: value.shape for name, value in found.items()}
            raise ConfigError(f"algorithm.kind: it gave the fields {given} where it exchanges {sizes} values.")
        return next(iter(found.values())) if len(found) == 1 else np.concatenate([found[name] for name in where])


def _float32(value: Vector) -> Vector:
    """A value as float32: where it is that already, itself, and not the view that ``numpy.asarray`` makes of an array from the object store."""
    return value if type(value) is np.ndarray and value.dtype == np.float32 else np.asarray(value, dtype=np.float32)


def _slices(fields: list[Field]) -> dict[str, slice]:
    found, start = {}, 0
    for f in fields:
        found[f.name] = slice(start, start + f.size)
        start += f.size
    return found
