"""Joins a Ray cluster or starts a local Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedray.config import RayCluster
from fedray.errors import ConfigError, first_line
from fedray.experiment.address import choose_address
from fedray.experiment.localray import local_ray, temporary_files

#: Ray namespace of fedray's actors.
NAMESPACE = "fedray"


@dataclass(frozen=True)
class ClusterAddress:
    """The Ray of a run.

    Attributes:
        inside: whether the run uses the Ray that this process is connected to.
        address: ``HOST:PORT`` of a cluster to join; None with ``inside``, or if the run starts a local Ray.
    """

    inside: bool = False
    address: str | None = None

    @property
    def own(self) -> bool:
        """Whether the run starts its own Ray, and ends it."""
        return not self.inside and self.address is None


def find_place(settings: RayCluster) -> ClusterAddress:
    """Decide which Ray to use, without starting or joining it.

    Raises:
        ConfigError: the cluster cannot be joined from here, or no local Ray can be started.
    """
    import ray

    if ray.is_initialized():
        return ClusterAddress(inside=True)
    place = ClusterAddress(address=choose_address(settings))
    if place.own:
        temporary_files()
    return place


@contextmanager
def joined(place: ClusterAddress, settings: RayCluster, announce: Callable[[str], None] = lambda where: None) -> Iterator[None]:
    """Be connected to Ray within the block; a local Ray ends with the block.

    Args:
        place: from :func:`find_place`.
        settings: the config section.
        announce: called with a clause on what is about to be done, if a cluster is joined or a local Ray has to be started again.

    Raises:
        ConfigError: the cluster refuses the connection.
        FedrayError: a local Ray does not start.
    """
    # Otherwise Ray collects usage statistics and warns about defaults of its next version.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if place.inside:
        announce("using the Ray of this process")
        yield
        return
    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if place.address is None:
        with local_ray(settings, common, announce):
            yield
        return
    announce(f"joining Ray at {place.address}")
    try:
        try:
            ray.init(address=place.address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the Ray cluster at {place.address} cannot be joined ({first_line(error)}); see RAY_AUTH_MODE for tokens."
            ) from None
        yield
    finally:
        ray.shutdown()


def off_the_head() -> dict[str, str]:
    """Return a label selector that keeps the driver actor off the head, so that it survives the head's loss; empty if no other node exists.

    Soft affinity to another node would not do: Ray may still put the actor on the head.
    """
    import ray

    nodes = [n for n in ray.nodes() if n["Alive"]]
    heads = [n["NodeID"] for n in nodes if "node:__internal_head__" in n["Resources"]]
    return {"ray.io/node-id": f"!{heads[0]}"} if heads and len(nodes) > len(heads) else {}
