"""What the cluster has: its nodes, what is free on them, and why an actor that asks for something waits.

All of it is asked of the cluster's head, which may be away: no question here waits longer than it is told to.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray._private import state as ray_state  # Ray's public interface tells neither what is free on a node nor an actor's process

from fedray.choices import Resources

T = TypeVar("T")

#: Seconds that a question to the head may take.
PATIENCE = 2.0
_SLACK = 1e-6  # Ray's free amounts are floats that are added and subtracted


@dataclass(frozen=True)
class Node:
    """A node that is alive: what Ray calls it, its host's name, its resources by Ray's names, and its labels."""

    id: str
    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str]


def within(seconds: float, question: Callable[[], T]) -> T | None:
    """The answer, or None where there is none in so many seconds: with the head away, Ray's calls to it block."""
    answers: list[T] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception:  # Ray raises many kinds while its head comes back; none of them is an answer
            return

    thread = threading.Thread(target=ask, name="question-to-head", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def look(seconds: float = PATIENCE) -> list[Node] | None:
    """The cluster's nodes, or where this process is in a placement group its bundles; None where the head does not say in time."""
    group = ray.util.get_current_placement_group() if in_placement_group() else None

    def question() -> list[Node]:
        free = ray_state.available_resources_per_node()
        nodes = [
            Node(n["NodeID"], n["NodeManagerHostname"], n["Resources"], free.get(n["NodeID"], {}), n.get("Labels") or {})
            for n in ray.nodes()
            if n["Alive"]
        ]
        return nodes if group is None else bundles(group.id.hex(), ray.util.placement_group_table(group), nodes)

    return within(seconds, question)


def in_placement_group() -> bool:
    """Whether the actors that this process starts go into the placement group in which it is itself (a Ray Tune trial's, say)."""
    worker = ray._private.worker.global_worker
    return bool(worker.connected and worker.should_capture_child_tasks_in_placement_group and ray.util.get_current_placement_group())


def bundles(group: str, table: Mapping[str, Any], nodes: Sequence[Node]) -> list[Node]:
    """The bundles of a placement group as if each were a node: there is no other room for who is in it.

    Args:
        group: its id, hexadecimal.
        table: as Ray's ``placement_group_table`` gives it.
        nodes: the cluster's nodes.
    """
    hosts = {node.id: node for node in nodes}
    found = []
    for index, amounts in table["bundles"].items():
        host = hosts.get(table["bundles_to_node_id"].get(index, ""))
        if host is not None:
            mark = f"_group_{index}_{group}"  # Ray's names of what is free in a bundle
            free = {name.removesuffix(mark): amount for name, amount in host.free.items() if name.endswith(mark)}
            found.append(replace(host, name=f"{host.name}, bundle {index}", total=dict(amounts), free=free))
    return found


def free_resources(*less: Resources) -> dict[str, float]:
    """What is free for actors that this process starts, by Ray's names: of the cluster, or of the placement group in which it is.

    ``less`` is taken away from it.
    """
    nodes = look() if in_placement_group() else None
    free: Counter[str] = Counter(ray.available_resources() if nodes is None else {})
    for node in nodes or ():
        free.update(node.free)
    for resources in less:
        free.subtract(asks(resources))
    return dict(free)


def has_process(handle: Any, seconds: float = PATIENCE) -> bool | None:
    """Whether an actor was placed and has a process; None where the head does not say in time."""
    answer = within(seconds, lambda: ray_state.actors(handle._actor_id.hex()))
    return None if answer is None else bool(answer.get("Pid"))


def asks(resources: Resources) -> dict[str, float]:
    """What to ask of Ray, by Ray's names (``CPU``, ``GPU``, ``memory`` in bytes, custom ones); only what is above 0."""
    amounts = {"CPU": resources.cpu, "GPU": resources.gpu, **resources.custom}
    if resources.memory_gb is not None:
        amounts["memory"] = resources.memory_gb * 2**30
    return {k: v for k, v in amounts.items() if v > 0}


def ray_options(resources: Resources) -> dict[str, Any]:
    """The same as options of a Ray actor."""
    options: dict[str, Any] = {"num_cpus": resources.cpu, "num_gpus": resources.gpu, "resources": resources.custom or None}
    if resources.memory_gb is not None:
        options["memory"] = int(resources.memory_gb * 2**30)
    if resources.labels:
        options["label_selector"] = resources.labels
    return options


def suits(resources: Resources, node: Node) -> bool:
    """Whether a node could hold such an actor, were it empty."""
    return covers(node.total, asks(resources)) and all(matches(node.labels.get(key), wanted) for key, wanted in resources.labels.items())


def covers(free: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether the free amounts, by Ray's names, suffice for the wanted ones."""
    return all(free.get(name, 0.0) + _SLACK >= amount for name, amount in wanted.items())


def matches(value: str | None, wanted: str) -> bool:
    """Whether a node's label satisfies a selector of Ray: ``eu``, ``!eu``, ``in(eu,us)``, ``!in(eu,us)``."""
    negated, text = wanted.startswith("!"), wanted.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", text)
    allowed = {v.strip() for v in listed.group(1).split(",")} if listed else {text}
    return (value in allowed) != negated


def room(resources: Resources, nodes: Iterable[Node], memory: float) -> int:
    """How many more such actors the nodes have room for, each of which takes ``memory`` bytes where it does not say how many."""
    wanted = asks(resources)
    if not wanted:
        return 0  # what asks for nothing fits any number of times
    number = 0
    for node in nodes:
        if suits(resources, node):
            counts = [node.free.get(name, 0.0) / amount for name, amount in wanted.items()]
            if "memory" not in wanted and "memory" in node.free:
                counts.append(node.free["memory"] / memory)
            number += int(min(counts) + _SLACK)
    return number


def why_waiting(resources: Resources, nodes: Sequence[Node] | None) -> str:
    """Why such an actor has no place, and what would give it one; a clause without a full stop."""
    if nodes is None:
        return "the cluster's head does not answer; it waits until the head is back"
    wanted = asks(resources)
    suited = [n for n in nodes if suits(resources, n)]
    if suited:
        short = {
            name: (sum(n.total.get(name, 0.0) for n in suited), sum(n.free.get(name, 0.0) for n in suited))
            for name, amount in wanted.items()
            if not any(covers(n.free, {name: amount}) for n in suited)
        }
        if not short:
            return f"{suited[0].name} has room for it; it is being placed"
        used = ", ".join(f"{_amount(name, all_ - free)} of {_amount(name, all_)} {name}" for name, (all_, free) in sorted(short.items()))
        return f"{used} are in use on the nodes that could hold it ({_names(suited)}); it starts when they are given back, or another such node joins"
    missing = [name for name, amount in wanted.items() if not any(covers(n.total, {name: amount}) for n in nodes)]
    unlabelled = [k for k, v in resources.labels.items() if not any(matches(n.labels.get(k), v) for n in nodes)]
    lacking = [f"{_amount(name, wanted[name])} {name}" for name in missing] + [f"label {k}={resources.labels[k]}" for k in unlabelled]
    what = f"no node has {' or '.join(lacking)}" if lacking else "no single node has all of that"
    return f"{what}; start a node with {start_options(resources)}"


def describe(resources: Resources) -> str:
    """What an actor asks for, in words."""
    parts = [f"{name} {_amount(name, amount)}" for name, amount in asks(resources).items()]
    return ", ".join(parts + [f"label {k}={v}" for k, v in resources.labels.items()]) or "nothing"


def total(nodes: Sequence[Node]) -> str:
    """What all nodes have together, and what of it is free, in words."""
    names = sorted({n for node in nodes for n in node.total if not n.startswith(("node:", "object_store", "memory", "accelerator_type"))})
    sums = ((n, sum(x.total.get(n, 0.0) for x in nodes), sum(x.free.get(n, 0.0) for x in nodes)) for n in names)
    return ", ".join(f"{n} {all_:g} ({free:g} free)" for n, all_, free in sums) or "nothing"


def start_options(resources: Resources) -> str:
    """Options of ``ray start`` with which a node could hold such an actor."""
    options = [f"--num-cpus={max(1, round(resources.cpu + 0.49))}"] if resources.cpu else []
    options += [f"--num-gpus={max(1, round(resources.gpu + 0.49))}"] if resources.gpu else []
    options += [f"--memory={int(resources.memory_gb * 2**30)}"] if resources.memory_gb else []
    options += [f"--resources='{json.dumps(resources.custom)}'"] if resources.custom else []
    options += [f'--labels="{",".join(f"{k}={v}" for k, v in resources.labels.items())}"'] if resources.labels else []
    return " ".join(options) or "room for a process"


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.3g} GiB" if name == "memory" else f"{amount:g}"


def _names(nodes: Sequence[Node]) -> str:
    names = [n.name for n in nodes[:3]]
    return ", ".join(names) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
