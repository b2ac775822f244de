"""The global model before the first round, and what goes together with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedray.algorithms.algorithm import check_training, make_algorithm, make_server
from fedray.algorithms.own_server import OwnServer
from fedray.algorithms.totals import check_cohort
from fedray.clients.groups import ClientGroup
from fedray.config import Config
from fedray.errors import ConfigError, blaming
from fedray.exchange import Exchange
from fedray.frozen import frozen_values, model_digest
from fedray.holder import Holder
from fedray.inputs import Input
from fedray.models.facts import ModelFacts, first_model
from fedray.models.trees import check_grown
from fedray.parameters import Vector, get_vector
from fedray.planning.initial import Initial, find_initial
from fedray.privacy import rules
from fedray.privacy.csprng import noise_source
from fedray.rounds.cohort import largest_cohort
from fedray.training.augment import check_augment
from fedray.training.choose import choose_engine, untouched_by
from fedray.training.coupling import BatchNeeds, batch_needs, check_batches
from fedray.training.evaluate import check_metrics, find_metrics
from fedray.training.fast.mixed import check_convolutions
from fedray.training.losses import find_loss, outputs_for, positions_for
from fedray.training.schedules import check_schedule
from fedray.training.unfreezing import check_layers
from fedray.updates.pipeline import rehearse


@dataclass(frozen=True, eq=False)
class Model:
    """The global model before the first round.

    Attributes:
        facts: how every process builds the model.
        exchange: what goes down and up in each round.
        weights: float32 ``[facts.layout.size]``.
        engine: the local engine; that of the first group if groups have engines of their own. None where clients do not train.
        frozen_bytes: size of its frozen parameters.
        still: names of trained parameters that no stage of ``training.unfreeze`` unfreezes.
        columns, scale: see :class:`fedray.data.records.ClientData`.
        initial: where ``model.weights`` come from; None where the factory draws them.
        initial_sha256: digest of the initial model, trained and frozen; empty where the factory draws it.
    """

    facts: ModelFacts
    exchange: Exchange
    weights: Holder[Vector]
    engine: str | None
    frozen_bytes: int = 0
    still: Sequence[str] = ()
    columns: Sequence[str] = ()
    scale: float = 1.0
    initial: Initial | None = None
    initial_sha256: str = ""

    @property
    def apart(self) -> str:
        """Why nothing at the driver predicts by itself, as a clause; empty where the global model does."""
        personal, models = self.facts.personal.entries, self.exchange.model_size // self.facts.layout.size
        if personal:
            return f"its layers {', '.join(e.name for e in personal)} stay with the clients"
        return f"there are {models}, of which each client takes its own" if models > 1 else ""

    def document(self) -> dict[str, Any]:
        """What is needed to build the model again, as JSON data."""
        facts = self.facts
        return {
            "input_shape": list(facts.shape),
            "outputs": facts.outputs,
            "positions": facts.positions,
            "parameters": facts.layout.size,
            "tokens": facts.tokens,
            "frozen_sha256": facts.frozen,
            "columns": list(self.columns),
            "scale": self.scale,
            **({"inputs": [i.document() for i in facts.inputs]} if facts.inputs else {}),
            **({"apart": self.apart} if self.apart else {}),
            **({"initial": self.initial.where, "initial_sha256": self.initial_sha256} if self.initial is not None else {}),
        }


@dataclass(frozen=True, eq=False)
class RecordFacts:
    """What the model and the checks need to know about all clients' records.

    Attributes:
        sizes: number of training records of each client, int64 ``[clients]``.
        shape: shape of one record.
        classes: number of classes; None in regression.
        tokens: whether records are integers.
        columns, scale: see :class:`fedray.data.records.ClientData`.
        inputs: the inputs that stand side by side in a record.
        target_shape: shape of one record's targets; () where it has one.
        class_counts: records of each class at each client, int64 ``[clients, classes]``, where they may be shown.
        targets: all clients' targets, where the driver may look at them.
        persons: number of persons with training records at each client, int64 ``[clients]``; None if it is not known whose the records are.
        held_out: number of each client's own held-out records, int64 ``[clients]``; None where clients hold out none.
    """

    sizes: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    classes: int | None
    tokens: bool
    columns: Sequence[str]
    scale: float
    inputs: tuple[Input, ...] = ()
    target_shape: tuple[int, ...] = ()
    class_counts: npt.NDArray[np.int64] | None = None
    targets: npt.NDArray[Any] | None = None
    persons: npt.NDArray[np.int64] | None = None
    held_out: npt.NDArray[np.int64] | None = None


def make_model(config: Config, groups: list[ClientGroup], names: Sequence[str], facts: RecordFacts) -> Model:
    """Build the global model and check that model, loss, metrics, engines and batches go together.

    Raises:
        ConfigError: they do not.
    """
    classes, shape, tokens = facts.classes, facts.shape, facts.tokens
    outputs = outputs_for(config.training.loss, classes, facts.target_shape)
    positions = positions_for(config.training.loss, facts.target_shape)
    dtype = torch.int64 if tokens else torch.float32
    algorithm = make_algorithm(config.algorithm)
    initial = find_initial(config)
    choice = config.model if initial is None else config.model.model_copy(update={"weights": initial.path})
    model, made = first_model(choice, shape, outputs, config.seed, dtype, positions, facts.inputs, algorithm.personal)
    check_grown(model, config.algorithm.kind, bool(algorithm.traits.passes))
    algorithm.check_model(model)
    private, person = config.privacy.record, config.privacy.person
    single = person is not None and person.kind == "clipped"
    check_metrics(find_metrics(config.evaluation.metrics), find_loss(config.training.loss), classes, outputs)
    if config.privacy.whole_clients:
        rules.check_buffers(model)
    if private:
        rules.check_layers(model)  # the actors' pre-flight test adds Opacus' own checks
    composes, alone = algorithm.traits.composes, untouched_by(config, algorithm.traits)
    engines = []
    for group in groups:
        loss = find_loss(group.training.loss)
        needs = BatchNeeds() if private else batch_needs(model, loss, shape, tokens, classes, facts.targets, facts.target_shape)
        members = np.asarray(group.members)
        check_training(algorithm, group.training)
        check_augment(group.training, shape, tokens or bool(facts.inputs), bool(algorithm.traits.passes))
        check_schedule(group.training.schedule, config.rounds)
        check_convolutions(group.training, model)
        check_batches(needs, group.training, facts.sizes[members], [names[i] for i in group.members])
        engines.append(choose_engine(group.training.engine, private, model, group.training, alone, needs, single, composes)[0])
    algorithm.check_clients(len(names))
    if algorithm.traits.exact:
        check_cohort(config.algorithm.kind, largest_cohort(config.cohort, len(names)))
    weights, server = get_vector(model, made.layout), make_server(config.server)
    frozen = frozen_values(model, config.model.kind)
    frozen_bytes = sum(value.nbytes for value in frozen.values())
    engine = engines[0] if algorithm.traits.passes else None
    with blaming(f"algorithm.kind: exchange of '{type(algorithm).__name__}'"):
        exchange = algorithm.exchange(made.layout)
    if not isinstance(exchange, Exchange):
        raise ConfigError(
            f"algorithm.kind: exchange of '{type(algorithm).__name__}' returned a {type(exchange).__name__}; return an Exchange."
        )
    most = algorithm.most_rounds(made.layout, weights, largest_cohort(config.cohort, len(names)), len(names))
    if most is not None and config.rounds > most:
        raise ConfigError(
            f"rounds: after {most} rounds of '{config.algorithm.kind}' the model is full, so that more of them change nothing; set rounds={most}, or "
            "make the model larger."
        )
    if isinstance(server, OwnServer):
        server.rehearse(np.resize(weights, exchange.model_size))
    rehearse(config, exchange.up_size, noise_source(0, 0, "rehearsal"))
    digest = "" if initial is None else model_digest(weights, frozen)
    still = check_layers(config.training, model)
    return Model(made, exchange, Holder(weights), engine, frozen_bytes, still, facts.columns, facts.scale, initial, digest)
