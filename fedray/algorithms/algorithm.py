"""What an algorithm and a server optimiser are, and how the config names them."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedray import components, config
from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.training.engine import Engine, LocalJob, LocalResult

#: What a server optimiser remembers between rounds; goes into checkpoints as it is.
ServerState = dict[str, Vector]


@runtime_checkable
class Algorithm(Protocol):
    """What a client does in a round, and how much its update counts in the mean.

    An algorithm whose ``local`` does nothing but run the engine may say so by an attribute ``untouched = True``.
    """

    def weight(self, records: int) -> float:
        """Weight of a client with ``records`` training records."""
        ...

    def max_weight_total(self, sizes: npt.NDArray[np.int64]) -> float:
        """Bound on the sum of weights of any cohort from clients of these ``sizes``."""
        ...

    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        """Train ``model`` in place on a client's records."""
        ...


@runtime_checkable
class Server(Protocol):
    """What the server does with the mean update: pure functions of weights, update and state."""

    def init(self, size: int) -> ServerState:
        """State before the first round, for a vector of ``size`` values."""
        ...

    def step(self, weights: Vector, delta: Vector, state: ServerState) -> tuple[Vector, ServerState]:
        """New weights and state from the mean of the clients' updates (new weights less old)."""
        ...


def make_algorithm(part: config.Choice) -> Algorithm:
    """The algorithm of the config's ``algorithm`` section.

    Raises:
        ConfigError: unknown algorithm or wrong arguments.
    """
    return cast(Algorithm, _make(part, components.ALGORITHMS, Algorithm, "weight, max_weight_total and local"))


def untouched(algorithm: Algorithm) -> bool:
    """Whether local training is the engine's alone."""
    return bool(getattr(algorithm, "untouched", False))


def make_server(part: config.Choice) -> Server:
    """The server optimiser of the config's ``server`` section.

    Raises:
        ConfigError: unknown server optimiser or wrong arguments.
    """
    return cast(Server, _make(part, components.SERVERS, Server, "init and step"))


def _make(part: config.Choice, room: components.Room, protocol: Any, methods: str) -> object:
    section = room.path.partition(".")[0]
    factory: Any = components.find(room, part.kind)
    if not callable(factory):
        raise ConfigError(f"{room.path}: '{part.kind}' is a {type(factory).__name__}; name a class or function that makes it.")
    made: object = factory(**components.check_arguments(factory, part.arguments, section))
    if not isinstance(made, protocol):
        raise ConfigError(f"{room.path}: '{part.kind}' made a {type(made).__name__}, which lacks one of {methods}.")
    return made
