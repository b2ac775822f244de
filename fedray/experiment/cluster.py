"""Joining or starting Ray."""

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
    """Where a run will be: the Ray of this process, a cluster at ``address``, or (neither) a local Ray of its own."""

    inside: bool = False
    address: str | None = None

    @property
    def own(self) -> bool:
        """The run starts its Ray itself, and ends it."""
        return not self.inside and self.address is None


def find_place(settings: RayCluster) -> ClusterAddress:
    """Which Ray to use; starts and joins nothing.

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
    """Be in Ray at ``place``; a local Ray ends with the block.

    ``announce`` is called with what is about to be done, where a cluster is joined, or a local Ray has to be started again.

    Raises:
        ConfigError: the cluster does not let us in.
        FedrayError: a local Ray does not start.
    """
    # Ray otherwise asks for usage statistics and warns about defaults of the next version.
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
    """A label selector that keeps the driver actor off the head, whose loss it then survives; empty where there is no other node.

    Not affinity to one node: where that is soft, Ray may put the actor on the head all the same.
    """
    import ray

    nodes = [n for n in ray.nodes() if n["Alive"]]
    heads = [n["NodeID"] for n in nodes if "node:__internal_head__" in n["Resources"]]
    return {"ray.io/node-id": f"!{heads[0]}"} if heads and len(nodes) > len(heads) else {}
