"""Prepares a run: checks its parts, loads its data, builds its model and plans its privacy. Nothing here uses Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.exact import grid_bits
from fedray.aggregation.rule import make_rule
from fedray.algorithms.algorithm import make_algorithm
from fedray.attacks.attackers import Attackers
from fedray.clients.agreement import Agreement
from fedray.clients.groups import ClientGroup, make_groups
from fedray.config import Cohort, Config
from fedray.data.datanotes import notes_of, said_of_dropped
from fedray.data.dataset import (
    check,
    check_own_transform,
    client_names,
    declared_labels,
    load_federation,
    per_silo,
    silo_test,
)
from fedray.data.labels import said_of_labels, said_of_one_class
from fedray.data.records import Federation, Label, Records
from fedray.data.rootset import split_root
from fedray.data.silos import Silo
from fedray.data.skew import class_counts, partition_report
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.batchbound import bounded
from fedray.planning.combinations import check_parts, check_privacy
from fedray.planning.global_model import Model, RecordFacts, make_model
from fedray.planning.initial import warned
from fedray.planning.personchecks import check_persons, check_silos_of_persons
from fedray.planning.registered import agreed_data
from fedray.privacy import rules
from fedray.privacy.clientplan import ClientPlan, plan_clients
from fedray.privacy.holdoutrules import check_holdout
from fedray.privacy.ledger.elsewhere import elsewhere
from fedray.privacy.recordplan import RecordPlan, check_delta, plan_record
from fedray.rounds.availability import Availability, make_availability
from fedray.rounds.cohort import Sampler, check_unbiased, largest_cohort, make_sampler
from fedray.rounds.pacing import Schedule, check_exchange, drawn_cohort, make_schedule, most_at_once
from fedray.secure.protocol import make_protocol
from fedray.training.unfreezing import said_of_never


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is ready to be wired.

    ``sizes`` and ``model`` are None, and ``partition`` is empty, until the silos' actors have told what they hold, in runs where only
    silos can read their records; :func:`with_records` adds them.

    Attributes:
        config: the run's, with the metrics that will be taken.
        names: the clients' names.
        groups: the groups of clients.
        plans: plan of record-level privacy of each group; None for all groups where records are not protected.
        sampler: draws cohorts.
        schedule: says when the model makes a step.
        availability: says who can take part in a round; None: everybody always can.
        warnings: sentences for the user.
        federation: all records; None where the driver has none.
        test: the driver's test set, or None.
        root: the root set as the records of one client, or None.
        digest: SHA-256 of the federation, by which a resumed run notices changed data; empty where only the silos know it. Under
            privacy it leaves the driver in no other form.
        class_labels: the source's own label of each class, in class order; empty in regression.
        test_form: form of the driver's test set in runs whose silos read their own records.
        sizes: number of training records of each client, int64 ``[clients]``.
        held_out: number of each client's own held-out records, int64 ``[clients]``; None where clients hold out none.
        model: the global model.
        partition: the partition report, as JSON data.
        client_plan: plan of privacy for whole clients; None where they are not protected, or where it depends on a model that is not
            known yet.
        agreed: what each group of clients has registered, by the group's name; empty where nothing is compared.
    """

    config: Config
    names: Sequence[str]
    groups: list[ClientGroup]
    plans: list[RecordPlan | None]
    sampler: Sampler
    schedule: Schedule
    warnings: Sequence[str]
    federation: Federation | None = None
    test: Records | None = None
    root: Federation | None = None
    digest: str = ""
    class_labels: Sequence[Label] = ()
    test_form: Silo | None = None
    sizes: npt.NDArray[np.int64] | None = None
    held_out: npt.NDArray[np.int64] | None = None
    model: Model | None = None
    partition: Mapping[str, Any] = field(default_factory=dict)
    client_plan: ClientPlan | None = None
    agreed: Mapping[str, Agreement] = field(default_factory=dict)
    availability: Availability | None = None

    @property
    def away_digest(self) -> str:
        """SHA-256 of the clients' traces, by which a resumed run notices changed ones; empty without."""
        return "" if self.availability is None else self.availability.digest

    @property
    def drawn(self) -> Cohort:
        """The cohort section with the number of clients that are drawn for a round."""
        return drawn_cohort(self.config, self.schedule, len(self.names))

    @property
    def most_at_once(self) -> int:
        """How many clients may be expected to train at a time."""
        return most_at_once(self.config, self.schedule, len(self.names))

    @property
    def client_ledger(self) -> str:
        """The driver's ledger for whole clients."""
        joint = self.config.privacy.joint
        return self.groups[0].ledger if joint is None else joint.ledger

    @property
    def silos_charge_clients(self) -> bool:
        """Whether each silo charges its own updates to its own book, as under local privacy alone: then no other party need be trusted."""
        return self.config.privacy.regimes == ("local",) and self.config.clients.apart


def prepare(config: Config) -> Prepared:
    """Check everything, load the data that the driver may see, build the model and find the noise.

    Raises:
        ConfigError: the first thing that is wrong, as one sentence.
        DataError: the data cannot be read, or does not go with the config.
    """
    check_parts(config)
    check(config.data)
    warnings = check_privacy(config)
    silos = per_silo(config.data) and config.clients.apart
    check_holdout(config, per_silo(config.data))
    federation = None if silos else load_federation(config.data, config.seed)
    names = client_names(config.data, config.seed) if federation is None else federation.names
    config, lowered = bounded(config, None if federation is None else federation.sizes)
    attackers, groups = Attackers.of(config, names), make_groups(config, names)
    warnings += [*lowered, said] if (said := attackers.described(names)) else lowered
    agreed, said_of_agreed = agreed_data(config, names, groups)
    warnings += said_of_agreed + notes_of(config.data, bool(config.privacy.regimes)) + _elsewhere(config, groups)
    schedule = make_schedule(config)
    availability = make_availability(config, groups, names, schedule.carries)
    if availability is not None and config.privacy.whole_clients == "client":
        warnings.append(
            "When clients can take part (clients.groups.every, cohort.availability) counts as public, and must follow from nothing private; "
            "everyone is charged in each round at the largest rate, as if it could take part."
        )
    plans = [plan_record(config, g.training, g.every) if config.privacy.record else None for g in groups]
    sampler = make_sampler(drawn_cohort(config, schedule, len(names)), len(names))
    if (protocol := make_protocol(config.secure)) is not None:
        protocol.check(config.cohort.min_clients, largest_cohort(drawn_cohort(config, schedule, len(names)), len(names)))
    prepared = Prepared(config, names, groups, plans, sampler, schedule, warnings, agreed=agreed, availability=availability)
    if federation is None:
        test, form = silo_test(config.data) or (None, None)
        labels = declared_labels(config.data)
        test, root = split_root(test, config.root.share, len(labels) or None, config.seed)
        config, notes = _evaluated(config, test, None)
        return replace(
            prepared,
            config=config,
            warnings=[*warnings, *notes],
            test=test,
            root=root,
            class_labels=labels,
            test_form=form,
            client_plan=plan_whole_clients(config, groups, len(names), 0) if config.privacy.whole_clients == "local" else None,
        )
    rules.check_classes(config.privacy, federation.declared, federation.class_labels)
    private, classes, digest = bool(config.privacy.regimes), federation.classes, federation.digest  # before the root set is split off
    test, root = split_root(federation.test, config.root.share, classes, config.seed)
    federation = replace(federation, test=test)
    config, notes = _evaluated(config, federation.test, federation.client_test is not None)
    prepared = replace(
        prepared,
        config=config,
        warnings=[*warnings, *said_of_labels(federation), *([] if private else _left_out(federation)), *notes],
        federation=attackers.changed(federation),
        test=test,
        root=root,
        digest=digest,
        class_labels=federation.class_labels,
    )
    show_counts = classes is not None and not federation.target_shape and (not private or "class_counts" in config.privacy.unprotected)
    facts = RecordFacts(
        federation.sizes,
        federation.shape,
        classes,
        federation.train.x.dtype.kind == "i",
        federation.columns,
        federation.scale,
        federation.inputs,
        federation.target_shape,
        class_counts(federation) if show_counts else None,
        None if private else federation.train.y,
        federation.persons,
        None if federation.client_test_offsets is None else np.diff(federation.client_test_offsets),
    )
    check_silos_of_persons(config.privacy, federation)
    return with_records(prepared, facts)


def _elsewhere(config: Config, groups: Sequence[ClientGroup]) -> list[str]:
    """What is said of ledgers beside those that the run charges."""
    privacy, ledgers = config.privacy, [group.ledger for group in groups]
    of_clients = ledgers[:1] if privacy.joint is None else [privacy.joint.ledger]
    return elsewhere(
        ledgers if privacy.record else [],
        of_clients if privacy.whole_clients is not None else [],
        config.clients.apart,
    )


def _left_out(federation: Federation) -> list[str]:
    parts = (federation.train, federation.test, federation.client_test)
    return said_of_dropped(federation.dropped, sum(len(part) for part in parts if part is not None))


def with_records(prepared: Prepared, facts: RecordFacts) -> Prepared:
    """Add what follows from the clients' records: their sizes, the model, the partition report, the plan for whole clients.

    Raises:
        ConfigError: the config does not go with these records.
    """
    config, names, groups = prepared.config, prepared.names, prepared.groups
    check_persons(config.privacy, facts.persons)
    units = facts.sizes if config.privacy.person is None or facts.persons is None else facts.persons
    if config.evaluation.charged is not None and facts.held_out is not None:
        units = units + facts.held_out
    check_sizes(prepared.plans, groups, names, units)
    model = make_model(config, groups, names, facts)
    check_own_transform(config.data, facts.shape)
    config, test, notes = _evaluated_apart(config, model.apart, prepared.test)
    check_exchange(prepared.schedule, config, make_algorithm(config.algorithm).traits, make_rule(config.aggregation).wants, model.exchange)
    check_unbiased(config, model.exchange)
    if config.privacy.whole_clients and "partition" not in config.privacy.unprotected:
        partition: dict[str, Any] = {"clients": len(names)}
    else:
        partition = partition_report(names, facts.sizes, facts.class_counts)
    partition["source"] = config.data.source
    if test is not None:
        partition["test_records"] = len(test.y)
    if prepared.digest and not config.privacy.regimes:  # with the digest, an adversary who knows all records but one could test guesses
        partition["digest"] = prepared.digest
    return replace(
        prepared,
        config=config,
        warnings=[
            *prepared.warnings,
            *notes,
            *warned(config, model.initial),
            *said_of_never(model.still),
            *said_of_one_class(facts.class_counts, prepared.class_labels),
        ],
        test=test,
        sizes=facts.sizes,
        held_out=facts.held_out,
        model=model,
        partition=partition,
        client_plan=prepared.client_plan or plan_whole_clients(config, groups, len(names), model.exchange.up_size),
    )


def plan_whole_clients(config: Config, groups: list[ClientGroup], clients: int, dimension: int) -> ClientPlan | None:
    """Return the privacy plan for whole clients; None where they are not protected.

    Args:
        config: the run.
        groups: of clients; their rates bound the sampling rate.
        clients: how many there are.
        dimension: number of the model's values; 0 where it is not known and the regime does not depend on it.

    Raises:
        PrivacyRefusal: the groups' rates do not go with the way cohorts are drawn.
    """
    if config.privacy.whole_clients is None:
        return None
    rates, alike = {g.rate for g in groups}, config.cohort.availability is None and {g.every for g in groups} == {1}
    if (
        (rates != {1.0} or not alike)
        and (config.cohort.kind == "fixed" or "cap" in config.cohort.arguments)
        and config.privacy.whole_clients == "client"
    ):
        raise PrivacyRefusal(
            "clients.groups: cohorts of fixed or capped size are accounted for as drawn from all clients alike in each round, and where some have a "
            "rate of their own or are away (clients.groups.rate, clients.groups.every, cohort.availability) each of the others is drawn more often; "
            "use cohort.kind=poisson without a cap, or leave these out.",
            "privacy.incompatible.client.rates",
        )
    return plan_clients(config, clients, dimension, grid_bits(float(clients)), max(rates), len(rates) == 1 and alike)


def capacity(config: Config, sizes: npt.NDArray[np.int64]) -> float:
    """The weight that the exact sum is laid out for: of all clients, each at most 1 where whole clients are protected."""
    return float(len(sizes)) if config.privacy.whole_clients else make_algorithm(config.algorithm).largest_weight(sizes)


def check_sizes(plans: list[RecordPlan | None], groups: list[ClientGroup], names: Sequence[str], sizes: npt.NDArray[np.int64]) -> None:
    """Raise ConfigError if delta is too large for some client's number of records (or persons, ``sizes``)."""
    for group, plan in zip(groups, plans, strict=True):
        if plan is not None:
            members = np.asarray(group.members)
            largest = int(members[np.argmax(sizes[members])])
            check_delta(plan, {names[largest]: int(sizes[largest])})


def _evaluated(config: Config, test: Records | None, at_clients: bool | None) -> tuple[Config, list[str]]:
    """Return the config with the metrics that will be taken, and a warning where none will be.

    Args:
        config: the run.
        test: the driver's test set.
        at_clients: whether the clients hold test records; None where only they know.

    Raises:
        ConfigError: the config asks for metrics, but there are no test records, or the clients that hold them are not asked.
    """
    e = config.evaluation
    if e.federated and at_clients is False:
        raise no_test_records()
    if e.charged is not None and test is not None:
        raise ConfigError(
            "evaluation.charged: the driver holds test records, on which the model is evaluated without a charge, so the clients would be charged for "
            "less exact figures; set evaluation.federated=false and take evaluation.charged out, or hold out at the clients "
            "(data.holdout.at=clients)."
        )
    if e.federated and not e.metrics:
        raise ConfigError("evaluation.metrics: there are none to take at the clients; name some, or set evaluation.federated=false.")
    if not e.metrics or test is not None or e.federated:
        return config, []
    at_clients = config.data.holdout.fraction > 0 if at_clients is None else at_clients
    if at_clients:
        why = "only the clients hold test records, and they are not asked"
        charged = config.privacy.whole_clients is None and config.privacy.person is None
        protected = " with evaluation.charged.noise_multiplier" if charged else " with privacy.unprotected=[evaluation]"
        ways = "evaluation.federated=true" + (protected if config.privacy.regimes else "")
        ways += "" if per_silo(config.data) else " or data.holdout.at=driver"
    else:
        why, ways = "no test records are held out", "data.holdout.fraction above 0"
    return _without_metrics(config, why, ways, at_clients)


def _evaluated_apart(config: Config, apart: str, test: Records | None) -> tuple[Config, Records | None, list[str]]:
    """Return the config and the driver's test set as far as they are used where nothing at the driver predicts by itself, and a warning.

    Args:
        config: the run.
        apart: the reason as a clause; empty where the global model can be evaluated.
        test: the driver's test set.

    Raises:
        ConfigError: the config asks for metrics, but the clients are not asked, or for a global model that is fine-tuned.
    """
    if not apart or not config.evaluation.metrics:
        return config, test, []
    if config.evaluation.fine_tune is not None:
        raise ConfigError(
            f"evaluation.fine_tune: there is no one global model to train at each client, because {apart}; take it out, or use an algorithm with "
            "one, such as fedavg or ditto."
        )
    if config.evaluation.federated:
        said = f"The driver's test records are not used: the model does not predict by itself, because {apart}; the clients evaluate it."
        return config, None, [] if test is None else [said]
    ways = "evaluation.federated=true" + (" with privacy.unprotected=[evaluation]" if config.privacy.regimes else "")
    why = f"the model does not predict by itself, because {apart}, and the clients are not asked"
    config, notes = _without_metrics(config, why, ways, True)
    return config, None, notes


def _without_metrics(config: Config, why: str, ways: str, at_clients: bool) -> tuple[Config, list[str]]:
    """Return the config without metrics, and a warning that says so.

    Raises:
        ConfigError: the config names metrics, or the clients could be asked for them and nothing is protected.
    """
    e = config.evaluation
    # The default metrics are dropped without an error where no test records are held out, or where privacy keeps the driver from asking.
    if "metrics" in e.model_fields_set or (at_clients and not config.privacy.regimes):
        raise ConfigError(
            f"evaluation.metrics: {why}, so no metric would ever be taken; set {ways}, or evaluation.metrics=[] to train without."
        )
    without = config.model_copy(update={"evaluation": e.model_copy(update={"metrics": []})})
    return without, [f"The model is not evaluated: {why} ({ways} would change that)."]


def no_test_records() -> ConfigError:
    """Return the error for federated evaluation without test records at the clients."""
    return ConfigError(
        "evaluation.federated: the clients hold no test records; set data.holdout.at=clients with a fraction above 0, or federated=false."
    )
