"""What can be known before any work: parts, data, model, privacy plan. Nothing here touches Ray."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedray import components
from fedray.aggregation.exact import grid_bits
from fedray.aggregation.rule import make_aggregator
from fedray.algorithms.algorithm import make_algorithm, make_server, untouched
from fedray.clients.groups import ClientGroup, make_groups
from fedray.components import check_arguments, find
from fedray.config import Config
from fedray.data.dataset import check, client_names, declared_labels, load_federation, per_silo, private_statistics, silo_test
from fedray.data.records import Federation, Label, Records
from fedray.data.silos import Silo
from fedray.data.skew import class_counts, partition_report
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.frozen import frozen_values
from fedray.models.facts import ModelFacts, first_model
from fedray.parameters import Vector, get_vector
from fedray.privacy import rules
from fedray.privacy.clientplan import ClientPlan, make_mechanism, plan_clients
from fedray.privacy.recordplan import RecordPlan, check_delta, plan_record
from fedray.rounds.cohort import Sampler, make_sampler
from fedray.training.choose import choose_engine
from fedray.training.coupling import BatchNeeds, batch_needs, check_batches
from fedray.training.evaluate import check_metrics, find_metrics
from fedray.training.losses import find_loss, outputs_for
from fedray.training.schedules import learning_rate


@dataclass
class Model:
    """The global model before round 0; ``columns`` and ``scale`` are those of the data (:class:`fedray.data.records.ClientData`)."""

    facts: ModelFacts
    weights: Vector
    engine: str
    frozen_bytes: int = 0
    columns: Sequence[str] = ()
    scale: float = 1.0

    def document(self) -> dict[str, Any]:
        """What it takes to make the model again, as JSON data."""
        facts = self.facts
        return {
            "input_shape": list(facts.shape),
            "outputs": facts.outputs,
            "parameters": facts.layout.size,
            "tokens": facts.tokens,
            "frozen_sha256": facts.frozen,
            "columns": list(self.columns),
            "scale": self.scale,
        }


@dataclass
class Prepared:
    """A run that is ready to be wired.

    ``plans`` are those of record-level privacy, one a group; ``client_plan`` is that for whole clients (None also while the
    model is not known, where it depends on it). ``sizes``, ``model`` and ``federation`` are None where only the silos know them (a file a silo). ``digest``
    is the data's, for noticing at a resume that it changed; under privacy it leaves the driver in no other form.
    ``test_form`` says of what form the driver's test set is, where the clients are silos. ``class_labels`` is the source's own label of each class, in class order; empty in regression.
    """

    config: Config
    names: Sequence[str]
    groups: list[ClientGroup]
    plans: list[RecordPlan | None]
    sampler: Sampler
    sizes: npt.NDArray[np.int64] | None
    federation: Federation | None
    test: Records | None
    model: Model | None
    partition: dict[str, Any]
    warnings: list[str]
    digest: str = ""
    client_plan: ClientPlan | None = None
    class_labels: Sequence[Label] = ()
    test_form: Silo | None = None


def prepare(config: Config) -> Prepared:
    """Check everything, load what the driver may see, build the model, find the noise.

    Raises:
        ConfigError: the first thing that is wrong, as one sentence.
    """
    check_parts(config)
    check(config.data)
    warnings = rules.check(config, private_statistics(config.data))
    silos = per_silo(config.data) and config.clients.placement == "dedicated"
    federation = None if silos else load_federation(config.data, config.seed)
    names = federation.names if federation is not None else client_names(config.data, config.seed)
    groups = make_groups(config, names)
    sampler = make_sampler(config.cohort, len(names))
    private = bool(config.privacy.regimes)
    plans: list[RecordPlan | None] = [plan_record(config, g.training) if config.privacy.record else None for g in groups]
    if federation is None:
        test, form = silo_test(config.data) or (None, None)
        config, said = _evaluated(config, test, None)
        warnings += said
        early = plan_whole_clients(config, groups, len(names), 0) if config.privacy.whole_clients == "local" else None
        return Prepared(
            config,
            names,
            groups,
            plans,
            sampler,
            None,
            None,
            test,
            None,
            {},
            warnings,
            client_plan=early,
            class_labels=declared_labels(config.data),
            test_form=form,
        )
    rules.check_classes(config.privacy, federation.declared, federation.class_labels)
    warnings += _said_of_labels(federation)
    sizes = federation.sizes
    check_sizes(plans, groups, names, sizes)
    config, said = _evaluated(config, federation.test, federation.client_test is not None)
    warnings += said
    tokens = federation.train.x.dtype.kind == "i"
    model = make_model(config, groups, names, sizes, federation.shape, federation.classes, tokens, None if private else federation.train.y)
    model.columns, model.scale = federation.columns, federation.scale
    shown = not private or "class_counts" in config.privacy.unprotected
    counts = class_counts(federation) if shown and federation.classes is not None else None
    partition = shown_partition(config, names, sizes, counts)
    warnings += said_of_one_class(counts, federation.class_labels)
    if not private:  # a digest is a function of the records: who knows all but one could test guesses of the last
        partition["digest"] = federation.digest
    return Prepared(
        config,
        names,
        groups,
        plans,
        sampler,
        sizes,
        federation,
        federation.test,
        model,
        partition,
        warnings,
        federation.digest,
        plan_whole_clients(config, groups, len(names), model.facts.layout.size),
        federation.class_labels,
    )


def _said_of_labels(federation: Federation) -> list[str]:
    """That labels were numbered, where that was not asked for and they are not 0..C-1 already."""
    labels = list(federation.class_labels)
    if federation.declared or labels == list(range(len(labels))):
        return []
    shown = ", ".join(f"{label!r} is class {k}" for k, label in list(enumerate(labels))[:6])
    return [
        f"data: the labels are numbered in sorted order: {shown}{', ...' if len(labels) > 6 else ''} (class_labels in partition.json); "
        "declare data.classes to keep integers as they are, or data.labels for an order of your own."
    ]


def said_of_one_class(counts: npt.NDArray[np.int64] | None, class_labels: Sequence[Label]) -> list[str]:
    """That no record has another label, where that may be told."""
    found = [] if counts is None else np.flatnonzero(counts.sum(axis=0)).tolist()
    if len(found) != 1:
        return []
    return [f"data: every training record has the label {class_labels[found[0]]!r}, so there is nothing to tell apart; check the label."]


def check_only(config: Config) -> None:
    """What can be checked where the data cannot be seen, as where the driver runs on another node than the command.

    Raises:
        ConfigError: as for :func:`prepare`.
    """
    check_parts(config)
    rules.check(config, private_statistics(config.data))


def plan_whole_clients(config: Config, groups: list[ClientGroup], clients: int, dimension: int) -> ClientPlan | None:
    """The plan for whole clients; None where they are not protected."""
    if config.privacy.whole_clients is None:
        return None
    rates = {g.rate for g in groups}
    if rates != {1.0} and (config.cohort.kind == "fixed" or "cap" in config.cohort.arguments) and config.privacy.whole_clients == "client":
        raise PrivacyRefusal(
            "clients.groups.rate: cohorts of fixed or capped size are accounted for as drawn from all clients alike; "
            "use cohort.kind=poisson without a cap, or leave the rates at 1.",
            "privacy.incompatible.client.rates",
        )
    return plan_clients(config, clients, dimension, grid_bits(float(clients)), max(rates), len(rates) == 1)


def capacity(config: Config, sizes: npt.NDArray[np.int64]) -> float:
    """The weight that the exact sum is laid out for: of all clients, each at most 1 where whole clients are protected."""
    return float(len(sizes)) if config.privacy.whole_clients else make_algorithm(config.algorithm).max_weight_total(sizes)


def shown_partition(
    config: Config, names: Sequence[str], sizes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64] | None
) -> dict[str, Any]:
    """The partition report; where whole clients are protected only how many there are, unless more is accepted."""
    if config.privacy.whole_clients and "partition" not in config.privacy.unprotected:
        return {"clients": len(names), "source": config.data.source}
    return partition_report(names, sizes, counts) | {"source": config.data.source}


def make_model(
    config: Config,
    groups: list[ClientGroup],
    names: Sequence[str],
    sizes: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    classes: int | None,
    tokens: bool,
    targets: npt.NDArray[Any] | None = None,
) -> Model:
    """Build the global model and check that it, the loss, the engines and the batches go together; ``targets`` are the clients', where
    they may be looked at.
    """
    outputs = outputs_for(config.training.loss, classes)
    model, facts = first_model(config.model, shape, outputs, config.seed, torch.int64 if tokens else torch.float32)
    private = config.privacy.record
    check_metrics(find_metrics(config.evaluation.metrics), config.training.loss, classes, outputs)
    if config.privacy.whole_clients:
        rules.check_buffers(model)
    if private:
        rules.check_layers(model)  # the actors' pre-flight test goes on with Opacus' own checks
    alone = untouched(make_algorithm(config.algorithm))
    engines = []
    for group in groups:
        needs = BatchNeeds() if private else batch_needs(model, find_loss(group.training.loss), shape, tokens, classes, targets)
        members = np.asarray(group.members)
        check_batches(needs, group.training, sizes[members], [names[i] for i in group.members])
        engines.append(choose_engine(group.training.engine, private, model, group.training, alone, needs.whole)[0])
    frozen_bytes = sum(value.nbytes for value in frozen_values(model, config.model.kind).values())
    return Model(facts, get_vector(model, facts.layout), engines[0], frozen_bytes)


def check_sizes(plans: list[RecordPlan | None], groups: list[ClientGroup], names: Sequence[str], sizes: npt.NDArray[np.int64]) -> None:
    """Refuse a delta that is too large for some client."""
    for group, plan in zip(groups, plans, strict=True):
        if plan is not None:
            members = np.asarray(group.members)
            largest = int(members[np.argmax(sizes[members])])
            check_delta(plan, {names[largest]: int(sizes[largest])})


def check_parts(config: Config) -> None:
    """Look every named part up and check its arguments.

    Raises:
        ConfigError: a name is unknown or an argument does not fit.
    """
    make_algorithm(config.algorithm)
    make_server(config.server)
    make_aggregator(config.aggregation)
    if config.privacy.whole_clients:
        make_mechanism(config.privacy)
    find_loss(config.training.loss)
    find_metrics(config.evaluation.metrics)
    learning_rate(config.training, 0, config.rounds)
    factory = find(components.MODELS, config.model.kind)
    if inspect.isroutine(factory) or inspect.isclass(factory):
        check_arguments(factory, config.model.arguments, "model", own=("input_shape", "outputs"))


def _evaluated(config: Config, test: Records | None, at_clients: bool | None) -> tuple[Config, list[str]]:
    """The config with the metrics that will be taken, and what to say where there are none.

    Args:
        config: the run.
        test: the driver's test set.
        at_clients: the clients hold test records; None where only they know.

    Raises:
        ConfigError: metrics are asked for and there is nothing to take them on, or nobody who would.
    """
    e = config.evaluation
    if e.federated and at_clients is False:
        raise no_test_records()
    if e.federated and not e.metrics:
        raise ConfigError("evaluation.metrics: there are none to take at the clients; name some, or set evaluation.federated=false.")
    if not e.metrics or test is not None or e.federated:
        return config, []
    at_clients = config.data.holdout.fraction > 0 if at_clients is None else at_clients
    if at_clients:
        why = "only the clients hold test records, and they are not asked"
        ways = "evaluation.federated=true" + (" with privacy.unprotected=[evaluation]" if config.privacy.regimes else "")
        ways += "" if per_silo(config.data) else " or data.holdout.at=driver"
    else:
        why, ways = "no test records are held out", "data.holdout.fraction above 0"
    # Metrics that nobody asked for may be missing where the config says so itself, or leaves no other way.
    if "metrics" in e.model_fields_set or (at_clients and not config.privacy.regimes):
        raise ConfigError(
            f"evaluation.metrics: {why}, so no metric would ever be taken; set {ways}, or evaluation.metrics=[] to train without."
        )
    without = config.model_copy(update={"evaluation": e.model_copy(update={"metrics": []})})
    return without, [f"The model is not evaluated: {why} ({ways} would change that)."]


def no_test_records() -> ConfigError:
    """What to say where evaluation at the clients finds none."""
    return ConfigError(
        "evaluation.federated: the clients hold no test records; set data.holdout.at=clients with a fraction above 0, or federated=false."
    )
