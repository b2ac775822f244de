"""The root set at work: an actor that trains on it beside the clients, by the run's own settings, and tries updates on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from fedray.aggregation.each import Each, Rows
from fedray.algorithms.algorithm import Algorithm, Mean, Server, make_algorithm, make_server, stepped
from fedray.choices import AttackChoice, Choice
from fedray.clients.devices import device_of_actor
from fedray.clients.groups import ClientGroup
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.surroundings import speaking
from fedray.clients.terms import Site, Terms, make_terms
from fedray.config import Config, Privacy, Training
from fedray.data.records import Federation
from fedray.errors import FedrayError, cause_of, first_line
from fedray.models.facts import ModelFacts
from fedray.parameters import Vector, set_vector
from fedray.rounds.evaluator import beside_driver, wait_up
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import find_loss

_ROOT = ClientTask(0, "root")


def root_terms(config: Config, records: int, model: ModelFacts) -> Terms:
    """The terms by which the root set is trained on: those of the run's clients, without protection, stages and attack.

    Args:
        config: the run.
        records: how many the root set has.
        model: without weights.
    """
    nothing = Choice(kind="none")
    plain = {"privacy": Privacy(), "compression": nothing, "bound": nothing, "secure": nothing, "attack": AttackChoice()}
    training = root_training(config.training, records)
    group = ClientGroup("root", range(1), config.evaluation.resources, training, "run", 1.0)
    return make_terms(config.model_copy(update=plain), group, None, model)


def root_training(training: Training, records: int) -> Training:
    """The run's training section for so many records: where each record joins a step by a coin, batches are as large as a client's."""
    here = {"engine": "auto", "precision": "fp32"}  # on a device of its own
    if training.sampling_rate is None or training.expected_batch is None:
        return training.model_copy(update=here)
    rate = min(1.0, training.expected_batch / records)
    return training.model_copy(update={**here, "sampling_rate": rate, "expected_batch": rate * records})


class RootHost:
    """Holds the root set and a model, and is a client of its own: an actor, so that it trains while the clients do.

    Args:
        config: the run.
        records: the root set as the records of one client.
        model: without weights.
        clients: size of the population.
        provided: objects that the caller of :func:`fedray.run` gave.
    """

    def __init__(self, config: Config, records: Federation, model: ModelFacts, clients: int, provided: Mapping[str, Any]) -> None:
        self._config, self._records, self._facts, self._clients, self._provided = config, records, model, clients, provided

    def ready(self) -> None:
        """Build the model; called once, first.

        Raises:
            FedrayError: see :meth:`ClientHost.ready`.
        """
        cpus = max(1, int(self._config.evaluation.resources.cpu))
        self._host = ClientHost(
            root_terms(self._config, len(self._records.train), self._facts), Site(threads=cpus, provided=self._provided), self._records
        )
        self._host.ready()

    def update(self, round_: int, globals_: Vector) -> Vector:
        """What a client with these records sends for its turn in a round, float32 ``[size]``.

        Raises:
            FedrayError: it has no update.
        """
        task = RoundTask(round_, 1.0, clients=1, collect="each")
        (report,) = self._host.train(task, globals_, [_ROOT])
        rows = self._host.collect(task).total
        if report.status != "done":
            raise FedrayError(f"root: the root set gave no update in round {round_ + 1} ({report.error or report.status}).")
        assert isinstance(rows, Rows)
        found: Vector = rows.blocks[0][0]
        return found

    @speaking()
    def losses(self, globals_: Vector, updates: npt.NDArray[np.float32]) -> list[float]:
        """The loss on the root set after each update, float32 ``[k, size]``, as if it alone had come up in the round of these globals."""
        algorithm, layout = self._algorithm, self._facts.layout
        exchange, found = algorithm.exchange(layout), []
        for update in updates:
            mean = Mean(exchange.views(update, "up"), 1.0, 1.0 / self._clients)
            after, _ = stepped(algorithm, self._server, layout, exchange, globals_, self._server.init(exchange.model_size), mean)
            set_vector(self._model, layout, after[: layout.size])
            values = evaluate(
                self._model, self._x, self._y, find_metrics(["loss"]), find_loss(self._config.training.loss), device=self._device
            )
            found.append(values["loss"] if math.isfinite(values["loss"]) else math.inf)
        return found

    @cached_property
    def _algorithm(self) -> Algorithm:
        return make_algorithm(self._config.algorithm)

    @cached_property
    def _server(self) -> Server:
        return make_server(Choice(kind="sgd"))

    @cached_property
    def _device(self) -> torch.device:
        return torch.device(device_of_actor())

    @cached_property
    def _model(self) -> torch.nn.Module:
        return self._facts.build().to(self._device)

    @cached_property
    def _x(self) -> torch.Tensor:
        return torch.from_numpy(np.array(self._records.train.x))

    @cached_property
    def _y(self) -> torch.Tensor:
        return torch.from_numpy(np.array(self._records.train.y))


@dataclass(frozen=True, eq=False)
class RootHere:
    """A :class:`fedray.aggregation.root.Root` in this process.

    Attributes:
        host: of the root set.
        round: number of the round, from 0.
        globals: of the round, float32 ``[exchange.down_size]``.
    """

    host: RootHost
    round: int
    globals: Vector

    def update(self) -> Vector:
        """See :class:`fedray.aggregation.root.Root`."""
        return self.host.update(self.round, self.globals)

    def losses(self, got: Each) -> npt.NDArray[np.float64]:
        """See :class:`fedray.aggregation.root.Root`."""
        return np.concatenate([self.host.losses(self.globals, updates) for _, updates in got.rows()])


class Roots:
    """The actor of the root set, and the next one where it dies. It stands where the evaluator does.

    Args:
        config: the run.
        records: the root set as the records of one client.
        model: without weights.
        clients: size of the population.
        provided: objects that the caller of :func:`fedray.run` gave.
    """

    def __init__(self, config: Config, records: Federation, model: ModelFacts, clients: int, provided: Mapping[str, Any]) -> None:
        self._config, self._arguments = config, (config, ray.put(records), model, clients, provided)
        self.timeout = config.clients.start_timeout
        self._start()

    def wait_ready(self) -> None:
        """Wait until the actor is up.

        Raises:
            FedrayError: it is not after ``clients.start_timeout`` seconds, or it cannot train.
        """
        wait_up(
            self._up,
            self.timeout,
            f"root: the actor of the root set is not up after {self.timeout:g} s (clients.start_timeout); it asks for what "
            "evaluation.resources says, as the evaluator does: lower it, or clients.actors.",
        )

    def begin(self, round_: int, globals_: Any) -> RootAt:
        """Start the training of a round from the globals behind an object reference."""
        return RootAt(self, round_, globals_)

    def ask(self, method: str, *arguments: Any) -> Any:
        """A call that is under way, for :meth:`answer`."""
        return getattr(self._actor, method).remote(*arguments)

    def answer(self, pending: Any, method: str, *arguments: Any) -> Any:
        """What a call gives; where the actor died or cannot be reached, another one's.

        Raises:
            FedrayError: the other one failed, too, or the call did.
        """
        for last in (False, True):
            try:
                return ray.get(pending, timeout=self.timeout)
            except (RayActorError, GetTimeoutError) as error:
                if last:
                    raise FedrayError(f"root: the actor of the root set does not answer ({first_line(error)}).") from None
                ray.kill(self._actor)
                self._start()
                pending = self.ask(method, *arguments)
            except RayError as error:
                raise cause_of(error, "the actor of the root set failed") from None
        raise AssertionError

    def _start(self) -> None:
        self._actor = ray.remote(RootHost).options(**beside_driver(self._config.evaluation.resources)).remote(*self._arguments)
        self._up = self._actor.ready.remote()


@dataclass
class RootAt:
    """A :class:`fedray.aggregation.root.Root` whose work is an actor's.

    Attributes:
        by: the actor.
        round: number of the round, from 0.
        globals: of the round, as an argument of calls.
    """

    by: Roots
    round: int
    globals: Any

    def __post_init__(self) -> None:
        self._call = "update", self.round, self.globals
        self._pending = self.by.ask(*self._call)

    def update(self) -> Vector:
        """See :class:`fedray.aggregation.root.Root`."""
        found: Vector = self.by.answer(self._pending, *self._call)
        return found

    def losses(self, got: Each) -> npt.NDArray[np.float64]:
        """See :class:`fedray.aggregation.root.Root`."""
        found = np.empty(got.count)
        for first, updates in got.rows():
            call = "losses", self.globals, updates
            found[first : first + len(updates)] = self.by.answer(self.by.ask(*call), *call)
        return found
