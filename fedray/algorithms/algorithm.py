"""What an algorithm and a server optimiser are, and how the config names them.

An algorithm is both halves of a method on one page: what a client does with its records in a turn, and what the driver does with the
mean of what the clients sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import nn

from fedray import components, config
from fedray.algorithms.own_server import OwnServer
from fedray.algorithms.turn import ClientView, Moved, Turn
from fedray.choices import Choice
from fedray.errors import ConfigError, blaming, shortened
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits

#: What a server optimiser remembers between rounds, and beside it the algorithm's fields that stay with the driver; goes into checkpoints as it is.
ServerState = dict[str, Vector]
_KEPT = "algorithm.kept"  # name of those fields in it, all as one vector


@dataclass(frozen=True)
class Update:
    """What a client's turn comes to.

    Attributes:
        values: the fields that go up, float32; how far the model has moved may be given as :meth:`Turn.moved` gives it.
        state: what the client keeps for its next turn, by name; None keeps nothing.
    """

    values: Mapping[str, Vector | Moved]
    state: Mapping[str, Vector] | None = None


@dataclass(frozen=True)
class Mean:
    """What came up in a round.

    Attributes:
        values: the mean of each field, float32; weighted by the clients' weights or counting each client once, as the field says.
        clients: number of clients in it; the expected number where how many took part is secret.
        share: ``clients`` over the size of the population.
    """

    values: Mapping[str, Vector]
    clients: float
    share: float


class Algorithm:
    """Both halves of a method. As it stands it is federated averaging in which each client counts once; a method changes what differs.

    Attributes:
        traits: what the method declares of itself.
        personal: the model's layers that stay with each client, by name or by what their names begin with up to a dot. They are trained with
            the others, are in no exchange, and are kept with the client's state, so ``traits.state`` must be true.
    """

    traits: ClassVar[Traits] = Traits()
    personal: Sequence[str] = ()

    def check(self, training: config.Training) -> None:
        """Refuse local training that the method is not defined for.

        Raises:
            ConfigError: with what to change.
        """

    def check_clients(self, clients: int) -> None:
        """Refuse a run of ``clients`` clients that the method is not defined for.

        Raises:
            ConfigError: with what to change.
        """

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that the method is not defined for.

        Raises:
            ConfigError: with what to change.
        """

    def exchange(self, layout: Layout) -> Exchange:
        """The fields that go down and up, for a model of this layout; ``model`` may hold several models one after the other."""
        return Exchange((Field("model", layout.size),))

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """At the driver, once: the first values of all fields that go down.

        Args:
            layout: of the model.
            weights: the initial model, float32 ``[layout.size]``.
            another: gives the model as it would begin with another seed, which follows from the run's and a number.
        """
        return {"model": weights}

    def weight(self, records: int) -> float:
        """Weight of a client with ``records`` training records."""
        return 1.0

    def largest_weight(self, sizes: npt.NDArray[np.int64]) -> float:
        """Bound on the sum of weights of any cohort from clients of these ``sizes``."""
        return float(len(sizes))

    def local(self, turn: Turn) -> Update:
        """A client's turn, where it trains: by the engine, from the global model."""
        turn.train()
        return Update({"model": turn.moved()})

    def measured(self, client: ClientView) -> Vector:
        """The model that is evaluated on a client's own records, float32 ``[layout.size]``: the global one, or one that the client keeps."""
        return client.globals["model"]

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """At the driver, after each round: the new value of each field that goes down or stays with the driver, but for ``model`` the
        direction in which the server's optimiser moves it, or with ``traits.sets`` its own new value; ``globals_`` has the values before it.
        """
        return {"model": mean.values["model"]}

    def most_rounds(self, layout: Layout, weights: Vector, cohort: int, clients: int) -> int | None:
        """After how many rounds of at most ``cohort`` of all ``clients``, from the initial model on, nothing is left to do; None: there
        always is.
        """
        return None

    def figures(self, mean: Mean) -> dict[str, float]:
        """At the driver, after each round: what the round's row shows of the mean besides, by name; only where nothing is protected."""
        return {}


def check_training(algorithm: Algorithm, training: config.Training) -> None:
    """Refuse a training section that does not go with the algorithm: local training that it is not defined for, none, or for nothing.

    Raises:
        ConfigError: with what to change.
    """
    if algorithm.traits.passes and not training.trains:
        raise ConfigError("training.batch_size: give batch_size with epochs or steps, or sampling_rate with steps and expected_batch.")
    unread = sorted(training.model_fields_set - {"loss"}) if not algorithm.traits.passes else []
    if unread:
        raise ConfigError(f"training.{unread[0]}: has no effect, because the clients of this algorithm.kind do not train; take it out.")
    algorithm.check(training)


def only_trains(algorithm: Algorithm) -> bool:
    """Whether a client's turn is the engine's training and nothing else."""
    return type(algorithm).local is Algorithm.local


def begun(algorithm: Algorithm, exchange: Exchange, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> Vector:
    """The first vector that goes down, float32 ``[exchange.down_size]``; arguments as of :meth:`Algorithm.begin`.

    Raises:
        ConfigError: the algorithm fails, or returns anything but the fields of its exchange.
    """
    where = f"algorithm.kind: begin of '{type(algorithm).__name__}'"
    with blaming(where):
        first: Any = algorithm.begin(layout, weights, another)
    if not isinstance(first, dict):
        raise ConfigError(f"{where} returned a {type(first).__name__}; return a dict with each field that goes down.")
    return exchange.joined(first, "down")


def own_models(algorithm: Algorithm) -> bool:
    """Whether clients may evaluate other models than the global one."""
    return type(algorithm).measured is not Algorithm.measured or bool(algorithm.personal)


def one_model_beside(algorithm: Algorithm, layout: Layout) -> bool:
    """Whether clients may evaluate other models than the global one, and there is one that predicts by itself."""
    return own_models(algorithm) and not algorithm.personal and algorithm.exchange(layout).model_size == layout.size


def turned(algorithm: Algorithm, turn: Turn) -> Update:
    """What a client's turn comes to.

    Raises:
        ConfigError: the algorithm returned anything but an :class:`Update`, or it composed gradients or added to the loss without
            declaring so, which not every engine can do, nor any for records that are protected.
    """
    update: Any = algorithm.local(turn)
    if turn.composed and not algorithm.traits.composes:
        raise ConfigError(
            "algorithm.kind: it makes gradients of several or adds to the loss, which its traits do not declare; set gradients='composed'."
        )
    if not isinstance(update, Update):
        raise ConfigError(
            f"algorithm.kind: local of '{type(algorithm).__name__}' returned a {type(update).__name__}; return an Update (docs/algorithms.md)."
        )
    return update


@runtime_checkable
class Server(Protocol):
    """How the server's optimiser moves the model: pure functions of weights, direction and state."""

    def init(self, size: int) -> ServerState:
        """State before the first round, for a vector of ``size`` values."""
        ...

    def step(self, weights: Vector, delta: Vector, state: ServerState) -> tuple[Vector, ServerState]:
        """New weights and state from the direction ``delta``, the mean of the clients' updates (new weights less old) in FedAvg."""
        ...


def make_algorithm(part: Choice) -> Algorithm:
    """The algorithm of the config's ``algorithm`` section.

    Raises:
        ConfigError: unknown algorithm, wrong arguments, or personal layers without a state that keeps them.
    """
    otherwise = "is not derived from fedray.algorithms.algorithm.Algorithm (docs/algorithms.md shows how)"
    made = cast(Algorithm, _make(part, components.ALGORITHMS, Algorithm, otherwise))
    if made.personal and not made.traits.state:
        raise ConfigError(
            f"algorithm.kind: clients of '{part.kind}' keep personal layers between their turns, which its traits do not declare; add state=True."
        )
    return made


def make_server(part: Choice) -> Server:
    """The server optimiser of the config's ``server`` section.

    Raises:
        ConfigError: unknown server optimiser or wrong arguments.
    """
    made = cast(Server, _make(part, components.SERVERS, Server, "lacks init or step"))
    return OwnServer(made, part.kind) if components.is_own(part.kind) else made


def stepped(
    algorithm: Algorithm,
    server: Server,
    layout: Layout,
    exchange: Exchange,
    globals_: Vector,
    state: ServerState,
    mean: Mean,
    frozen: npt.NDArray[np.bool_] | None = None,
) -> tuple[Vector, ServerState]:
    """The vector that goes down next, and the server's state, from what came up in a round.

    Args:
        algorithm, server: of the run.
        layout: of the model.
        exchange: of the algorithm.
        globals_: the vector that went down, float32 ``[exchange.down_size]``; left as it is.
        state: of the server's optimiser, with the fields that stay with the driver; left as it is.
        mean: of the round.
        frozen: True where the model does not move in the round, ``[layout.size]``; None where all of it may.
    """
    before = exchange.views(globals_, "down")
    if exchange.kept:
        size = sum(f.size for f in exchange.fields if f.name in exchange.kept)
        before |= exchange.views(state.get(_KEPT, np.zeros(size, dtype=np.float32)), "kept")
    after = _served(algorithm, before, mean)
    model, memory = after["model"], {name: value for name, value in state.items() if name != _KEPT}
    if frozen is not None:  # whatever came: noise of the driver's, or what an attacker sent
        still = np.tile(frozen, exchange.model_size // layout.size)
        model = np.where(still, before["model"] if algorithm.traits.sets else np.float32(0), model)
    if not algorithm.traits.sets:
        model, memory = _optimised(server, layout, before["model"], model, memory)
    if exchange.kept:
        memory = memory | {_KEPT: exchange.joined({name: after.pop(name) for name in exchange.kept}, "kept")}
    return exchange.joined(after | {"model": model}, "down"), memory


def _optimised(server: Server, layout: Layout, before: Vector, direction: Vector, state: ServerState) -> tuple[Vector, ServerState]:
    weights, state = server.step(before, direction, state)
    buffers = layout.mask("buffer")
    if buffers.any():  # running statistics are averaged, not optimised
        buffers = np.tile(buffers, len(before) // layout.size)
        weights[buffers] = before[buffers] + direction[buffers]
    return weights, state


def figured(algorithm: Algorithm, mean: Mean) -> dict[str, float]:
    """What the round's row shows of the mean.

    Raises:
        ConfigError: the algorithm fails, or returns anything but numbers by name.
    """
    where = f"algorithm.kind: figures of '{type(algorithm).__name__}'"
    with blaming(where):
        found: Any = algorithm.figures(mean)
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Real) for k, v in found.items()):
        raise ConfigError(f"{where} returned {shortened(repr(found))}; return a dict of name to number.")
    return {name: float(value) for name, value in found.items()}


def _served(algorithm: Algorithm, before: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
    where = f"algorithm.kind: server of '{type(algorithm).__name__}'"
    with blaming(where):
        after: Any = algorithm.server(before, mean)
    if not isinstance(after, dict) or set(after) != set(before):
        what = f"the fields {sorted(map(str, after))}" if isinstance(after, dict) else f"a {type(after).__name__}"
        raise ConfigError(f"{where} returned {what}; return a dict with each field that goes down or is kept: {', '.join(before)}.")
    return after


def _make(part: Choice, room: components.Room, kind: Any, otherwise: str) -> object:
    made: object = components.made(room, part.kind, part.arguments)
    if not isinstance(made, kind):
        raise ConfigError(f"{room.path}: '{part.kind}' made a {type(made).__name__}, which {otherwise}.")
    return made
