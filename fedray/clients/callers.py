"""Refuses a run whose clients can have no room because the run's callers keep it while they wait.

A run can be called from a Ray Tune trial, or from an actor. The resources that these hold are not given back before the run ends, so a run
that needs them would wait forever.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import ray
from ray._private import state as ray_state  # Ray's public interface asks the dashboard, which is not always there
from ray.core.generated import gcs_pb2

from fedray.choices import Resources
from fedray.clients.nodes import PATIENCE, Node, asks, covers, describe, in_placement_group, look, suits, total, within
from fedray.clients.placement import Place
from fedray.errors import ConfigError

#: Classes of a run's own actors; an earlier run's are on their way out.
_OWN = ("Experiment", "ClientHost", "Evaluator")

#: Seconds for which room may be missing: an earlier run's actors give theirs back.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Holding:
    """Resources of one node that an actor or a placement group of this Ray job holds.

    Attributes:
        name: for messages.
        node: the node's id.
        amounts: by Ray's names.
    """

    name: str
    node: str
    amounts: Mapping[str, float]


def with_room(places: Sequence[Place]) -> Sequence[Place]:
    """Return the places, having checked that those without which the run cannot start can have room while its callers wait.

    Raises:
        ConfigError: the caller's placement group has nothing left, or this Ray job's own actors and placement groups hold what the
            clients need.
    """
    needed = [place for place in places if place.client is not None] or list({place.queue: place for place in places}.values())
    limit = time.monotonic() + _PATIENCE
    while (why := _why_never(needed)) is not None:
        if time.monotonic() > limit:
            raise ConfigError(why)
        time.sleep(0.25)
    return places


def _why_never(needed: Sequence[Place]) -> str | None:
    """Return one sentence on why these places will have no room, and what to set; None where they will, or where the head does not answer."""
    nodes = look()
    if nodes is None:
        return None
    if in_placement_group():
        lacking = unplaced(needed, nodes)
        return None if lacking is None else in_group_sentence(lacking, nodes)
    if ray_state.state.get_max_resources_from_cluster_config() is not None:  # an autoscaler adds nodes
        return None
    holdings = within(PATIENCE, _holdings)
    return None if holdings is None else without_group(needed, nodes, holdings)


def without_group(needed: Sequence[Place], nodes: Sequence[Node], holdings: Sequence[Holding]) -> str | None:
    """Return one sentence on why the places have no room as long as the holdings stay; None where they have, or where another reason exists."""
    empty = [replace(node, free=node.total) for node in nodes]
    lacking = unplaced(needed, [replace(node, free=_less(node, holdings)) for node in nodes]) if holdings else None
    if lacking is None or unplaced(needed, empty) is not None:
        return None
    held = "; ".join(f"{name} holds {describe_amounts(amounts)}" for name, amounts in _by_name(holdings).items())
    return (
        f"clients.resources: client actor {lacking.key} asks for {describe(lacking.resources)}, and what this Ray job itself holds, which "
        f"it does not give back while it waits for the run, leaves none: {held}, of {total(empty)}; give the callers less "
        "(num_cpus=0 for an actor that only waits), lower clients.resources, or use a Ray with more."
    )


def in_group_sentence(lacking: Place, bundles: Sequence[Node]) -> str:
    """Return one sentence on a place that has no room in the caller's placement group."""
    bundle = {("CPU" if name == "cpu" else name): amount for name, amount in asks(lacking.resources).items()}
    shown = ", ".join(f"{{{describe_amounts(b.total)}}} with {{{describe_amounts(b.free) or 'nothing'}}} free" for b in bundles)
    return (
        f"clients.resources: client actor {lacking.key} asks for {describe(lacking.resources)}, and the placement group that the run was "
        f"called in has no bundle with that to spare ({shown}); give it bundles for clients, in Ray Tune with tune.with_resources(trial, "
        f"tune.PlacementGroupFactory([{{'CPU': 1}}, {bundle}])), a further {bundle} for each client actor, or lower clients.resources."
    )


def unplaced(places: Iterable[Place], nodes: Sequence[Node]) -> Place | None:
    """Fill the nodes with the places in order; returns the first place without room, or None where all have room."""
    left = [dict(node.free) for node in nodes]
    for place in places:
        wanted = asks(place.resources)
        for node, free in zip(nodes, left, strict=True):
            if suits(place.resources, node) and covers(free, wanted):
                for name, amount in wanted.items():
                    free[name] = free.get(name, 0.0) - amount
                break
        else:
            return place
    return None


def describe_amounts(amounts: Mapping[str, float]) -> str:
    """Return amounts by Ray's names as words, without memory and Ray's internal resources."""
    return describe(Resources(cpu=amounts.get("CPU", 0.0), gpu=amounts.get("GPU", 0.0), custom=_custom(amounts)))


def _custom(amounts: Mapping[str, float]) -> dict[str, float]:
    known = ("CPU", "GPU", "memory", "object_store_memory", "bundle")
    return {name: amount for name, amount in amounts.items() if name not in known and not name.startswith("node:")}


def _less(node: Node, holdings: Iterable[Holding]) -> dict[str, float]:
    """Return a node's total resources less those of the holdings, by Ray's names."""
    free = dict(node.total)
    for holding in holdings:
        if holding.node == node.id:
            for name, amount in holding.amounts.items():
                free[name] = free.get(name, 0.0) - amount
    return free


def _by_name(holdings: Iterable[Holding]) -> dict[str, dict[str, float]]:
    sums: dict[str, Counter[str]] = {}
    for holding in holdings:
        sums.setdefault(holding.name, Counter()).update(holding.amounts)
    return {name: dict(amounts) for name, amounts in sums.items()}


def _holdings() -> list[Holding]:
    """Return what living actors and placement groups of this Ray job hold, without a run's own actors and actors in placement groups."""
    accessor = ray_state.state._connect_and_get_accessor()
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found = []
    for data in accessor.get_actor_table(job, "ALIVE"):
        actor = gcs_pb2.ActorTableData.FromString(data)
        if actor.class_name not in _OWN and not actor.placement_group_id and actor.required_resources:
            found.append(Holding(f"actor {actor.class_name}", actor.node_id.hex(), dict(actor.required_resources)))
    for data in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(data)
        if group.creator_job_id == job.binary() and group.state == gcs_pb2.PlacementGroupTableData.CREATED:
            found += [Holding("a placement group", bundle.node_id.hex(), dict(bundle.unit_resources)) for bundle in group.bundles]
    return found
