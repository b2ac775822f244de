"""FedAvg, server optimisers, and how the config names them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import gamma

from fedray.algorithms.algorithm import make_algorithm, make_server
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.server import ServerSGD
from fedray.choices import Choice
from fedray.errors import ConfigError


def test_weights_are_records_or_one_and_the_bound_holds_them_all() -> None:
    sizes = np.array([3, 0, 40_000_000_000, 7], dtype=np.int64)
    samples, uniform = FedAvg(), FedAvg("uniform")
    assert [samples.weight(int(n)) for n in sizes] == [3.0, 0.0, 4e10, 7.0]
    assert [uniform.weight(int(n)) for n in sizes] == [1.0] * 4
    for algorithm in (samples, uniform):
        assert algorithm.largest_weight(sizes) == sum(algorithm.weight(int(n)) for n in sizes)


@pytest.mark.parametrize("settings", [(1.0, 0.0, False), (0.3, 0.0, False), (0.7, 0.9, False), (0.7, 0.9, True)])
def test_the_server_is_torchs_sgd_on_the_negated_update(settings: tuple[float, float, bool]) -> None:
    lr, momentum, nesterov = settings
    draws = np.random.default_rng(0)
    weights = draws.standard_normal(50).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimizer = torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=nesterov)
    server = ServerSGD(lr, momentum, nesterov)
    state = server.init(50)
    for _ in range(6):
        delta = draws.standard_normal(50).astype(np.float32)
        parameter.grad = torch.from_numpy(-delta)
        optimizer.step()
        weights, state = server.step(weights, delta, state)
        size = max(1.0, float(np.abs(weights).max()), *(float(np.abs(v).max()) for v in state.values()))
        np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=0, atol=gamma(6 * 5) * size)  # five operations a step
        assert weights.dtype == np.float32
        assert all(vector.dtype == np.float32 and vector.shape == (50,) for vector in state.values())


def test_lr_one_without_momentum_adds_the_mean_update_exactly_and_keeps_no_state() -> None:
    weights, delta = np.float32([1.5, -2.0]), np.float32([0.1, 0.2])
    new, state = ServerSGD().step(weights, delta, ServerSGD().init(2))
    np.testing.assert_array_equal(new, weights + delta)
    assert state == {}


def test_a_server_step_changes_none_of_its_arguments() -> None:
    server = ServerSGD(0.5, 0.9)
    weights, delta, state = np.ones(3, np.float32), np.ones(3, np.float32), server.init(3)
    for array in (weights, delta, state["momentum"]):
        array.flags.writeable = False
    first = server.step(weights, delta, state)
    again = server.step(weights, delta, state)
    np.testing.assert_array_equal(first[0], again[0])
    assert state["momentum"].sum() == 0


def test_the_config_names_them() -> None:
    assert make_algorithm(Choice(kind="fedavg")) == FedAvg()
    assert make_algorithm(Choice(kind="fedavg", weights="uniform")) == FedAvg("uniform")
    assert make_server(Choice(kind="sgd", lr=1, momentum=0.9, nesterov=True)) == ServerSGD(1.0, 0.9, True)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Choice(kind="fedavgg"), "algorithm.kind.*Did you mean 'fedavg'"),
        (Choice(kind="fedavg", weights="sample"), "algorithm.weights.*'samples' or 'uniform'"),
        (Choice(kind="fedavg", weight="uniform"), "algorithm.weight: unknown.*Did you mean 'weights'"),
        (Choice(kind="python:os.path:sep"), "algorithm.kind.*is a str"),
        (Choice(kind="python:fedray.algorithms.server:ServerSGD"), "not derived from fedray.algorithms.algorithm.Algorithm"),
    ],
)
def test_wrong_algorithms_are_refused(part: Choice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_algorithm(part)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 0.0}, "server.lr"),
        ({"lr": float("nan")}, "server.lr"),
        ({"momentum": 1.0}, "server.momentum"),
        ({"nesterov": True}, "server.nesterov"),
        ({"momentun": 0.9}, "server.momentun.*Did you mean 'momentum'"),
    ],
)
def test_wrong_servers_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_server(Choice(kind="sgd", **arguments))


def test_users_algorithm_and_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithms_for_test.py").write_text(
        "from fedray.algorithms.fedavg import FedAvg\n"
        "class Root(FedAvg):\n"
        "    def weight(self, records): return records ** 0.5\n"
        "def server(lr: float = 1.0):\n"
        "    class Plain:\n"
        "        def init(self, size): return {}\n"
        "        def step(self, weights, delta, state): return weights + lr * delta, state\n"
        "    return Plain()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_algorithms_for_test", raising=False)
    assert make_algorithm(Choice(kind="python:my_algorithms_for_test:Root")).weight(9) == 3.0
    weights, _ = make_server(Choice(kind="python:my_algorithms_for_test:server", lr=2)).step(
        np.zeros(1, np.float32), np.ones(1, np.float32), {}
    )
    assert weights[0] == 2.0
