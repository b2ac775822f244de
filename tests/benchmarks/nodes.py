"""What a round costs the driver on 1 to 64 nodes, on paper with constants measured here; prints a table and keeps it.

``python -m tests.benchmarks.nodes``. Measured on this machine: putting weights into the object store, sending bytes from one Ray node
to another (two nodes on this machine, so a network that is never the limit), handing over an actor's part, adding parts up, small
calls, and the server's step. Networks of 10 and 25 Gbit/s are assumed to be used in full, beside the rate that was measured.

The plan: a round of N nodes with eight actors each and P parameters. Weights are float32 and go once to each node; parts are int64
sums, one an actor or, with ``clients.node_sums``, one a node, whose actors' parts are added up there at the same time on all nodes.
The driver's network sends the weights to every node itself (Ray may relay them, which is cheaper) and receives every part.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.aggregation.exact import ExactSum
from fedray.algorithms.server import ServerSGD
from fedray.privacy.csprng import noise_source

RESULTS = Path(__file__).parent / "results"
ACTORS, NODES = 8, (1, 2, 4, 8, 16, 32, 64)
PARAMETERS = {"0.1 M": 1e5, "10 M": 1e7, "100 M": 1e8, "1 G": 1e9}
#: Bytes a second between the driver's node and the others. None: as Ray moved them here, between two nodes that shared this machine's cores.
LINKS = {"as here": None, "10 Gbit/s": 1.25e9, "25 Gbit/s": 3.125e9}
#: Seconds of a round that a driver may take for a run to be called comfortable, and endurable.
LIMITS = (10.0, 60.0)
_VALUES, _TIMES = 10_000_000, 5


@dataclass(frozen=True)
class Constants:
    """Measured: bytes a second, seconds a call, seconds a million values."""

    put: float
    transfer: float
    hand_over: float
    merge: float
    call: float
    step: float
    noise: float


def some_part(values: int) -> ExactSum:
    """The sum of one update."""
    part = ExactSum.zero(values, 1e6)
    part.add(np.ones(values, dtype=np.float32))
    return part


class Sender:
    """An actor that hands over a part, as a client actor does."""

    def __init__(self, values: int) -> None:
        self._part = some_part(values)

    def collect(self) -> ExactSum:
        return self._part

    def nothing(self) -> None:
        pass

    def receive(self, weights: Any) -> float:
        return float(weights[-1])


def best_seconds(work: Callable[[], Any]) -> float:
    """Of some runs: what the machine can do when nobody else has it."""
    took = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def measure() -> Constants:
    """On two Ray nodes of this machine."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    store = 1000 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "gcs_server_port": port, "object_store_memory": store},
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        other = cluster.add_node(num_cpus=1, object_store_memory=store)
        there = NodeAffinitySchedulingStrategy(other.node_id, soft=False)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Sender)
        beside = actor.options(num_cpus=0, scheduling_strategy=here).remote(_VALUES)
        far = actor.options(num_cpus=0, scheduling_strategy=there).remote(_VALUES)
        weights, part = np.ones(_VALUES, dtype=np.float32), some_part(_VALUES)
        ray.get([beside.nothing.remote(), far.nothing.remote()])
        total = ExactSum.zero(_VALUES, 1e6)
        handing = best_seconds(lambda: ray.get(beside.collect.remote()))
        sending = best_seconds(lambda: ray.get(far.receive.remote(ray.put(weights))))
        putting = best_seconds(lambda: ray.put(weights))
        calls = best_seconds(lambda: ray.get([beside.nothing.remote() for _ in range(1000)]))
        handed = iter(ray.get([beside.collect.remote() for _ in range(_TIMES)]))
        merging = best_seconds(lambda: total.merge(next(handed)))
        server, millions = ServerSGD(), _VALUES / 1e6
        stepping = best_seconds(lambda: server.step(weights, part.mean(1.0), {}))
        noising = best_seconds(lambda: noise_source(None, 0, "nodes").normal(1_000_000))
    finally:
        ray.shutdown()
        cluster.shutdown()
    return Constants(
        put=weights.nbytes / putting,
        transfer=weights.nbytes / max(sending - putting, 1e-9),
        hand_over=part.values.nbytes / handing,
        merge=part.values.nbytes / merging,
        call=calls / 1000,
        step=stepping / millions,
        noise=noising,
    )


def driver_seconds(c: Constants, parameters: float, nodes: int, node_sums: bool, link: float | None) -> dict[str, float]:
    """What one round takes of the driver, and of a node beside it; seconds and bytes."""
    parts = nodes if node_sums else nodes * ACTORS
    rate = link or c.transfer
    up, down = 8 * parameters * parts, 4 * parameters * nodes
    found = {
        "calls": nodes * ACTORS * 3 * c.call,  # weights and clients, what they report, the part
        "send": 4 * parameters / c.put + down / rate,
        "receive": up / rate,
        "sum": up / c.merge,
        "step": parameters / 1e6 * c.step,
    }
    on_node = ACTORS * 8 * parameters * (1 / c.hand_over + 1 / c.merge) if node_sums else 0.0
    return {"seconds": sum(found.values()), **found, "bytes_up": up, "bytes_down": down, "node_seconds": on_node}


def plan(c: Constants) -> Iterator[dict[str, Any]]:
    """Every case."""
    for name, nodes, node_sums, link in product(PARAMETERS, NODES, (False, True), LINKS):
        found = driver_seconds(c, PARAMETERS[name], nodes, node_sums, LINKS[link])
        case = {"parameters": name, "nodes": nodes, "node_sums": node_sums, "link": link}
        yield case | {k: float(f"{v:.3g}") for k, v in found.items()}


def limits(cases: list[dict[str, Any]], c: Constants) -> Iterator[str]:
    """Where the limit lies, in sentences."""
    for name, node_sums, link in product(PARAMETERS, (False, True), LINKS):
        mine = [x for x in cases if (x["parameters"], x["node_sums"], x["link"]) == (name, node_sums, link)]
        most = [max((x["nodes"] for x in mine if x["seconds"] <= limit), default=0) for limit in LIMITS]
        last = mine[-1]
        mostly = max(("calls", "send", "receive", "sum", "step"), key=lambda k: last[k])
        fits = ", ".join(f"{limit:g} s a round: {f'up to {n}' if n else 'none'}" for limit, n in zip(LIMITS, most, strict=True))
        yield (
            f"{name} parameters, {'a part a node' if node_sums else 'a part an actor'}, network {link}: nodes within {fits}; "
            f"{last['nodes']} nodes take the driver {last['seconds']:.3g} s a round, mostly to {mostly}"
        )
    largest = PARAMETERS["1 G"]
    yield (
        f"memory at 1 G parameters: a node's eight parts take {ACTORS * 8 * largest / 1e9:.0f} GB of its object store before they are one, the driver "
        f"{(8 + 8 + 4 + 4) * largest / 1e9:.0f} GB (sum, a part, weights old and new); secure noise on the sum takes it {largest / 1e6 * c.noise:.0f} s a round"
    )


def table(cases: list[dict[str, Any]]) -> str:
    """Seconds of the driver a round; a row for each model and number of nodes."""
    seconds = {(x["parameters"], x["nodes"], x["node_sums"], x["link"]): x["seconds"] for x in cases}
    head = [f"{'parameters':>10} {'nodes':>5}" + "".join(f"{f'a part {how}':^36}" for how in ("an actor", "a node"))]
    head += [" " * 16 + "".join(f"{link:>12}" for _ in range(2) for link in LINKS)]
    for name, nodes in product(PARAMETERS, NODES):
        cells = "".join(f"{seconds[name, nodes, sums, link]:>12.3g}" for sums, link in product((False, True), LINKS))
        head.append(f"{name:>10} {nodes:>5}{cells}")
    return "\n".join(head)


def main() -> None:
    """Measure, compute, print, keep."""
    constants = measure()
    cases = list(plan(constants))
    said = list(limits(cases, constants))
    measured = {k: float(f"{v:.4g}") for k, v in asdict(constants).items()}
    print(f"measured here: {measured}\n\nseconds of the driver a round, {ACTORS} actors a node:\n{table(cases)}\n\n" + "\n".join(said))
    units = "put, transfer, hand_over, merge: bytes a second; call: seconds; step, noise: seconds a million values"
    figures = {
        "constants": measured | {"units": units},
        "assumed": {"links": LINKS, "actors_a_node": ACTORS},
        "limits": said,
        "cases": cases,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "nodes.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
