"""What an algorithm is told of a client, and what it has the client keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedray.algorithms.algorithm import Algorithm, Update
from fedray.algorithms.turn import PERSONAL, Personal
from fedray.clients.devices import in_actor, node_of_actor
from fedray.clients.memory import fitting
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.states import StateAddress, StatePlace, states_at
from fedray.clients.terms import Terms
from fedray.errors import FedrayError
from fedray.parameters import Layout, Vector, get_vector
from fedray.training.evaluate import evaluate
from fedray.training.losses import Loss
from fedray.training.meangradient import mean_gradient
from fedray.training.metrics import mean_loss


class Views:
    """Views of an actor's clients.

    Args:
        terms: the run's, for the actor's clients.
        states: where clients' states are, or None.
        model: as the run's seed has drawn it, on the device.
        loss: that is minimised.
        algorithm: of the run.
    """

    def __init__(self, terms: Terms, states: StatePlace | None, model: nn.Module, loss: Loss, algorithm: Algorithm) -> None:
        self.layout, own = Layout.of(model, algorithm.personal), Layout.personal(model, algorithm.personal)
        self._personal = Personal(own, get_vector(model, own)) if own.entries else None
        self._exchange, self._traits = algorithm.exchange(self.layout), algorithm.traits
        self._loss, self._batch = loss, terms.config.evaluation.batch_size
        self._device: torch.device = next(model.parameters()).device
        self._states = None if states is None else states_at(states, node_of_actor() if in_actor() else "")

    def state_of(self, client: ClientTask) -> dict[str, Vector] | None:
        """What a client kept from its last turn that counted; None if there was none.

        Raises:
            FedrayError: it is gone or damaged.
        """
        return None if client.state is None or self._states is None else self._states.read(client.state)

    def of(
        self,
        client: ClientTask,
        state: Mapping[str, Vector] | None,
        weights: Vector,
        records: int,
        model: nn.Module,
        data: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Any, ...]:
        """A client, as :class:`fedray.algorithms.turn.ClientView` takes it.

        Args:
            client: whose turn it is, or who evaluates.
            state: what it kept for the algorithm.
            weights: that were broadcast.
            records: number of its training records.
            model: that is trained or evaluated.
            data: gives its training records on the device.
        """
        personal = self._personal  # at first every client's are as they were drawn
        if personal is not None and state is not None:
            personal = personal._replace(values=state[PERSONAL])

        def loss_by(batch: int) -> float:
            x, y = data()
            return evaluate(model, x, y, {"loss": mean_loss}, self._loss.of_client(y), batch, self._device)["loss"]

        def loss() -> float:
            return fitting(loss_by, self._batch)[0]

        def gradient_by(batch: int) -> Vector:
            x, y = data()
            return mean_gradient(model, self.layout, x, y, self._loss.of_client(y), batch)

        def gradient() -> Vector:
            return fitting(gradient_by, self._batch)[0]

        globals_, reads = self._exchange.views(weights, "down"), self._traits.reads
        allowed = loss if "loss" in reads else None, state, data if "records" in reads else None
        return client.index, records, globals_, model, self.layout, *allowed, personal, gradient if self._traits.adapted else None

    def keep(self, task: RoundTask, state: Mapping[str, Vector] | None) -> StateAddress | None:
        """Write down what a client keeps for its next turn.

        Raises:
            FedrayError: the algorithm does not declare that its clients keep anything.
        """
        if state is None:
            return None
        if self._states is None:
            raise FedrayError("algorithm.kind: its clients keep a state, which its traits do not declare; add state=True.")
        return self._states.append(task.round, state)


def with_personal(update: Update, personal: Personal | None) -> Update:
    """An update whose client also keeps its personal layers."""
    return update if personal is None else replace(update, state={**(update.state or {}), PERSONAL: personal.values})
