"""Why an actor waits, how many more a cluster can hold, and which errors mean what. No Ray is started."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from fedray.choices import Resources
from fedray.clients.groups import make_groups
from fedray.clients.inbox import LARGE, shares_sums
from fedray.clients.memory import Repeatable, fitting, killed_for_memory, out_of_memory, turn_noise
from fedray.clients.messages import ClientReport, ClientTask
from fedray.clients.nodes import Node, matches, room, start_options, suits, why_waiting, within
from fedray.clients.placement import Place, more_places, plan_places
from fedray.clients.slots import Silent, left_with_its_node
from fedray.clients.work import Queue, Work
from fedray.configfile import build_config


def node(name: str, cpu: float, free: float, labels: dict[str, str] | None = None, **custom: float) -> Node:
    return Node(name, name, {"CPU": cpu, "memory": 8e9, **custom}, {"CPU": free, "memory": 8e9, **custom}, labels or {})


def test_sums_are_shared_where_they_are_large_and_a_second_try_costs_nothing() -> None:
    assert shares_sums(LARGE + 1, True, None, False)
    assert not shares_sums(LARGE, True, None, False)
    assert not shares_sums(LARGE + 1, False, None, False)
    assert not shares_sums(LARGE + 1, True, 60.0, False)
    assert not shares_sums(LARGE + 1, True, None, True)


@pytest.mark.parametrize(
    ("value", "wanted", "fits"),
    [
        ("eu", "eu", True),
        ("us", "eu", False),
        (None, "eu", False),
        ("us", "!eu", True),
        (None, "!eu", True),
        ("eu", "!eu", False),
        ("us", "in(eu, us)", True),
        ("cn", "in(eu,us)", False),
        ("cn", "!in(eu,us)", True),
        ("eu", "!in(eu,us)", False),
    ],
)
def test_label_selectors(value: str | None, wanted: str, fits: bool) -> None:
    assert matches(value, wanted) == fits


PINNED = Resources(cpu=2.0, custom={"site_va": 1.0}, labels={"region": "eu"})


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (None, "the cluster's head does not answer; it waits until the head is back"),
        (
            [node("a", 4, 4)],
            'no node has 1 site_va or label region=eu; start a node with --num-cpus=2 --resources=\'{"site_va": 1.0}\' --labels="region=eu"',
        ),
        ([node("a", 1, 1, {"region": "eu"}, site_va=1)], "no node has 2 CPU; start a node with"),
        ([node("a", 4, 4, {"region": "eu"}), node("b", 4, 4, site_va=1)], "no single node has all of that; start a node with"),
        ([node("a", 4, 1, {"region": "eu"}, site_va=1)], "3 of 4 CPU are in use on the nodes that could hold it (a); it starts when"),
        ([node("a", 4, 4, {"region": "eu"}, site_va=1)], "a has room for it"),
    ],
)
def test_why_an_actor_waits(nodes: list[Node] | None, reason: str) -> None:
    assert reason in why_waiting(PINNED, nodes)


def test_options_that_would_make_room() -> None:
    asked = Resources(cpu=0.5, gpu=0.25, memory_gb=2.0)
    assert start_options(asked) == "--num-cpus=1 --num-gpus=1 --memory=2147483648"


def test_room_is_counted_a_node_at_a_time() -> None:
    halves = [node("a", 2, 0.6), node("b", 2, 0.6)]
    assert room(Resources(cpu=1.0), halves, 1e9) == 0  # 1.2 CPUs are free, nowhere one
    assert room(Resources(cpu=0.5), halves, 1e9) == 2
    assert room(Resources(cpu=1.0), [node("a", 64, 64)], 1e9) == 8  # by memory
    assert room(Resources(cpu=1.0, memory_gb=0.1), [node("a", 64, 64)], 1e9) == 64
    assert room(Resources(cpu=0.0), [node("a", 64, 64)], 1e9) == 0
    assert room(PINNED, [node("a", 64, 64)], 1e9) == 0
    assert not suits(PINNED, node("a", 64, 64))


def config(**clients: Any) -> Any:
    return build_config(
        {
            "name": "t",
            "rounds": 2,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 10}},
            "model": {"kind": "softmax"},
            "clients": clients,
            "training": {"batch_size": 8, "epochs": 1, "lr": 0.1},
        }
    )


def test_a_pool_grows_by_what_is_free_and_never_beyond_its_cohort() -> None:
    names = [f"c{k}" for k in range(10)]
    auto = config()
    groups = make_groups(auto, names)
    have = plan_places(auto, groups, names, {"CPU": 2.0}, 6, True)
    assert len(have) == 2
    free = [node("b", 3, 3)]
    more = more_places(auto, groups, 6, have, [], free)
    assert [p.key for p in more] == ["default/2", "default/3", "default/4"]
    assert len(more_places(auto, groups, 6, have, have[:1], free)) == 2  # one still waits for its place
    assert len(more_places(auto, groups, 6, have, [], [node("b", 9, 8)])) == 4
    assert more_places(auto, groups, 6, [*have, *more, Place("x", "default", 0, Resources())], [], free) == []
    for fixed in (config(actors=2), config(placement="dedicated")):
        assert more_places(fixed, groups, 6, have, [], free) == []


def test_groups_grow_in_turn() -> None:
    names = [f"c{k}" for k in range(10)]
    two = config(groups=[{"name": "big", "clients": 5}])
    groups = make_groups(two, names)
    places = [Place("big/0", "big", 0, Resources()), Place("big/1", "big", 0, Resources()), Place("default/0", "default", 1, Resources())]
    assert [p.key for p in more_places(two, groups, 10, places, [], [node("b", 1, 1)])] == ["default/1"]


def test_questions_to_the_head_are_bounded() -> None:
    release = threading.Event()
    began = time.monotonic()
    assert within(0.05, lambda: release.wait(20)) is None
    assert time.monotonic() - began < 10
    release.set()
    assert within(5.0, lambda: 7) == 7

    def failing() -> int:
        raise RuntimeError("GCS is gone")

    assert within(5.0, failing) is None


def test_errors_that_take_the_node_with_them() -> None:
    assert left_with_its_node(ActorUnavailableError("x", None))
    assert left_with_its_node(Silent("did not answer"))
    assert not left_with_its_node(ActorDiedError())
    assert killed_for_memory(OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."))
    assert not killed_for_memory(ActorDiedError())


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((10,), np.dtype("f8")), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error: Exception, memory: bool) -> None:
    assert out_of_memory(error) is memory


def test_batches_are_halved_until_they_fit() -> None:
    tried: list[int] = []

    def train(batch: int) -> str:
        tried.append(batch)
        if batch > 3:
            raise MemoryError
        return "done"

    assert fitting(train, 20) == ("done", 3)
    assert tried == [20, 10, 5, 3]
    with pytest.raises(MemoryError):
        fitting(lambda batch: (_ for _ in ()).throw(MemoryError()), 4)
    with pytest.raises(ValueError, match="else"):
        fitting(lambda batch: (_ for _ in ()).throw(ValueError("else")), 4)


def test_a_turn_tosses_its_coins_again_and_no_other_turn_does() -> None:
    again = turn_noise(None, 1, 2)
    first, second = again(), again()
    assert isinstance(first, Repeatable)
    drawn = first.uniform(1000), first.normal(1000)
    assert drawn[0].tobytes() == second.uniform(1000).tobytes()
    assert drawn[1].tobytes() == second.normal(1000).tobytes()
    other = turn_noise(None, 1, 2)()
    assert other.uniform(1000).tobytes() != drawn[0].tobytes()
    seeded = turn_noise(5, 1, 2)
    assert seeded().uniform(9).tobytes() == seeded().uniform(9).tobytes()
    with pytest.raises(TypeError, match="cannot be pickled"):
        first.__reduce_ex__(2)


def test_work_is_ordered_by_what_was_seen_and_else_by_size() -> None:
    work = Work(np.array([10, 30, 20, 5], dtype=np.int64))
    work.assign({"a": range(2), "b": [2, 3]})
    assert [work.queue_of(i) for i in range(4)] == ["a", "a", "b", "b"]
    cohort = [ClientTask(i, f"c{i}") for i in range(4)]
    assert [c.index for c in work.longest_first(cohort)[0]] == [1, 2, 0, 3]
    queues = work.by_queue(cohort)
    assert {name: [c.index for c in those] for name, (those, _) in queues.items()} == {"a": [1, 0], "b": [2, 3]}
    assert queues["a"][1].tolist() == pytest.approx([3e-3, 1e-3])
    assert {name: [c.index for c in those] for name, (those, _) in work.by_queue(cohort[:2]).items()} == {"a": [1, 0]}
    assert work.by_queue([]) == {}
    work.learn([ClientReport(3, "c3", "done", seconds=9.0)])
    found, seconds = work.longest_first(cohort)  # others of its queue are judged by its time for a record, 1.8 s
    assert [c.index for c in found] == [2, 3, 1, 0]
    assert seconds.tolist() == pytest.approx([36.0, 9.0, 0.003, 0.001])
    work.learn_sizes(np.array([1, 2, 3, 4], dtype=np.int64))
    assert [c.index for c in work.longest_first(cohort)[0]] == [3, 2, 1, 0]


def test_who_was_late_is_known_to_take_that_long_at_least_and_has_a_share_of_its_own() -> None:
    work = Work(np.full(4, 40, dtype=np.int64))
    work.assign({"all": range(4)})
    work.learn([ClientReport(n, f"c{n}", "done", seconds=0.03) for n in (1, 2, 3)])
    work.learn([ClientReport(0, "c0", "late", seconds=2.0), ClientReport(3, "c3", "late"), ClientReport(2, "c2", "late", seconds=0.01)])
    clients, seconds = work.longest_first([ClientTask(n, f"c{n}") for n in range(4)])
    assert [c.index for c in clients] == [0, 1, 2, 3]
    assert seconds.tolist() == pytest.approx([2.0, 0.03, 0.03, 0.03])
    queue = Queue()
    queue.put(clients, seconds)
    assert [c.index for c in queue.take(2)] == [0]


def test_work_of_a_million_clients_is_small() -> None:
    work = Work(np.ones(1_000_000, dtype=np.int64))
    work.assign({"all": range(1_000_000)})
    assert work._queue_of.nbytes + work._seconds.nbytes == 8_000_000
    assert work.queue_of(999_999) == "all"
