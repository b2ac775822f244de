"""Prepares a query: checks its config, names the clients, and plans the noise. Nothing here uses Ray or charges anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedray.clients.groups import ClientGroup, make_groups
from fedray.config import Config
from fedray.data.datanotes import notes_of
from fedray.data.dataset import check, client_names, declared_labels, load_federation, per_silo, private_statistics
from fedray.data.records import Federation
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.experiment.finished import trained_model
from fedray.privacy import rules
from fedray.privacy.holdoutrules import check_holdout
from fedray.privacy.ledger.elsewhere import elsewhere
from fedray.privacy.ledgerrules import check_ledgers
from fedray.privacy.queryplan import QueryPlan, check_query_privacy, plan_queries
from fedray.privacy.recordplan import check_delta
from fedray.queries.asked import Asked, asked_of, bounds_of
from fedray.queryconfig import QueryConfig
from fedray.runfiles import RunFiles
from fedray.whole import check as check_files
from fedray.whole import read_config


@dataclass(frozen=True, eq=False)
class PreparedQuery:
    """A query that is ready to be asked.

    Attributes:
        config: the query's.
        asked: the statistics.
        names: the clients' names.
        groups: the groups of clients.
        plan: of the noise; None if nothing is protected.
        federation: all records; None where only the silos have them.
        labels: the source's own label of each class; empty in regression.
        warnings: sentences for the user.
    """

    config: QueryConfig
    asked: Sequence[Asked]
    names: Sequence[str]
    groups: Sequence[ClientGroup]
    plan: QueryPlan | None
    federation: Federation | None
    labels: Sequence[Any]
    warnings: Sequence[str]

    @property
    def dedicated(self) -> bool:
        """Whether each client has an actor and a ledger of its own."""
        return self.config.clients.placement == "dedicated"

    def check_sizes(self, sizes: dict[str, int]) -> None:
        """Refuse a delta that is too large for a client's number of records (training and held-out ones)."""
        if self.plan is not None:
            check_delta(self.plan, sizes)


def prepare_query(config: QueryConfig) -> PreparedQuery:
    """Check everything and read the records that the driver may see.

    Raises:
        ConfigError: the first thing that is wrong, as one sentence.
        DataError: the data cannot be read.
        PrivacyRefusal: the regime does not go with queries.
    """
    privacy = config.privacy
    check(config.data)
    if privacy.regimes:
        check_query_privacy(privacy)
        check_ledgers(config)
    else:
        rules.check(config)
    if privacy.regimes and private_statistics(config.data):
        raise PrivacyRefusal(
            f"data.normalize: '{config.data.normalize.kind}' computes statistics over private records, so a record's contribution depends on all "
            "others; use none, unit_norm or constants.",
            "privacy.incompatible.record.private_statistics",
        )
    asked, judged = asked_of(config), judged_run(config)
    silos = per_silo(config.data) and config.clients.placement == "dedicated"
    check_holdout(config, per_silo(config.data))
    federation = None if silos else load_federation(config.data, config.seed)
    names = client_names(config.data, config.seed) if federation is None else federation.names
    if federation is None:
        labels = declared_labels(config.data)
        classes = len(labels) or None
    else:
        rules.check_classes(privacy, federation.declared, federation.class_labels)
        labels, classes = federation.class_labels, federation.classes
    plan = plan_queries(config, bounds_of(asked, classes)) if privacy.regimes else None
    groups, dedicated = make_groups(config, names), config.clients.placement == "dedicated"
    warnings = notes_of(config.data, plan is not None) + elsewhere(
        [] if plan is None else [group.ledger for group in groups], [], dedicated
    )
    if plan is None:
        bounds_of(asked, classes)
        warnings.append("privacy.regime is none: the answers are exact, nothing is charged, and they protect nobody.")
    elif privacy.insecure_seed is not None:
        warnings.append("privacy.insecure_seed: the noise can be replayed; the privacy claim of this query is void.")
    if config.judged is not None and judged is None:
        warnings.append(f"judged: {config.judged} holds no finished run yet, so whether its seed and data are this query's is not known.")
    if plan is not None and plan.planned_epsilon > 10:
        warnings.append("privacy: an epsilon above 10 is a weak guarantee; say so if you publish it.")
    prepared = PreparedQuery(config, asked, names, groups, plan, federation, labels, warnings)
    if federation is not None:
        prepared.check_sizes({name: _size(federation, k) for k, name in enumerate(names)})
        if any(one.part == "held_out" for one in asked) and federation.client_test is None:
            raise nothing_held_out()
    return prepared


def _size(federation: Federation, k: int) -> int:
    data = federation.client(k)
    return len(data.train) + (0 if data.test is None else len(data.test))


def nothing_held_out() -> ConfigError:
    """The error of a statistic of held-out records where clients hold none."""
    return ConfigError(
        "queries: a statistic is of held-out records, but the clients hold out none; set data.holdout.at=clients with a fraction above 0, "
        "or the statistic's records=train."
    )


def judged_run(config: QueryConfig) -> Config | None:
    """The config of the run whose model the statistics judge; None if they judge none, or if the run is not finished.

    Raises:
        ConfigError: the run's data section or seed is not the query's, so that the model would get other records.
        FedrayError: the run's files are damaged.
    """
    files = RunFiles(Path(config.judged or ""))
    if config.judged is None or not files.model.exists():
        return None
    check_files(files)
    trained = read_config(files)
    other = [key for key in ("seed", "data") if getattr(trained, key) != getattr(config, key)]
    if other:
        raise ConfigError(
            f"judged: the run in {config.judged} has another section '{other[0]}' than this query, so its model would see other records than it "
            "was trained and held out on; copy the section."
        )
    return trained


def judged_model(config: QueryConfig) -> nn.Module | None:
    """The model that the statistics judge, in evaluation mode; None if they judge none.

    Raises:
        ConfigError: see :func:`judged_run`, or the run is not finished.
        FedrayError: the run's files are missing or damaged.
    """
    if config.judged is None:
        return None
    trained = judged_run(config)
    if trained is None:
        raise ConfigError(f"judged: {config.judged} holds no finished run (no model.safetensors); name the directory of one.")
    return trained_model(RunFiles(Path(config.judged)), trained)[0]
