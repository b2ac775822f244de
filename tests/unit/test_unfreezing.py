"""``training.unfreeze``: layers do not move before their round, whatever engine, algorithm or server would move them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from everyone import Everyone
from rehearsed import Rehearsed, config_of, label_skewed
from torch import nn

from fedray.algorithms.algorithm import Mean, make_algorithm, make_server, stepped
from fedray.choices import Choice, ModelChoice
from fedray.config import Config, Training
from fedray.errors import ConfigError
from fedray.models.build import build_model
from fedray.parameters import Layout, get_vector
from fedray.planning.combinations import check_only
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import DpStep, LocalJob
from fedray.training.lockstep import lockstep
from fedray.training.losses import find_loss
from fedray.training.plain import plain
from fedray.training.unfreezing import check_layers, frozen_in, said_of_never, unfrozen

STAGES = [{"round": 1, "layers": ["out"]}, {"round": 3, "layers": ["fc1"]}]
MLP = {"kind": "mlp", "hidden": [16]}
TRAINING = {"lr": 0.1, "batch_size": 10, "epochs": 1}
ENGINES = {"plain": plain, "lockstep": lockstep, "book": book, "hooks": hooks, "ghost": ghost}
PRIVATE = ("book", "hooks", "ghost")


def config(training: dict[str, Any] | None = None, algorithm: str | dict[str, Any] = "fedavg", **sections: Any) -> Config:
    part = {"kind": algorithm} if isinstance(algorithm, str) else algorithm
    return config_of(part, **{"model": MLP, "training": {**TRAINING, "unfreeze": STAGES, **(training or {})}, **sections})


def section(**more: Any) -> Training:
    private = {"lr": 0.1, "sampling_rate": 0.5, "steps": 3, "expected_batch": 20.0}
    base = private if more.pop("private", False) else TRAINING
    return Training.model_validate({**base, "unfreeze": STAGES, **more})


def network() -> nn.Module:
    return build_model(ModelChoice.model_validate(MLP), (64,), 10, 0)


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("plain", {}),
        ("plain", {"momentum": 0.9, "weight_decay": 0.1}),
        ("plain", {"optimizer": "adamw", "weight_decay": 0.1}),
        ("plain", {"max_grad_norm": 0.1}),
        ("lockstep", {}),
        ("lockstep", {"momentum": 0.9, "weight_decay": 0.1}),
        ("lockstep", {"max_grad_norm": 0.1}),
        *((engine, {"private": True, "momentum": 0.9, "weight_decay": 0.1}) for engine in PRIVATE),
    ],
)
@pytest.mark.parametrize(("round_", "still"), [(0, {"fc1.weight", "fc1.bias"}), (2, set())])
def test_no_engine_moves_what_is_frozen(engine: str, more: dict[str, Any], round_: int, still: set[str]) -> None:
    federation, _ = label_skewed()
    x, y = (torch.from_numpy(part[:60]) for part in (federation.train.x, federation.train.y))
    training, model = section(**more), network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    job = LocalJob(training, 0.1, find_loss("cross_entropy"), np.random.default_rng(0))
    if engine in PRIVATE:
        job = replace(job, noise=Noisy(), dp=DpStep(1.0, 1.0))
    with unfrozen(model, training, round_):
        ENGINES[engine](model, x, y, job)
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == still
    assert all(p.requires_grad for p in model.parameters())


class Noisy(Everyone):
    """Every record is drawn, and there is noise."""

    def __init__(self) -> None:
        self._draws = np.random.default_rng(0)

    def normal(self, n: int) -> np.ndarray:
        return self._draws.standard_normal(n)


def test_lockstep_trains_as_plain_does() -> None:
    federation, _ = label_skewed()
    x, y = (torch.from_numpy(part[:60]) for part in (federation.train.x, federation.train.y))
    training, found = section(momentum=0.9, max_grad_norm=0.5), []
    for engine in (plain, lockstep):
        model = network()
        with unfrozen(model, training, 0):
            engine(model, x, y, LocalJob(training, 0.1, find_loss("cross_entropy"), np.random.default_rng(0)))
        found.append(get_vector(model, Layout.of(model)))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "algorithm",
    [
        "fedavg",
        "fednova",
        "scaffold",
        "feddyn",
        "ditto",
        "ifca",
        {"kind": "fedprox", "mu": 0.1},
        {"kind": "pfedme", "inner_lr": 0.01},
        {"kind": "fedavg", "weights": "uniform"},
    ],
    ids=str,
)
def test_the_model_s_layers_begin_to_move_in_their_round(algorithm: str | dict[str, Any]) -> None:
    federation, _ = label_skewed()
    run = Rehearsed(config(algorithm=algorithm, server={"kind": "sgd", "momentum": 0.9}), federation)
    later = frozen_in(run._config.training, run.layout, 0)
    assert later is not None and frozen_in(run._config.training, run.layout, 2) is not None
    models = run.exchange.model_size // run.layout.size
    for number in range(4):
        before = run.globals[: run.exchange.model_size].reshape(models, -1)
        run.train([[0, 1], [2]])
        moved = (run.globals[: run.exchange.model_size].reshape(models, -1) != before).any(0)
        assert moved[~later].any()
        assert moved[later].any() == (number >= 2)


def test_a_run_goes_on_as_if_it_had_not_been_stopped() -> None:
    federation, _ = label_skewed()
    runs = [Rehearsed(config(algorithm="scaffold"), federation) for _ in range(2)]
    for number in range(4):
        for run in runs:
            run.train([[0, 1], [2]])
        if number in (1, 2):
            runs[1].restart()
    assert runs[0].globals.tobytes() == runs[1].globals.tobytes()


@pytest.mark.parametrize("server", [{"kind": "sgd", "momentum": 0.9}, {"kind": "adam"}, {"kind": "yogi"}, {"kind": "adagrad"}], ids=str)
def test_noise_of_the_driver_s_leaves_frozen_layers_alone(server: dict[str, Any]) -> None:
    model, algorithm, made = network(), make_algorithm(Choice(kind="fedavg")), make_server(Choice.model_validate(server))
    layout = Layout.of(model)
    frozen, weights, exchange = frozen_in(section(), layout, 1), get_vector(model, layout), algorithm.exchange(layout)
    assert frozen is not None
    noise = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    after, state = weights, made.init(layout.size)
    for number in range(2, 4):
        frozen = frozen_in(section(), layout, number - 1)
        after, state = stepped(algorithm, made, layout, exchange, after, state, Mean({"model": noise}, 3, 1.0), frozen)
        if number == 2:
            assert frozen is not None
            assert (after[frozen] == weights[frozen]).all() and (after[~frozen] != weights[~frozen]).all()
        else:
            assert (after != weights).all()


def test_running_statistics_follow_the_records_all_the_same() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    training = section(unfreeze=[{"round": 1, "layers": ["1"]}])
    mask = frozen_in(training, Layout.of(model), 0)
    assert mask is not None
    assert [e.name for e in Layout.of(model).entries if mask[e.offset]] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("stages", "rounds", "words"),
    [
        ([{"round": 2, "layers": ["out"]}], 5, "nothing would train before round 2; give the first stage round 1"),
        ([{"round": 1, "layers": ["out"]}, {"round": 1, "layers": ["fc1"]}], 5, "begin in rounds 1, 1; each must begin after"),
        (STAGES, 2, "round 3 is never reached, because the run has 2"),
    ],
)
def test_stages_that_mean_nothing_are_refused(stages: list[dict[str, Any]], rounds: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_only(config({"unfreeze": stages}, rounds=rounds))


def test_groups_have_no_stages_of_their_own() -> None:
    groups = [{"name": "slow", "clients": 1, "training": {"unfreeze": STAGES}}]
    with pytest.raises(ConfigError, match=r"clients\.groups\.0\.training\.unfreeze: the clients of a round train the same layers"):
        check_only(config({"unfreeze": None}, clients={"groups": groups}, rounds=5))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([["out"], ["fc2"]], r"no trained parameter of the model is named 'fc2' .*it has fc1\.weight.*Did you mean 'fc1'"),
        ([["out"], ["out.bias"]], r"'out\.bias' trains from round 1 on already; name it once"),
    ],
)
def test_layers_that_the_model_has_not_are_refused(layers: list[list[str]], words: str) -> None:
    stages = [{"round": n + 1, "layers": names} for n, names in enumerate(layers)]
    with pytest.raises(ConfigError, match=words):
        check_layers(section(unfreeze=stages), network())


def test_one_tensor_under_two_names_has_one_stage() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ConfigError, match=r"0\.weight and 1\.weight are the same tensor; name them in the same stage"):
        check_layers(section(unfreeze=[{"round": 1, "layers": ["1"]}, {"round": 2, "layers": ["0"]}]), model)
    assert check_layers(section(unfreeze=[{"round": 1, "layers": ["1", "0.weight"]}]), model) == ["0.bias"]


def test_what_never_trains_is_said() -> None:
    assert check_layers(section(), network()) == []
    (said,) = said_of_never(check_layers(section(unfreeze=STAGES[:1]), network()))
    assert "fc1.weight, fc1.bias" in said
