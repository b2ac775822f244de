"""Nodes that come and go, actors that wait for room, and that this is said."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from pools import Ground, several_nodes
from processes import wait_until

from fedray.clients import actors
from fedray.errors import FedrayError

pytestmark = pytest.mark.slow

ONE_CPU = {"resources": {"cpu": 1.0}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "FIRST_WORD", 1.0)


def test_a_node_that_leaves_in_mid_round_is_named_once_and_its_clients_train_elsewhere(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    with several_nodes({"num_cpus": 2}, {"num_cpus": 2}) as (cluster, (first, second)):
        ground = Ground(clients=ONE_CPU, model={"kind": "python:pools:model", "hold": str(hold)})
        pool = ground.pool(4, unreachable_after=20.0)
        try:
            pool.wait_ready(90, everyone=True)
            expected, _, _ = ground.train(pool, 0)
            hold.touch()
            leaving = threading.Thread(
                target=lambda: (
                    wait_until(lambda: all(s.doing == "training" for s in pool.slots), "all train"),
                    cluster.remove_node(second, allow_graceful=False),
                    wait_until(lambda: any(s.doing == "starting" for s in pool.slots), "a death is seen", 90),
                    hold.unlink(),
                )
            )
            leaving.start()
            total, _, log = ground.train(pool, 0)
            leaving.join()
            assert total.values.tobytes() == expected.values.tobytes()
            assert log.deaths == 2
            assert log.retries >= 2
            assert sum(f.kind == "node" for f in log.faults) == 1, log.faults
            assert ground.train(pool, 0)[0].values.tobytes() == expected.values.tobytes()  # with what is left
        finally:
            pool.shutdown()


def test_a_pool_takes_the_room_that_the_cluster_gains(tmp_path: Path) -> None:
    with several_nodes({"num_cpus": 1}) as (cluster, _):
        ground = Ground(clients=ONE_CPU)
        pool = ground.pool(1, grow=ground.grow)
        try:
            pool.wait_ready(90, everyone=True)
            expected, parts, _ = ground.train(pool)
            assert len(parts) == len(pool.slots) == 1
            cluster.add_node(num_cpus=2)
            wait_until(lambda: ray.cluster_resources()["CPU"] == 3, "the node joined")
            ground.train(pool)
            assert len(pool.slots) == 3
            assert any("room for 2 more client actors" in n for n in ground.notes)
            pool.wait_ready(90, everyone=True)
            assert len({s.node for s in pool.slots}) == 2
            total, parts, _ = ground.train(pool)
            assert len(parts) == 2
            assert total.values.tobytes() == expected.values.tobytes()
            assert len(pool.slots) == 3
        finally:
            pool.shutdown()


def test_what_no_node_has_is_said_with_what_would_satisfy_it_and_used_when_it_comes() -> None:
    with several_nodes({"num_cpus": 1}) as (cluster, _):
        ground = Ground(clients={"resources": {"cpu": 0.5, "custom": {"site_va": 1.0}, "labels": {"region": "eu"}}})
        pool = ground.pool(1, start_timeout=1.0)
        try:
            with pytest.raises(
                FedrayError,
                match=r"default/0, which asks for CPU 0.5, site_va 1, label region=eu; no node has 1 site_va or label region=eu",
            ):
                pool.wait_ready(3, everyone=True)
            said = next(n for n in ground.notes if "not up after" in n)
            options = """--resources='{"site_va": 1.0}' --labels="region=eu"""
            assert f"start a node with --num-cpus=1 {options}" in said
            _, _, log = ground.train(pool)  # nobody can train, and nothing hangs
            assert log.count("lost") == 8
            assert "clients.start_timeout" in log.reports[0].error
            assert "site_va" in log.reports[0].error
            cluster.add_node(num_cpus=1, resources={"site_va": 1}, labels={"region": "eu"})
            pool.wait_ready(90, everyone=True)
            assert ground.train(pool)[0].count == 8
        finally:
            pool.shutdown()


def test_a_round_goes_on_while_the_head_is_away(tmp_path: Path) -> None:
    """The head stands still; an actor is killed meanwhile. The others do its work, and its successor comes with the head."""
    hold = tmp_path / "hold"
    with several_nodes({"num_cpus": 3}):
        ground = Ground(clients=ONE_CPU, model={"kind": "python:pools:model", "hold": str(hold)})
        pool = ground.pool(3, grow=ground.grow)
        (head,) = (p for p in psutil.Process().children(recursive=True) if "gcs_server" in p.name())
        try:
            infos = pool.wait_ready(90, everyone=True)
            expected, _, _ = ground.train(pool)
            hold.touch()

            def fault() -> None:
                wait_until(lambda: all(s.doing == "training" for s in pool.slots), "all train")
                os.kill(infos[pool.slots[0].place.key].pid, signal.SIGKILL)
                wait_until(lambda: pool.slots[0].deaths == 1, "the death is seen", 60)
                hold.unlink()

            head.suspend()
            thread = threading.Thread(target=fault)
            thread.start()
            total, _, log = ground.train(pool)
            thread.join()
            assert total.values.tobytes() == expected.values.tobytes()
            assert log.deaths == 1
            assert ground.train(pool)[0].values.tobytes() == expected.values.tobytes()
            head.resume()
            pool.wait_ready(90, everyone=True)
            assert ground.train(pool)[0].values.tobytes() == expected.values.tobytes()
        finally:
            head.resume()
            pool.shutdown()


def test_a_second_pool_waits_for_the_first_and_says_so() -> None:
    with several_nodes({"num_cpus": 2}):
        ground = Ground(clients=ONE_CPU)
        first, second = ground.pool(2), None
        try:
            infos = first.wait_ready(90, everyone=True)
            second = ground.pool(2)
            wait_until(lambda: _poll(second) or any("in use" in n for n in ground.notes), "the second says that it waits", 30)
            assert any("2 of 2 CPU are in use" in n for n in ground.notes), ground.notes
            assert ground.train(first)[0].count == 8  # undisturbed
            assert ray.available_resources().get("CPU", 0.0) == 0.0
            first.shutdown()
            later = second.wait_ready(90, everyone=True)
            assert {i.pid for i in infos.values()}.isdisjoint(i.pid for i in later.values())
            assert ground.train(second)[0].count == 8
        finally:
            first.shutdown()
            if second is not None:
                second.shutdown()


def _poll(pool: Any) -> None:
    """What a driver does all the time while it waits for a pool."""
    with pytest.raises(FedrayError):
        pool.wait_ready(0.1, everyone=True)
