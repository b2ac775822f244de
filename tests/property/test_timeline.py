"""Simulated time: who is in a step follows from the seed, and a run that goes on from a checkpoint has the same future."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.choices import PacingChoice
from fedray.clients.groups import make_groups
from fedray.clients.messages import ClientTask
from fedray.configfile import build_config
from fedray.rounds.drawing import CohortDraw, Drawn
from fedray.rounds.pacing import FedBuff, Schedule, SemiSynchronous, Synchronous
from fedray.rounds.timeline import Timeline, turn_seconds


class Draws:
    """Cohorts of a fixed size, and everyone eligible."""

    def __init__(self, clients: int, size: int) -> None:
        self.clients, self.size = clients, size

    def take(self, number: int) -> Drawn:
        chosen = np.sort(np.random.default_rng(number).permutation(self.clients)[: self.size])
        return Drawn([ClientTask(i, f"c{i}") for i in chosen.tolist()])

    def eligible(self, number: int) -> np.ndarray:
        return np.ones(self.clients, dtype=np.bool_)


def made(schedule: Schedule, clients: int, seed: int, size: int = 0, saved: Any = None, deadline: float | None = None) -> Timeline:
    names = [f"c{i}" for i in range(clients)]
    sizes = np.random.default_rng(seed).integers(1, 200, clients)
    config = build_config(
        {
            "name": "t",
            "rounds": 1,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "softmax"},
            "training": {"batch_size": 10, "epochs": 2},
        }
    )
    seconds = turn_seconds(PacingChoice(kind="x", arrival="simulated", spread=20.0), seed, make_groups(config, names), sizes)
    draws = cast(CohortDraw, Draws(clients, schedule.asked(size)))
    return Timeline(schedule, seconds, draws, names, seed, size, deadline, saved)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 6), st.none() | st.integers(0, 3), st.integers(0, 2**32))


@given(shapes)
@settings(max_examples=60)
def test_fedbuff_has_full_buffers_and_nobody_twice(shape: tuple[int, int, int, int | None, int]) -> None:
    more, concurrency, buffer, most, seed = shape
    clients = max(concurrency, buffer) + more
    schedule = FedBuff(buffer, concurrency, most)
    line, before = made(schedule, clients, seed), 0.0
    turns: Counter[tuple[int, int | None]] = Counter()
    for number in range(12):
        kept = line.versions() | {number}
        plan = line.next(number)
        training = line.tensors()["pacing.training"].tolist()
        assert len(plan.cohort) == buffer
        assert len(training) <= concurrency and len({client for client, _ in training}) == len(training)
        assert len({c.index for c in plan.cohort}) == buffer
        assert plan.seconds is not None and plan.seconds >= before
        before = plan.seconds
        turns.update((c.index, c.version) for c in plan.cohort)
        for c in plan.cohort:
            assert c.version is not None and c.version in kept
            assert c.factor == schedule.factor(number - c.version) > 0
        assert sorted(plan.staleness) == sorted(number - (c.version or 0) for c in plan.cohort)
        assert most is None or max(plan.staleness) <= most
    assert set(turns.values()) == {1}  # no draw of a turn is used twice, and no charge has another's number


@given(shapes, st.integers(1, 9))
@settings(max_examples=30)
def test_a_timeline_that_goes_on_is_the_same(shape: tuple[int, int, int, int | None, int], at: int) -> None:
    more, concurrency, buffer, most, seed = shape
    clients, schedule = max(concurrency, buffer) + more, FedBuff(buffer, concurrency, most)
    whole = made(schedule, clients, seed)
    plans = [whole.next(number) for number in range(10)]
    first = made(schedule, clients, seed)
    for number in range(at):
        first.next(number)
    again = made(schedule, clients, seed, saved=first.tensors())
    assert [again.next(number) for number in range(at, 10)] == plans[at:]


@given(st.integers(2, 20), st.floats(1.1, 3.0), st.integers(0, 2**32))
@settings(max_examples=30)
def test_over_selection_counts_the_first(size: int, over: float, seed: int) -> None:
    schedule = SemiSynchronous(over)
    clients = schedule.asked(size) + 5
    some, everyone = made(schedule, clients, seed, size), made(Synchronous(), clients, seed, schedule.asked(size))
    first, whole = some.next(0), everyone.next(0)
    assert len(first.cohort) == size and len(first.left) == schedule.asked(size) - size > 0
    assert {r.status for r in first.left} == {"surplus"} and not whole.left
    assert {c.index for c in first.cohort} | {r.index for r in first.left} == {c.index for c in whole.cohort}
    assert first.seconds is not None and whole.seconds is not None and first.seconds <= whole.seconds
    assert all(c == ClientTask(c.index, c.name) for c in first.cohort)  # as in real time
    assert not some.versions()


def test_a_deadline_leaves_the_slow_out() -> None:
    whole = made(Synchronous(), 20, 1, 20).next(0)
    assert whole.seconds is not None
    line = made(Synchronous(), 20, 1, 20, deadline=whole.seconds / 2)
    cut = line.next(0)
    assert cut.seconds == whole.seconds / 2
    assert {r.status for r in cut.left} == {"late"} and len(cut.cohort) + len(cut.left) == 20 and cut.cohort
    assert line.next(1).seconds == whole.seconds


def test_speeds_are_spread_as_asked() -> None:
    config = build_config(
        {
            "name": "t",
            "rounds": 1,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "softmax"},
            "training": {"batch_size": 10, "steps": 5},
        }
    )
    names = [f"c{i}" for i in range(1000)]
    choice = PacingChoice(kind="x", arrival="simulated", spread=20.0, records_per_second=100.0, jitter=0.0)
    seconds = turn_seconds(choice, 7, make_groups(config, names), np.arange(1000))
    found = np.array([seconds(0, client) for client in range(1000)])
    assert 0.5 <= found.min() < 0.51 and 9.8 < found.max() <= 10.0  # 50 records, whoever holds how many
    assert abs(np.log(found).mean() - np.log(0.5 * np.sqrt(20))) < 0.1


def test_a_factor_is_one_over_the_root() -> None:
    schedule = FedBuff(1, 1, most_staleness=8)
    assert [schedule.factor(s) for s in (0, 1, 3, 8, 9)] == [256, 181, 128, 85, 0]
    assert FedBuff(1, 1).factor(10**9) == 1
