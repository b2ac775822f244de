"""Probes: one client trains on synthetic records with the code that trains the run's clients.

Client actor, algorithm, engine and noise source are the run's. Only the model is replaced, by a linear one with the loss ``y * <w, x>``:
a record's gradient is then ``y * x`` and can be chosen freely, and an update shows the clipped, noised sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedray.aggregation.exact import ExactSum
from fedray.choices import Choice, LossChoice, ModelChoice
from fedray.clients.groups import ClientGroup
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientReport, ClientTask, PartialSum, RoundTask
from fedray.clients.states import StatePlace
from fedray.clients.terms import Site, make_terms
from fedray.config import Config
from fedray.data.records import Features, Federation, Records
from fedray.errors import FedrayError
from fedray.models.facts import ModelFacts, first_model
from fedray.parameters import Vector
from fedray.privacy.recordplan import RecordPlan

Floats = npt.NDArray[np.float64]


def linear(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The model ``<w, x>`` without a bias; w starts at zero."""
    model = nn.Linear(input_shape[0], outputs, bias=False)
    nn.init.zeros_(model.weight)
    return model


def inner_product(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss ``y * <w, x>`` of every record, [n]."""
    return outputs.squeeze(-1) * targets


@dataclass(frozen=True)
class Subject:
    """A group of clients under audit.

    Attributes:
        config: the run.
        group: the clients, with their training settings; ``training.engine`` names an engine, not ``auto``.
        plan: the clients' plan of record-level DP.
        model: facts of the run's model, without weights.
    """

    config: Config
    group: ClientGroup
    plan: RecordPlan
    model: ModelFacts


def start_host(subject: Subject, federation: Federation, states: StatePlace | None = None) -> ClientHost:
    """A hosted client actor's object in this process, ready to train; it keeps no ledger, and clients' states at ``states``."""
    terms = make_terms(subject.config, subject.group, subject.plan, subject.model)
    host = ClientHost(terms, Site(device="cpu", states=states), federation)
    host.ready()
    return host


def train_one(
    host: ClientHost, weights: Vector, task: ClientTask, round_: int, capacity: float, clients: int = 1
) -> tuple[Vector, ClientReport, PartialSum]:
    """Train one client in a round; returns its update, float32 ``[d]``, with all messages that left the actor.

    Raises:
        FedrayError: the client reports that it has not trained.
    """
    message = RoundTask(round_, capacity, clients=clients)
    report = host.train(message, weights, [task])[0]
    part = host.collect(message)
    if report.status != "done":
        raise FedrayError(f"client {task.name} {report.status} in round {round_}: {report.error}")
    assert isinstance(part.total, ExactSum)
    return part.total.mean(), report, part


class Probe:
    """The linear model under a subject's engine, on records with chosen gradients.

    Args:
        subject: the clients whose engine, algorithm settings and noise source are used.
        clients: each client's gradients, float32 ``[n, d]`` with a common ``d``.
        noise_multiplier, sampling_rate, steps: values that replace the plan's.
        persons: whose each record is, where the unit is a person; default: each record is of a person of its own.
    """

    def __init__(
        self,
        subject: Subject,
        clients: Sequence[npt.NDArray[np.float32]],
        *,
        noise_multiplier: float | None = None,
        sampling_rate: Fraction | None = None,
        steps: int | None = None,
        persons: npt.NDArray[np.int64] | None = None,
    ) -> None:
        plan = subject.plan
        plan = replace(
            plan,
            noise_multiplier=plan.noise_multiplier if noise_multiplier is None else noise_multiplier,
            sampling_rate=sampling_rate or plan.sampling_rate,
            steps=steps or plan.steps,
        )
        here = f"python:{__name__}:"
        self.dimension = clients[0].shape[1]
        training = subject.group.training.model_copy(
            update={
                "optimizer": "sgd",
                "momentum": 0.0,
                "nesterov": False,
                "weight_decay": 0.0,
                "lr": plan.expected_batch / plan.clip,
                "schedule": Choice(kind="constant"),
                "loss": LossChoice(kind=here + inner_product.__name__),
                "sampling_rate": float(plan.sampling_rate),
                "steps": plan.steps,
            }
        )
        config = subject.config.model_copy(update={"model": ModelChoice(kind=here + linear.__name__), "algorithm": Choice(kind="fedavg")})
        group = replace(subject.group, training=training)
        names = [f"probe-{k}" for k in range(len(clients))]
        offsets = np.concatenate([[0], np.cumsum([len(c) for c in clients])]).astype(np.int64)
        x = np.concatenate(clients)
        whose = np.arange(len(x)) if persons is None else persons
        federation = Federation(names, Records(x, np.ones(len(x), dtype=np.float32), whose), offsets, None, None, None, None)
        self._tasks = [ClientTask(k, name) for k, name in enumerate(names)]
        self._capacity = float(max(1, len(x)))
        _, model = first_model(config.model, (self.dimension,), 1, config.seed)
        self._host = start_host(replace(subject, config=config, group=group, plan=plan, model=model), federation)

    def sum(self, client: int = 0, round_: int = 0, attempt: int = 0) -> Floats:
        """The sum of clipped gradients and noise over all steps of one client's round, divided by the clip norm; float64 ``[d]``."""
        task = self._tasks[client]._replace(attempt=attempt)
        weights = np.zeros(self.dimension, dtype=np.float32)
        update, _, _ = train_one(self._host, weights, task, round_, self._capacity)
        return -update.astype(np.float64)


def synthetic(
    shape: tuple[int, ...],
    tokens: bool,
    n: int,
    classes: int | None,
    draws: np.random.Generator,
    target_shape: tuple[int, ...] = (),
) -> Records:
    """``n`` random records of the run's kind with targets ``[n, *target_shape]``.

    The targets are classes. If ``classes`` is None they are real numbers, or zeros and ones if a record has several targets.
    """
    x: Features
    if tokens:
        x = draws.integers(0, 2, (n, *shape))
    else:
        x = draws.standard_normal((n, *shape)).astype(np.float32)
    y: Any
    if classes is not None:
        y = draws.integers(0, classes, (n, *target_shape))
    elif target_shape:
        y = (draws.random((n, *target_shape)) < 0.5).astype(np.float32)
    else:
        y = draws.standard_normal(n).astype(np.float32)
    return Records(x, y)
