"""``server.schedule``: the server's learning rate over rounds, with what its optimiser remembers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, label_skewed

from fedray.algorithms.algorithm import make_server
from fedray.algorithms.serverschedule import server_in, server_lr
from fedray.choices import ServerChoice
from fedray.errors import ConfigError
from fedray.planning.combinations import check_only

SERVERS: tuple[dict[str, Any], ...] = (
    {"kind": "sgd"},
    {"kind": "sgd", "momentum": 0.9, "nesterov": True},
    {"kind": "adagrad", "lr": 0.03},
    {"kind": "adam"},
    {"kind": "yogi", "lr": 0.01},
)


def choice(**section: Any) -> ServerChoice:
    return ServerChoice.model_validate(section)


@settings(max_examples=20, deadline=None)
@given(server=st.sampled_from(SERVERS), seed=st.integers(0, 99), rounds=st.integers(1, 6), factor=st.floats(0.1, 1.0))
def test_each_round_is_a_step_of_the_optimiser_with_that_round_s_rate(
    server: dict[str, Any], seed: int, rounds: int, factor: float
) -> None:
    scheduled = choice(**server, schedule={"kind": "exponential", "factor": factor})
    made, draws = make_server(scheduled), np.random.default_rng(seed)
    lr = getattr(made, "lr")  # noqa: B009 - of those above
    weights = draws.standard_normal(7).astype(np.float32)
    state, theirs = made.init(7), (weights, made.init(7))
    for number in range(rounds):
        delta = draws.standard_normal(7).astype(np.float32)
        weights, state = server_in(scheduled, made, number, rounds).step(weights, delta, state)
        theirs = make_server(choice(**{**server, "lr": lr * factor**number})).step(theirs[0], delta, theirs[1])
        assert weights.tobytes() == theirs[0].tobytes()
        assert {name: value.tobytes() for name, value in state.items()} == {name: value.tobytes() for name, value in theirs[1].items()}


def test_a_constant_rate_is_the_optimiser_itself() -> None:
    made = make_server(choice(kind="adam"))
    assert server_in(choice(kind="adam"), made, 3, 9) is made
    assert server_lr(choice(kind="adam"), 3, 9) is None


def test_a_run_moves_by_the_schedule_and_goes_on_from_a_checkpoint() -> None:
    federation, _ = label_skewed()
    server = {"kind": "sgd", "lr": 1.0, "schedule": {"kind": "step", "every": 2, "factor": 0.5}}
    runs = [Rehearsed(config_of({"kind": "fedavg"}, server=server, rounds=4), federation) for _ in range(2)]
    plain = Rehearsed(config_of({"kind": "fedavg"}, rounds=4), federation)
    for number in range(3):
        before = runs[0].globals
        for run in (*runs, plain):
            run.train([[0, 1, 2]])
        if number == 1:
            runs[1].restart()
            assert runs[0].globals.tobytes() == plain.globals.tobytes()
    assert runs[0].globals.tobytes() == runs[1].globals.tobytes()
    np.testing.assert_allclose(runs[0].globals - before, (plain.globals - before) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"kind": "sgd", "schedule": {"kind": "cosin"}}, r"server\.schedule\.kind: 'cosin'.*Did you mean 'cosine'"),
        ({"kind": "adam", "schedule": {"kind": "cosine", "floor": 2}}, r"server\.schedule\.floor: 2\.0 is not in \[0, 1\]"),
        ({"kind": "adam", "schedule": {"kind": "step"}}, r"server\.schedule\.every: step needs it"),
    ],
)
def test_wrong_schedules_are_refused_by_the_server_s_key(server: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_only(config_of({"kind": "fedavg"}, server=server, rounds=4))


def test_schedules_that_would_do_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_servers_for_test.py").write_text(
        "def nothing(round, rounds): return float(round > 0)\n"
        "class NoRate:\n"
        "    def init(self, size): return {}\n"
        "    def step(self, weights, delta, state): return weights + delta, {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_servers_for_test", raising=False)
    nothing = {"kind": "sgd", "schedule": {"kind": "python:my_servers_for_test:nothing"}}
    with pytest.raises(ConfigError, match=r"gives a factor of 0\.0 in round 1; it must be above 0"):
        check_only(config_of({"kind": "fedavg"}, server=nothing, rounds=4))
    rateless = {"kind": "python:my_servers_for_test:NoRate", "schedule": {"kind": "cosine"}}
    with pytest.raises(ConfigError, match=r"server\.schedule: 'python:my_servers_for_test:NoRate' has no number lr"):
        check_only(config_of({"kind": "fedavg"}, server=rateless, rounds=4))
