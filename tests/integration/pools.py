"""Pools over several Ray nodes in one machine, and parts of models that misbehave in an actor."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import slowparts
import torch
from ray.cluster_utils import Cluster
from shortruns import SHORT
from torch import nn

from fedray.aggregation.exact import ExactSum
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.placement import Place, more_places, start_actor
from fedray.clients.pool import Pool, RoundLog
from fedray.clients.terms import Site, make_terms
from fedray.config import Config
from fedray.configfile import build_config
from fedray.planning.preparation import Prepared, prepare

CLIENTS = 8


@contextmanager
def several_nodes(*nodes: dict[str, Any], cpus: int = 0) -> Iterator[tuple[Cluster, list[Any]]]:
    """A head with ``cpus``, on which the driver stands, and more nodes; all of it on this machine, each node with a raylet and an object store."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
    try:
        others = [cluster.add_node(**node) for node in nodes]
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
        )
        yield cluster, others
    finally:
        ray.shutdown()
        cluster.shutdown()


class Ground:
    """A prepared run whose pool a test makes and whose rounds it trains by hand."""

    def __init__(self, **sections: Any) -> None:
        data = {"source": "python:pools:data", "holdout": {"fraction": 0.0}}
        own = {"rounds": 9, "data": data, "model": {"kind": "python:pools:model"}, "clients": {}}
        self.config: Config = build_config(SHORT | own | sections)
        self.prepared: Prepared = prepare(self.config)
        assert self.prepared.model is not None
        self.model = self.prepared.model
        self.data = ray.put(self.prepared.federation)
        self.weights = ray.put(self.model.weights.value)
        self.notes: list[str] = []

    def places(self, number: int) -> list[Place]:
        group = self.prepared.groups[0]
        return [Place(f"{group.name}/{n}", group.name, 0, group.resources) for n in range(number)]

    def pool(self, places: int | Sequence[Place], **settings: Any) -> Pool:
        group = self.prepared.groups[0]
        terms = make_terms(self.config, group, None, self.model.facts)
        given: dict[str, Any] = {"restarts": 9, "retries": 2, "grace": 5.0, "members": {group.name: range(CLIENTS)}} | settings
        return Pool(
            self.places(places) if isinstance(places, int) else places,
            lambda place: start_actor(place, terms, Site(), self.data),
            np.ones(CLIENTS, np.int64),
            note=self.notes.append,
            **given,
        )

    def grow(self, places: Any, unplaced: Any, nodes: Any) -> list[Place]:
        return more_places(self.config, self.prepared.groups, CLIENTS, places, unplaced, nodes)

    def train(self, pool: Pool, number: int = 0, **settings: Any) -> tuple[ExactSum, list[list[int]], RoundLog]:
        """A round over all clients: the sum, the clients of each part that arrived, and the log."""
        total, parts, log = ExactSum.zero(self.model.facts.layout.size, 1e4), [], RoundLog()
        cohort = [ClientTask(i, name) for i, name in enumerate(self.prepared.names)]
        for part in pool.train(cohort, RoundTask(number, 1e4), self.weights, log, **settings):
            assert set(part.clients) <= {r.index for r in log.reports if r.status == "done"}
            total.merge(part.total)
            parts.append(sorted(part.clients))
        assert sorted(r.index for r in log.reports) == list(range(CLIENTS))  # each client ended once
        assert total.count == sum(map(len, parts)) == log.count("done")
        return total, parts, log


def data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Clients whose first feature is their number."""
    return slowparts.data(CLIENTS, 30)


def in_actor() -> bool:
    """Whether this is a process of Ray's, not the test's."""
    return Path(sys.argv[0]).name == "default_worker.py"


def once(mark: str) -> bool:
    """Whether this is the first of all calls with this file's name."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Odd(nn.Module):
    """Linear. While the file ``hold`` is there, a client's training waits; a batch of more than ``most`` of its records takes ``eats`` bytes.

    With ``limit`` the system gives the process no more than so many bytes beyond what it has.
    """

    def __init__(self, hold: str = "", most: int = 0, eats: int = 0, limit: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.hold, self.most, self.eats, self.limit = hold, most, eats, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) and in_actor() and bool((x[:, 0] == x[0, 0]).all()):  # not a dry run's random records
            while self.hold and os.path.exists(self.hold):
                time.sleep(0.01)
            if self.most and len(x) > self.most:
                eat(self.eats, self.limit)
        return self.linear(x)


def eat(size: int, limit: int) -> None:
    """Take memory, piece by piece, and hold it for a while."""
    if limit:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + limit, most))
    pieces = [torch.ones(1 << 24) for _ in range(size >> 26)]
    time.sleep(5 if pieces else 0)


def model(hold: str = "", most: int = 0, eats: int = 0, limit: int = 0) -> nn.Module:
    """Factory for ``python:pools:model``."""
    return Odd(hold, most, eats, limit)


def dying_adder(mark: str) -> nn.Module:
    """Factory for ``python:pools:dying_adder``: the first actor that adds parts up dies of it."""
    real = ExactSum.merge

    def merge(self: ExactSum, other: ExactSum) -> None:
        if in_actor() and once(mark):
            os._exit(1)
        real(self, other)

    if in_actor():
        ExactSum.merge = merge  # type: ignore[method-assign]
    return Odd()
