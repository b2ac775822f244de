"""A client that starts from an earlier version of the model has the turn that it would have had in that round."""

from __future__ import annotations

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, label_skewed

from fedray.aggregation.exact import ExactSum
from fedray.clients.messages import ClientTask, RoundTask
from fedray.parameters import Vector

FEDERATION, _ = label_skewed()
CAPACITY = 1e5


def turns(run: Rehearsed, number: int, clients: list[ClientTask], *globals_: Vector) -> ExactSum:
    task, host = RoundTask(number, CAPACITY, clients=10), run.host(0)
    weights, *more = globals_
    reports = host.train(task, weights, clients, None, *more)
    assert [r.status for r in reports] == ["done"] * len(clients), reports
    total = host.collect(task).total
    assert isinstance(total, ExactSum)
    return total


@pytest.mark.parametrize("engine", ["plain", "lockstep"])
def test_versions_in_one_call_are_those_rounds(engine: str) -> None:
    training = {"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": engine, "schedule": {"kind": "step", "every": 4}}
    run = Rehearsed(config_of({"kind": "fedavg"}, training=training, rounds=9), FEDERATION)
    new, old = run.globals, run.globals + np.float32(0.01)
    one, two, three = ClientTask(0, "client-0"), ClientTask(1, "client-1"), ClientTask(2, "client-2")
    fresh, stale = turns(run, 5, [one], new), turns(run, 3, [two, three], old)
    stale_tasks = [task._replace(version=3) for task in (two, three)]
    both = turns(run, 5, [stale_tasks[0], one, stale_tasks[1]], old, new)
    assert both.values.tobytes() == (fresh.values + stale.values).tobytes()
    assert (both.weight, both.count) == (fresh.weight + stale.weight, 3)
    assert both.values.tobytes() != turns(run, 5, [one, two, three], new).values.tobytes()


@pytest.mark.parametrize("engine", ["plain", "lockstep"])
def test_a_factor_makes_an_update_smaller_and_not_its_weight(engine: str) -> None:
    run = Rehearsed(config_of({"kind": "fedavg"}, training={"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": engine}), FEDERATION)
    whole = turns(run, 0, [ClientTask(0, "client-0")], run.globals)
    less = turns(run, 0, [ClientTask(0, "client-0", factor=181)], run.globals)
    assert np.abs(less.values * 256.0 / 181 - whole.values).max() <= 2  # half a unit of the grid, rounded twice
    assert less.weight == whole.weight


def test_an_earlier_version_is_stopped_with_the_round_that_it_is_trained_for() -> None:
    run = Rehearsed(config_of({"kind": "fedavg"}, training={"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": "plain"}), FEDERATION)
    task, host, stale = RoundTask(5, CAPACITY), run.host(0), ClientTask(0, "client-0", version=3)
    host.stop_round(4)
    assert [r.status for r in host.train(task, run.globals, [stale])] == ["done"]
    host.stop_round(5)
    assert [r.status for r in host.train(task, run.globals, [stale])] == ["late"]
