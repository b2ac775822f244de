"""What makes the model smaller on its way to the clients, and the message that really travels.

The server keeps its model whole. What clients receive and start from is the decoded model, the same bytes for all of a round, and an update
is the difference to it, which the server adds to the whole model. So no error adds up from round to round: each version is coded anew from the
whole model, where schemes that send differences of models need error feedback at the server (Tang et al. 2019).

Sources: Caldas, Konecny, McMahan & Talwalkar 2018, Expanding the Reach of Federated Learning by Reducing Client Resource Requirements,
section 3 (lossy compression of the model that goes down); Tang, Yu, Lian, Zhang & Liu 2019, DoubleSqueeze
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray import components, rng
from fedray.choices import Choice
from fedray.errors import ConfigError
from fedray.exchange import Exchange
from fedray.parameters import Vector

_FLOAT = 4
Arrays = tuple[npt.NDArray[Any], ...]
Uniform = Callable[[int], npt.NDArray[np.float64]]


class Coder(ABC):
    """Codes a whole vector into few bytes; subclasses are dataclasses of the arguments in the config."""

    @abstractmethod
    def encode(self, x: Vector, uniform: Uniform) -> Arrays:
        """The arrays that travel.

        Args:
            x: finite values, float32 ``[size]``; unchanged.
            uniform: gives so many values in [0, 1), float64.

        Raises:
            ConfigError: the values cannot be coded.
        """

    @abstractmethod
    def sent(self, size: int, before: int) -> int:
        """Bytes of what :meth:`encode` gives for ``size`` values, which take ``before`` bytes as they are."""

    @abstractmethod
    def decode(self, arrays: Arrays, size: int) -> Vector:
        """What arrives, float32 ``[size]``: the same bytes on every machine."""


@dataclass(frozen=True, eq=False)
class PackedGlobals:
    """The globals as they travel. Whoever unpickles them has a float32 vector, so that nobody but the sender knows of the code.

    Attributes:
        coder: of the model.
        arrays: the coded model.
        size: number of the model's values, or of all models' where there are several.
        rest: the other fields that go down, as they are.
    """

    coder: Coder
    arrays: Arrays
    size: int
    rest: Vector

    @property
    def nbytes(self) -> int:
        """Bytes of what travels, but for a few of the frame."""
        return sum(array.nbytes for array in self.arrays) + self.rest.nbytes

    def whole(self) -> Vector:
        """The vector that arrives, float32, read-only."""
        vector = self.coder.decode(self.arrays, self.size)
        vector = np.concatenate([vector, self.rest]) if len(self.rest) else vector
        vector.flags.writeable = False
        return vector

    def __reduce__(self) -> Any:
        return _arrived, (self.coder, self.arrays, self.size, self.rest)


def _arrived(coder: Coder, arrays: Arrays, size: int, rest: Vector) -> Vector:
    return PackedGlobals(coder, arrays, size, rest).whole()


@dataclass(frozen=True)
class Download:
    """How a run's globals go down.

    Attributes:
        coder: of the model.
        size: number of the model's values; other fields of the algorithm are not coded.
        seed: the run's. The draws follow from it and the version, so that a resumed run sends the same bytes.
    """

    coder: Coder
    size: int
    seed: int

    def packed(self, globals_: Vector, version: int) -> PackedGlobals | Vector:
        """The globals of a version as they travel; a model with values that are not finite travels as it is."""
        model, rest = globals_[: self.size], globals_[self.size :]
        if not np.isfinite(model).all():
            return globals_
        return PackedGlobals(self.coder, self.coder.encode(model, rng.generator(self.seed, "download", version).random), self.size, rest)


def down_bytes(coder: Coder | None, exchange: Exchange) -> int:
    """Bytes of the globals as they travel."""
    saved = 0 if coder is None else _FLOAT * exchange.model_size - coder.sent(exchange.model_size, _FLOAT * exchange.model_size)
    return _FLOAT * exchange.down_size - saved


def make_coder(part: Choice) -> Coder | None:
    """The coder that the config's section ``download`` names; None for whole globals.

    Raises:
        ConfigError: unknown kind, or wrong arguments.
    """
    if part.kind == "none":
        if part.arguments:
            raise ConfigError(f"download.{next(iter(part.arguments))}: kind is none, so it would do nothing; take it out, or name a kind.")
        return None
    try:
        made = components.made(components.DOWNLOADS, part.kind, part.arguments)
    except ConfigError as error:  # the parts are those of the other way
        raise ConfigError(str(error).replace("compression.", "download.")) from None
    if not isinstance(made, Coder):
        raise ConfigError(f"download.kind: '{part.kind}' is not derived from fedray.updates.download.Coder.")
    return made
