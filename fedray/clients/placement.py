"""Where client actors go: how many, with which resources, and how one is started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray

from fedray.choices import Resources
from fedray.clients.groups import ClientGroup
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask
from fedray.clients.nodes import Node, asks, in_placement_group, ray_options, room
from fedray.clients.terms import Site, Terms
from fedray.config import Config
from fedray.errors import ConfigError

__all__ = ["ACTOR_MEMORY", "Place", "asks", "more_places", "plan_places", "start_actor"]

#: Memory that one actor with torch and Opacus takes before it holds any data, bytes (measured 0.42 GB).
ACTOR_MEMORY = 500 * 2**20


@dataclass(frozen=True)
class Place:
    """One actor's place: the queue of clients that it serves, and what it asks of Ray.

    A queue has the clients that its actors may train: those of a group (hosted), or one (dedicated). A ``remote`` place's actor stands for a
    silo outside the cluster.
    """

    key: str
    queue: str
    group: int
    resources: Resources
    client: ClientTask | None = None
    remote: bool = False


def plan_places(
    config: Config, groups: Sequence[ClientGroup], names: Sequence[str], free: Mapping[str, float], most: int, elastic: bool
) -> list[Place]:
    """The actors of a run.

    Args:
        config: the run.
        groups: the clients' groups.
        names: the clients' names.
        free: Ray's available resources (``CPU``, ``GPU``, ``memory``, custom ones).
        most: the largest cohort to expect; more actors than that have nothing to do.
        elastic: the cluster may grow, so asking for more than there is now is not an error.

    Raises:
        ConfigError: the cluster cannot hold what the config asks for.
    """
    places = []
    if config.clients.placement == "remote":  # what stands for a silo takes next to nothing
        nothing = Resources(cpu=0.0)
        return [
            Place(names[i], names[i], g, nothing, ClientTask(i, names[i]), True) for g, group in enumerate(groups) for i in group.members
        ]
    if config.clients.placement == "dedicated":
        for g, group in enumerate(groups):
            places += [Place(names[i], names[i], g, group.resources, ClientTask(i, names[i])) for i in group.members]
        if not elastic:
            _check_fits(places, free)
        return places
    for g, group in enumerate(groups):
        share = len(group.members) / len(names)
        most_here = min(len(group.members), max(1, most))
        if config.clients.actors == "auto":
            number = min(_fitting(group.resources, free, share if len(groups) > 1 else 1.0), most_here)
            if number < 1 and not elastic:
                _check_fits([Place(group.name, group.name, g, group.resources)], free)
            number = max(number, 1)
        else:
            number = min(max(1, round(config.clients.actors * share)), most_here)
        places += [Place(f"{group.name}/{n}", group.name, g, group.resources) for n in range(number)]
    if not elastic:
        _check_fits(places, free)
    return places


def more_places(
    config: Config, groups: Sequence[ClientGroup], most: int, places: Sequence[Place], unplaced: Sequence[Place], nodes: Sequence[Node]
) -> list[Place]:
    """What to add to a hosted pool (``actors: auto``) now that the cluster has gained room.

    Args:
        config, groups, most: see :func:`plan_places`.
        places: what the pool has.
        unplaced: those of them whose actors are not up; they take free room first.
        nodes: the cluster as it is.
    """
    if config.clients.placement != "hosted" or config.clients.actors != "auto":
        return []
    have = Counter(place.group for place in places)
    shares = {n: have[n] / min(len(group.members), max(1, most)) for n, group in enumerate(groups)}
    for n in sorted(shares, key=lambda n: shares[n]):  # one group a time, who has least of what it can use first
        group = groups[n]
        wanted = min(len(group.members), max(1, most)) - have[n]
        number = min(wanted, room(group.resources, nodes, ACTOR_MEMORY) - len(unplaced))
        if number > 0:
            return [Place(f"{group.name}/{have[n] + k}", group.name, n, group.resources) for k in range(number)]
    return []


def _fitting(resources: Resources, free: Mapping[str, float], share: float) -> int:
    counts = [free.get(name, 0.0) * share / amount for name, amount in asks(resources).items()]
    if resources.memory_gb is None and "memory" in free:
        counts.append(free["memory"] * share / ACTOR_MEMORY)
    return int(min(counts) + 1e-9) if counts else 1


def _check_fits(places: Sequence[Place], free: Mapping[str, float]) -> None:
    needed: dict[str, float] = {}
    for place in places:
        for name, amount in asks(place.resources).items():
            needed[name] = needed.get(name, 0.0) + amount
    for name, amount in needed.items():
        if amount > free.get(name, 0.0) + 1e-9:
            unit = "bytes of memory" if name == "memory" else name
            share = math.floor(100 * free.get(name, 0.0) / len(places)) / 100
            less = f"give each less (clients.resources.cpu={share:g})" if name == "CPU" and share else "lower clients.resources"
            raise ConfigError(
                f"clients.resources: {len(places)} actors ask for {amount:g} {unit}, but the cluster has {free.get(name, 0.0):g} free; "
                f"{less}, have fewer clients.actors, use placement: hosted, or join a larger cluster (ray.address)."
            )


def start_actor(place: Place, terms: Terms, site: Site, data: Any) -> Any:
    """Start one client actor; returns its handle at once."""
    return _actor_class().options(**actor_options(place)).remote(terms, site, data)


def actor_options(place: Place) -> dict[str, Any]:
    """Ray's options of a client actor.

    A call is never repeated by Ray itself (``max_task_retries=0``): under DP a repeated call would be a second release that nobody charged.
    Its caller replaces a dead actor, or fails, so ``max_restarts`` is 0 too. Hosted actors that ask for no certain node are spread over all
    of them; in a placement group, where its bundles are.
    """
    r = place.resources
    options = ray_options(r) | {"max_restarts": 0, "max_task_retries": 0}
    if place.client is None and not r.labels and not r.custom and not in_placement_group():
        options["scheduling_strategy"] = "SPREAD"
    return options


@cache
def _actor_class() -> Any:
    """One class for all actors: Ray sends a new one to the cluster's head, for which the call waits."""
    return ray.remote(concurrency_groups={"control": 2})(ClientHost)
