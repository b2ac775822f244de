"""What a sweep may not change, and when it may not be sealed."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only
from fedray.privacy.rules import claim
from fedray.sweepconfig import SweepSection
from fedray.sweeps.space import Point, at

#: Sections and keys that are the same in all trials, with the reason.
_FIXED = {
    "name": "it names the sweep",
    "experiment": "all trials stand in one experiment",
    "tracking": "all trials stand in one store",
    "ray": "all trials run on one cluster",
    "checkpoint": "it decides nothing that trials are compared by",
    "evaluation": "trials are compared by the same records and metrics",
    "sweep": "it is the sweep itself",
    "privacy.regime": "figures of different units cannot be compared or composed",
    "privacy.mechanism": "figures of different kinds of guarantee cannot be composed",
    "privacy.delta": "figures at different deltas cannot be compared",
    "privacy.budget": "it is the budget of all trials together",
    "privacy.ledger": "all trials are charged to the same ledgers",
    "privacy.unprotected": "it decides whether there is a claim at all",
    "privacy.insecure_seed": "it decides whether there is a claim at all",
    "privacy.max_silos_per_person": "it says what the data is",
    "privacy.joint.delta": "figures at different deltas cannot be compared",
    "privacy.joint.budget": "it is the budget of all trials together",
    "privacy.joint.ledger": "all trials are charged to the same ledgers",
}
#: What decides whose records a ledger's subject stands for; the same in all trials where records are private.
_WHOSE = ("data", "seed", "clients", "agreed", "root", "attack")
#: Keys of which a sealed sweep may take any value of an interval, because the privacy cost does not depend on them.
_FREE = ("training.lr", "training.momentum", "training.weight_decay", "server", "algorithm", "model", "privacy.clip", "privacy.joint.clip")


def check_sweep(config: Config) -> SweepSection:
    """Refuse a sweep that changes what must be the same in all trials, or that may not be sealed.

    Returns:
        the config's sweep section.

    Raises:
        ConfigError: there is no such section, or a key of the space may not be swept.
        PrivacyRefusal: the sweep would void a claim.
    """
    section = config.sweep
    if section is None:
        raise ConfigError("sweep: this config has no sweep section, so there is nothing to try; add sweep.space, or use fedray run.")
    for key in section.space:
        for fixed, why in _FIXED.items():
            if _within(key, fixed) or _within(fixed, key):
                raise ConfigError(f"sweep.space.{key}: cannot be swept, because {why}; set it in the config itself.")
        if config.privacy.regimes and any(_within(key, fixed) for fixed in _WHOSE):
            raise PrivacyRefusal(
                f"sweep.space.{key}: would give the clients other records in each trial, while each client has one ledger for all of them; "
                "sweep it in a config without privacy, or in runs with a ledger for each.",
                f"privacy.incompatible.sweep.{key.partition('.')[0]}",
            )
    metric = metric_of(config)
    if not metric.startswith("eval/") or not config.evaluation.metrics:
        raise ConfigError(
            f"sweep.metric: '{metric}' is no metric of the driver's test records; name one of "
            f"{', '.join(f'eval/{name}' for name in config.evaluation.metrics) or 'evaluation.metrics, of which there are none'}."
        )
    if section.scheduler == "asha" and not config.evaluation.every:
        raise ConfigError("sweep.scheduler: asha compares trials on their way, but evaluation.every is 0; set it to 1 or more.")
    if section.price == "sealed":
        _check_sealed(config, section)
    elif config.privacy.regimes and section.concurrent > 1:
        raise PrivacyRefusal(
            f"sweep.concurrent: one run at a time charges a ledger, and all trials are charged to the same ones, so {section.concurrent} trials cannot "
            "run at once; set sweep.concurrent=1 (each trial then has the whole cluster), or price the sweep as sealed.",
            "privacy.incompatible.charged.concurrent",
        )
    return section


def _check_sealed(config: Config, section: SweepSection) -> None:
    if not config.privacy.regimes:
        raise ConfigError(
            "sweep.price: nothing is protected (privacy.regime is none), so there is nothing to seal; set sweep.price to charged, or name a regime."
        )
    standing = claim(config)
    if not standing.valid:
        raise PrivacyRefusal(
            f"sweep.price: {standing.reasons[0]}, so the claim would be void and sealing would promise nothing; take that setting out, or set "
            "sweep.price to charged.",
            "privacy.incompatible.sealed.void_claim",
        )
    if config.clients.apart:
        raise PrivacyRefusal(
            "sweep.price: dedicated clients keep their own ledgers and would charge every trial there, which the one charge of a sealed sweep "
            "cannot replace; set sweep.price to charged.",
            "privacy.incompatible.dedicated.sealed",
        )
    if config.evaluation.federated:
        raise PrivacyRefusal(
            "evaluation.federated: what clients report of their own records is a release of each trial that the one charge of a sealed sweep does "
            "not cover; set evaluation.federated=false, or sweep.price to charged.",
            "privacy.incompatible.federated_evaluation.sealed",
        )
    if config.privacy.whole_clients == "distributed":
        raise PrivacyRefusal(
            "sweep.price: distributed noise costs what each trial's model makes it cost, which is known only when the trial runs; set "
            "sweep.price to charged, or privacy.regime to client.",
            "privacy.incompatible.distributed.sealed",
        )
    for key, values in section.space.items():
        if values.choice is None and not any(_within(key, free) for free in _FREE):
            raise PrivacyRefusal(
                f"sweep.space.{key}: the one charge of a sealed sweep must cover every value that may be drawn, and an interval has too many for "
                "a key that may decide the privacy cost; give a list of values.",
                "privacy.incompatible.sealed.interval",
            )


def check_points(config: Config, points: list[Point]) -> None:
    """Check the config of every trial as far as that needs no data.

    Raises:
        ConfigError: the config of a trial is wrong; the sentence names the point.
    """
    for point in points:
        try:
            check_only(at(config, point))
        except ConfigError as error:
            raise type(error)(f"sweep: the trial with {', '.join(f'{k}={v}' for k, v in point.items())} is refused: {error}") from None


def metric_of(config: Config) -> str:
    """The metric by which trials are compared."""
    given = None if config.sweep is None else config.sweep.metric
    if given is None:
        return config.evaluation.headline
    return given if "/" in given else f"eval/{given}"


def largest_is_best(config: Config) -> bool:
    """Whether more of the metric is better."""
    from fedray.training.evaluate import find_metrics
    from fedray.training.metrics import lower_is_better

    if config.sweep is not None and config.sweep.mode is not None:
        return config.sweep.mode == "max"
    metric = find_metrics(config.evaluation.metrics).get(metric_of(config).removeprefix("eval/"))
    return metric is None or not lower_is_better(metric)


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")
