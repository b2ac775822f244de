"""What a run with silos outside the cluster cannot ask for, because it is theirs, or happens where the cluster's nodes are."""

from __future__ import annotations

from fedray.components import is_own
from fedray.config import Config
from fedray.errors import ConfigError

_THEIRS = "a silo's machine is its own, and its site file says so"


def check_remote(config: Config, keeps: bool) -> None:
    """Refuse what does not go with ``clients.placement: remote``, and its source of records with other placements.

    Args:
        config: the run.
        keeps: whether its clients keep something between their turns.

    Raises:
        ConfigError: the first thing that does not.
    """
    clients, source = config.clients, config.data.source.partition(":")[0]
    if clients.placement != "remote":
        if source == "silos":
            raise ConfigError(
                f"data.source: silos: names silos outside the cluster; use clients.placement=remote, not {clients.placement}."
            )
        return
    given = clients.model_fields_set
    for key, there, why in (
        (
            "data.source",
            source != "silos",
            "the run names its silos (silos:NAME,NAME), and each silo's site file says where its records are",
        ),
        ("data.partition.kind", config.data.partition.kind != "natural", "each silo has its own records, which are not dealt; use natural"),
        ("clients.actors", "actors" in given, "each silo has a process of its own"),
        ("clients.resources", "resources" in given, _THEIRS),
        ("clients.node_sums", "node_sums" in given, "silos share no node, so each sends its own part; take it out"),
        ("clients.groups", any(g.resources is not None or g.ledger is not None for g in clients.groups), _THEIRS),
        ("agreed.registration", config.agreed is not None, "silos do not compare their records with a registration yet; take it out"),
        ("sweep", config.sweep is not None, "trials side by side would need a gateway each; run them one by one"),
        ("algorithm.kind", keeps, "silos keep nothing between their turns yet; use an algorithm and a compression without such a state"),
        (
            "privacy.mechanism.kind",
            config.privacy.mechanism is not None and is_own(config.privacy.mechanism.kind),
            "silos know fedray's own alone",
        ),
        (
            "model.kind",
            "python:provided" in config.model_dump_json(),
            "objects given in Python do not leave the process; name an installed part",
        ),
    ):
        if there:
            raise ConfigError(f"{key}: not with clients.placement=remote: {why}.")
