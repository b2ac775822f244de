"""Which parts a config may name, and which of them go together, as far as that does not depend on the data."""

from __future__ import annotations

import inspect
from typing import Any

from fedray import components
from fedray.aggregation.mean import WeightedMean
from fedray.aggregation.root import RootUse
from fedray.aggregation.rule import Rule, make_rule
from fedray.algorithms.algorithm import Algorithm, check_training, make_algorithm, make_server, own_models
from fedray.algorithms.server import ServerSGD
from fedray.algorithms.serverschedule import check_server_schedule
from fedray.attacks.attackers import check_attack
from fedray.choices import LossChoice
from fedray.clients.groups import training_of
from fedray.clients.remoterules import check_remote
from fedray.components import find
from fedray.config import Config
from fedray.data.dataset import private_statistics
from fedray.errors import ConfigError
from fedray.models.build import adapter, factory_arguments
from fedray.privacy import rules
from fedray.privacy.aggregationrules import check_rule
from fedray.privacy.clientplan import make_mechanism
from fedray.privacy.cohortrules import check_cohort
from fedray.privacy.evaluationplan import check_judged
from fedray.privacy.pacingrules import check_pacing
from fedray.privacy.securerules import check_hidden_losses, check_secure
from fedray.privacy.signingrules import check_signing
from fedray.privacy.stagerules import check_stages
from fedray.privacy.trainingrules import coupled_loss, own_counts
from fedray.rounds.cohort import READING, WEIGHING, check_sampler
from fedray.rounds.pacing import make_schedule
from fedray.rounds.stragglers import check_stragglers
from fedray.secure.protocol import make_protocol
from fedray.training.evaluate import find_metrics
from fedray.training.losses import find_loss
from fedray.training.noisedmetrics import counted_for
from fedray.training.schedules import check_schedule
from fedray.training.unfreezing import check_unfreezing
from fedray.updates.download import make_coder
from fedray.updates.pipeline import keep_state, make_stages


def check_only(config: Config) -> None:
    """Check what can be checked without the data, for commands that may run on another node than the driver.

    Raises:
        ConfigError: as for :func:`prepare`.
    """
    check_parts(config)
    check_privacy(config)


def check_privacy(config: Config) -> list[str]:
    """Refuse what a privacy claim may not be combined with; returns warnings of what should be known.

    Raises:
        ConfigError: as :func:`fedray.privacy.rules.check`, :func:`fedray.privacy.evaluationplan.check_judged`,
            :func:`fedray.privacy.rules.check_algorithm`,
            :func:`fedray.privacy.aggregationrules.check_rule`, :func:`fedray.privacy.stagerules.check_stages`,
            :func:`fedray.privacy.pacingrules.check_pacing`, :func:`fedray.privacy.cohortrules.check_cohort`,
            :func:`fedray.privacy.securerules.check_secure` and :func:`fedray.privacy.signingrules.check_signing`.
    """
    algorithm, rule = make_algorithm(config.algorithm), make_rule(config.aggregation)
    check_remote(config, algorithm.traits.state or keep_state(make_stages(config)))
    check_attack(config, algorithm.traits, rule.wants)
    warnings = rules.check(config, private_statistics(config.data))
    warnings += check_rule(config, rule.wants, _is_mean(rule))
    check_judged(config, not own_models(algorithm))
    rules.check_algorithm(config, algorithm.traits, algorithm.weight(2) != algorithm.weight(1))
    check_stages(config, make_stages(config), algorithm.traits)
    schedule, reads = make_schedule(config), config.cohort.kind in READING
    check_pacing(config, schedule.carries, schedule.selects)
    check_cohort(config, config.cohort.kind in WEIGHING, reads)
    check_hidden_losses(config, reads)
    check_secure(config, rule.wants, make_stages(config), schedule.carries, schedule.selects, algorithm.traits)
    check_signing(config)
    return warnings


def check_parts(config: Config) -> None:
    """Look up every part that the config names and check its arguments.

    Raises:
        ConfigError: a name is unknown or an argument does not fit.
    """
    algorithm, rule = make_algorithm(config.algorithm), make_rule(config.aggregation)
    check_training(algorithm, config.training)
    if algorithm.traits.exact and not _is_mean(rule):
        raise ConfigError(
            f"aggregation.kind: '{config.aggregation.kind}' is no plain sum, which '{config.algorithm.kind}' needs; use mean."
        )
    if algorithm.traits.divides and rule.wants == "each":
        raise ConfigError(
            f"aggregation.kind: the driver of '{config.algorithm.kind}' divides one sum of what clients send by another, which "
            f"'{config.aggregation.kind}' does not give; use mean, or an algorithm such as fedavg or fedprox."
        )
    _check_root(config, rule.root(), algorithm)
    if rule.lasting() is not None and config.attack.kind != "none":
        raise ConfigError(
            f"aggregation.remember: this run is attacked on purpose (attack.kind={config.attack.kind}), and what it finds would be held against the "
            "clients in later runs; take one of the two out."
        )
    if make_coder(config.download) is not None and algorithm.traits.exact:
        raise ConfigError(
            f"download.kind: clients of '{config.algorithm.kind}' send what the server makes the next model of from the very one that they got, and "
            "a coded one is another; use download.kind=none, or an algorithm such as fedavg."
        )
    schedule = make_schedule(config)
    waits = not schedule.carries and not schedule.selects
    check_stragglers(config, waits)
    check_sampler(config, waits, _is_mean(rule), algorithm.traits)
    served = make_server(config.server) != ServerSGD() or config.server.schedule.kind != "constant"
    if served and algorithm.traits.sets:
        raise ConfigError(
            f"server: has no effect, because the driver of '{config.algorithm.kind}' makes the next model itself; take it out."
        )
    make_protocol(config.secure)
    if config.privacy.whole_clients:
        make_mechanism(config.privacy)
    for path, choice in _losses(config).items():
        loss = find_loss(choice)
        if loss.couples and config.privacy.record:
            raise coupled_loss(path, loss.name)
        if loss.by_counts and config.privacy.record:
            raise own_counts(path)
    find_metrics(config.evaluation.metrics)
    if config.evaluation.charged is not None:
        counted_for(config.evaluation.metrics, config.evaluation.charged, None)
    _check_fine_tune(config)
    check_schedule(config.training.schedule, config.rounds)
    check_server_schedule(config.server, config.rounds)
    check_unfreezing(config)
    _check_precision(config)
    factory = find(components.MODELS, config.model.kind)
    if inspect.isroutine(factory) or inspect.isclass(factory):
        factory_arguments(factory, config.model)
    if config.model.adapters is not None:
        adapter(config.model.adapters)


def _check_fine_tune(config: Config) -> None:
    """Refuse fine-tuning for an evaluation that the clients are not asked for, and of models that they do not train.

    Raises:
        ConfigError: with what to change.
    """
    section = config.evaluation.fine_tune
    if section is None:
        return
    if not config.evaluation.federated:
        raise ConfigError(
            "evaluation.fine_tune: each client evaluates the model that it has fine-tuned, but evaluation.federated is false; set it to true, or "
            "take fine_tune out."
        )
    if not config.training.trains:
        raise ConfigError(
            f"evaluation.fine_tune: the clients of algorithm.kind '{config.algorithm.kind}' do not train, so training says nothing of how they "
            "would; take it out, or use an algorithm such as fedavg."
        )
    groups = [training_of(config, g.training, f"clients.groups.{i}.training") for i, g in enumerate(config.clients.groups)]
    if section.epochs is not None and any(t.sampling_rate is not None for t in (config.training, *groups)):
        raise ConfigError("evaluation.fine_tune.epochs: training.sampling_rate draws steps and knows no epochs; give steps instead.")


def _check_root(config: Config, use: RootUse, algorithm: Algorithm) -> None:
    """Refuse a root set that nothing reads, a rule without the one it needs, and an algorithm that a root set cannot stand in for a client of.

    Raises:
        ConfigError: with what to change.
    """
    kind, given = config.aggregation.kind, config.root.share is not None
    if use == "must" and not given:
        raise ConfigError(
            f"root.share: aggregation.kind '{kind}' compares updates with the driver's own on a public root set, and there is none; set "
            "root.share to a fraction of the driver's held-out records, and root.public=true if they are public."
        )
    if use == "no" and given:
        raise ConfigError(f"root.share: aggregation.kind '{kind}' makes no use of a root set; take the section out, or use fltrust.")
    if given and (algorithm.traits.state or not algorithm.traits.passes):
        why = "keep vectors between their turns" if algorithm.traits.state else "do not train"
        raise ConfigError(
            f"root.share: clients of algorithm.kind '{config.algorithm.kind}' {why}, so that a root set does not make an update like theirs; "
            "use an algorithm such as fedavg or fedprox."
        )


def _check_precision(config: Config) -> None:
    """Refuse float16 where clients train on CPUs.

    Raises:
        ConfigError: with what to use.
    """
    usual, own = config.clients.resources, config.training.precision
    places = [("training", own, usual)]
    places += [
        (f"clients.groups.{i}.training", g.training.get("precision", own), g.resources or usual)
        for i, g in enumerate(config.clients.groups)
    ]
    for path, precision, resources in places:
        if precision == "fp16" and not resources.gpu:
            raise ConfigError(
                f"{path}.precision: fp16 is for GPUs, and these clients have none (resources.gpu is 0); a CPU would take many times as long as in fp32: "
                "use bf16, or give them one."
            )


def _losses(config: Config) -> dict[str, LossChoice]:
    """The losses of the training section and of the groups that have their own, by their paths in the config."""
    found = {"training.loss": config.training.loss}
    for i, group in enumerate(config.clients.groups):
        if "loss" in group.training:
            path = f"clients.groups.{i}.training"
            found[f"{path}.loss"] = training_of(config, group.training, path).loss
    return found


def _is_mean(rule: Rule[Any]) -> bool:
    """Whether a rule is the weighted mean, whatever it is called."""
    return type(rule).combine is WeightedMean.combine
