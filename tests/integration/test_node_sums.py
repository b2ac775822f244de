"""Sums of nodes: what reaches the driver grows with the nodes, and is the same to the last bit whatever dies on the way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from pools import CLIENTS, Ground, several_nodes
from processes import wait_until

pytestmark = pytest.mark.slow

RESOURCES = {"resources": {"cpu": 1.0}}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with several_nodes({"num_cpus": 2}, {"num_cpus": 2}) as found:
        yield found


def test_one_part_a_node_and_the_same_bytes(nodes: Any) -> None:
    ground = Ground(clients=RESOURCES)
    pool = ground.pool(4)
    try:
        pool.wait_ready(90, everyone=True)
        by_node: dict[str, int] = {}
        for slot in pool.slots:
            by_node[slot.node] = by_node.get(slot.node, 0) + 1
        assert sorted(by_node.values()) == [2, 2]  # spread
        assert ray.get_runtime_context().get_node_id() not in by_node
        reference = None
        for number in range(3):
            pool._rules = replace(pool._rules, node_sums=True)
            total, parts, _ = ground.train(pool, number)
            assert len(parts) == 2
            pool._rules = replace(pool._rules, node_sums=False)
            single, singles, _ = ground.train(pool, number)
            assert len(singles) == 4
            assert total.values.tobytes() == single.values.tobytes()
            reference = reference or total.values.tobytes()
        assert total.count == CLIENTS
    finally:
        pool.shutdown()


def test_an_actor_that_dies_adding_up_costs_nothing(nodes: Any, tmp_path: Path) -> None:
    calm = Ground(clients=RESOURCES)
    ground = Ground(clients=RESOURCES, model={"kind": "python:pools:dying_adder", "mark": str(tmp_path / "mark")})
    pool = calm.pool(4)
    try:
        pool.wait_ready(90, everyone=True)
        expected, _, _ = calm.train(pool)
    finally:
        pool.shutdown()
    pool = ground.pool(4)
    try:
        pool.wait_ready(90, everyone=True)
        total, parts, log = ground.train(pool)
        assert (tmp_path / "mark").exists()
        assert log.deaths == 1
        assert log.retries == 0  # the parts lay in the node's store; nobody trains again
        assert len(parts) == 3
        assert total.values.tobytes() == expected.values.tobytes()
    finally:
        pool.shutdown()


def test_an_actor_that_falls_silent_is_replaced_and_never_counted(nodes: Any, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    ground = Ground(clients=RESOURCES, model={"kind": "python:pools:model", "hold": str(hold)})
    pool = ground.pool(4, unreachable_after=3.0)
    try:
        infos = pool.wait_ready(90, everyone=True)
        expected, _, _ = ground.train(pool, 0)
        hold.touch()
        victim = pool.slots[0]
        pid = infos[victim.place.key].pid

        def stop() -> None:
            wait_until(lambda: victim.doing == "training", "it trains")
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: victim.deaths == 1, "it is given up", 60)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)  # it goes on, and its answer comes late
            hold.unlink()

        thread = threading.Thread(target=stop)
        thread.start()
        total, _, log = ground.train(pool, 0)
        thread.join()
        assert total.values.tobytes() == expected.values.tobytes()
        assert log.deaths == 1
        assert any("did not answer for 3 s" in f.text for f in log.faults), log.faults
        assert log.retries >= 1
    finally:
        pool.shutdown()


def test_a_sum_that_a_node_shares_is_sent_once_and_lost_with_its_own_actors_only(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedray.clients.inbox.LARGE", 0)

    def ground(**model: Any) -> Ground:
        return Ground(clients=RESOURCES, model={"kind": "python:sharedparts:model", **model})

    calm = ground(opened=str(tmp_path))
    sharing = {"charged": False, "part_bytes": 8 * calm.model.facts.layout.size}
    pool = calm.pool(4)
    try:
        pool.wait_ready(90, everyone=True)
        reference, _, _ = calm.train(pool)
        total, parts, log = calm.train(pool, **sharing)
        assert (len(parts), log.retries) == (2, 0)
        assert len(list(tmp_path.iterdir())) == 4
        assert total.values.tobytes() == reference.values.tobytes()
    finally:
        pool.shutdown()
    for who in ("any", "sender"):  # when it has added an update, or when it was to send the sum of its node
        fatal = ground(dies=who, mark=str(tmp_path / who))
        pool = fatal.pool(4)
        try:
            pool.wait_ready(90, everyone=True)
            total, _, log = fatal.train(pool, **sharing)
            assert log.deaths == 1
            assert 1 < log.retries < CLIENTS
            assert total.values.tobytes() == reference.values.tobytes()
        finally:
            pool.shutdown()
