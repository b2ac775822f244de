"""Frozen parameters: in no vector and no noise, the same bytes in every process and in what is saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedray.algorithms.algorithm import make_algorithm
from fedray.checkpoint import Saved
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Config, Training
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ConfigError, FedrayError
from fedray.experiment.finished import frozen_of, trained_model
from fedray.experiment.resume import check_model
from fedray.frozen import check_frozen, frozen_digest, frozen_values, model_digest
from fedray.holder import Holder
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector, set_vector
from fedray.planning.global_model import Model
from fedray.privacy.clientplan import plan_clients
from fedray.privacy.release import Release
from fedray.rounds.evaluator import Evaluator
from fedray.runfiles import RunFiles
from fedray.storage import write_json
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import DpStep, LocalJob
from fedray.training.lockstep import lockstep
from fedray.training.losses import cross_entropy
from fedray.training.plain import plain

HERE = f"python:{__name__}:"
WIDTH, HIDDEN, CLASSES = 6, 20, 3
TRAINED = HIDDEN * CLASSES + CLASSES


def base_and_head(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    base = nn.Linear(int(np.prod(input_shape)), HIDDEN)
    base.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), base, nn.ReLU(), nn.Linear(HIDDEN, outputs))


def bias_only(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(input_shape[0], 8), nn.Tanh(), nn.Linear(8, outputs))
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def middle(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(input_shape[0], 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))
    model[2].requires_grad_(False)
    return model


class Many(nn.Module):
    """Frozen numbers of many types beside what is trained."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.odd = nn.Parameter(torch.rand(3).to(torch.float16), requires_grad=False)
        self.head = nn.Linear(width, outputs)
        self.flags = nn.Parameter(torch.tensor([True, False, True]), requires_grad=False)
        self.scale = nn.Parameter(torch.rand(2, dtype=torch.float64), requires_grad=False)
        self.shift = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.codes = nn.Parameter(torch.arange(5, dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.shift


def many(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Many(input_shape[0], outputs)


def coarse(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    model = Many(input_shape[0], outputs)
    model.odd = nn.Parameter(torch.rand(3).to(torch.bfloat16), requires_grad=False)
    return model


def by_chance(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    model = base_and_head(input_shape, outputs)
    values = np.random.default_rng().normal(size=(HIDDEN, input_shape[0]))
    model[1].weight.data = torch.from_numpy(values.astype(np.float32))  # type: ignore[index]
    return model


def frozen_bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in model.named_parameters() if not p.requires_grad}


def records(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(3)
    return draws.normal(size=(n, WIDTH)).astype(np.float32), draws.integers(0, CLASSES, n)


def config_of(kind: str, **privacy: Any) -> Config:
    return build_config(
        {
            "name": "frozen",
            "rounds": 2,
            "data": {"source": "python:nowhere:data"},
            "model": {"kind": HERE + kind},
            "training": {"lr": 0.1, "batch_size": 10, "epochs": 2},
            "algorithm": {"kind": "fedavg", "weights": "uniform"},
            **({"privacy": privacy} if privacy else {}),
        }
    )


def made(config: Config) -> Model:
    model, facts = first_model(config.model, (WIDTH,), CLASSES, config.seed)
    exchange = make_algorithm(config.algorithm).exchange(facts.layout)
    return Model(facts, exchange, Holder(get_vector(model, facts.layout)), "plain")


# -- what is exchanged ---------------------------------------------------------------------------------------------------


def test_a_vector_holds_what_is_trained_and_float_buffers() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    layout = Layout.of(model)
    assert [(e.name, e.kind) for e in layout.entries] == [
        ("1.running_mean", "buffer"),
        ("1.running_var", "buffer"),
        ("2.weight", "shared"),
        ("2.bias", "shared"),
    ]
    before = frozen_bytes(model)
    set_vector(model, layout, np.full(layout.size, 7, dtype=np.float32))
    assert frozen_bytes(model) == before


@pytest.mark.parametrize("kind", ["base_and_head", "bias_only", "middle"])
def test_engines_leave_frozen_parameters_and_move_the_others_by_their_gradients(kind: str) -> None:
    start = build_model(config_of(kind).model, (WIDTH,), CLASSES, 0)
    x, y = (torch.from_numpy(a) for a in records())
    wanted = copy.deepcopy(start)
    for _ in range(2):
        wanted.zero_grad()
        nn.functional.cross_entropy(wanted(x), y, reduction="sum").backward()
        with torch.no_grad():
            for p in wanted.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad / len(x)
    layout = Layout.of(start)
    whole = {"lr": 0.1, "batch_size": len(x), "epochs": 2}
    private = {"lr": 0.1, "sampling_rate": 1.0, "expected_batch": float(len(x)), "steps": 2}

    class Silence:
        def uniform(self, n: int) -> np.ndarray:
            return np.zeros(n)

        def normal(self, n: int) -> np.ndarray:
            return np.zeros(n)

    for engine, settings in ((plain, whole), (lockstep, whole), (book, private), (hooks, private), (ghost, private)):
        model = copy.deepcopy(start)
        dp = DpStep(0.0, 1e6) if settings is private else None
        job = LocalJob(Training(**settings), 0.1, cross_entropy, np.random.default_rng(0), Silence(), dp)
        engine(model, x, y, job)
        assert frozen_bytes(model) == frozen_bytes(start), engine.__name__
        moved, right = (get_vector(m, layout) - get_vector(start, layout) for m in (model, wanted))
        assert np.abs(moved - right).max() <= 1e-5 * np.abs(right).max(), engine.__name__
        assert np.abs(right).max() > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_crowds_train_the_head_alone(momentum: float) -> None:
    """Lockstep, as clients' actors use it."""
    config = config_of("base_and_head")
    config = config.model_copy(update={"training": config.training.model_copy(update={"momentum": momentum})})
    x, y = records(60)
    federation = Federation(["a", "b", "c"], Records(x, y), np.array([0, 20, 40, 60]), None, None, None, CLASSES)
    group = make_groups(config, federation.names)[0]
    model = made(config)
    totals = []
    for engine in ("lockstep", "plain"):
        own = group.training.model_copy(update={"engine": engine})
        terms = make_terms(config, type(group)(**{**vars(group), "training": own}), None, model.facts)
        host = ClientHost(terms, Site(device="cpu"), federation)
        host.ready()
        before = frozen_bytes(host._trainer.model)
        task = RoundTask(0, 3.0)
        done = host.train(task, model.weights.value, [ClientTask(k, name) for k, name in enumerate(federation.names)])
        assert [r.status for r in done] == ["done"] * 3, done[0].traceback
        assert frozen_bytes(host._trainer.model) == before
        totals.append(host.collect(task).total.mean())
        assert totals[-1].shape == (TRAINED,)
    assert np.abs(totals[0] - totals[1]).max() < 1e-5 < np.abs(totals[0]).max()


def test_a_client_under_privacy_sends_noise_for_trained_parameters_only() -> None:
    config = config_of("base_and_head", regime="client", noise_multiplier=1.0, delta=1e-3, clip=0.01, budget=100)
    x, y = records(80)
    names = [f"c{k}" for k in range(4)]
    federation = Federation(names, Records(x, y), np.arange(5) * 20, None, None, None, CLASSES)
    model = made(config)
    release = Release(plan_clients(config, 4, model.facts.layout.size, 40), 1)
    release.begin(0)
    task = RoundTask(0, 4.0, release.stages(0), release.plan.sha256)
    host = ClientHost(make_terms(config, make_groups(config, names)[0], None, model.facts), Site(device="cpu"), federation)
    host.ready()
    reports = host.train(task, model.weights.value, [ClientTask(k, name) for k, name in enumerate(names)])
    assert {r.status for r in reports} == {"done"}
    total = host.collect(task).total
    assert len(total.values) == TRAINED
    assert len(release.mean(total.values, total.bits, 0)) == TRAINED


# -- what is made anew ---------------------------------------------------------------------------------------------------


def test_the_seed_decides_what_is_frozen() -> None:
    part = config_of("base_and_head").model
    one, same, other = (frozen_digest(build_model(part, (WIDTH,), CLASSES, seed)) for seed in (5, 5, 6))
    assert one == same != other
    assert frozen_digest(nn.Linear(2, 2)) == ""


def test_a_digest_covers_names_types_shapes_and_bytes() -> None:
    model = build_model(config_of("many").model, (WIDTH,), CLASSES, 0)
    seen = {frozen_digest(model)}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("head.weight").add_(1)
    assert frozen_digest(other) in seen
    for name, value in frozen_values(model).items():
        other = copy.deepcopy(model)
        raw = value.copy().reshape(-1).view(np.uint8)
        raw[0] ^= 1
        other.get_parameter(name).data = torch.from_numpy(raw.view(value.dtype).reshape(value.shape))
        seen.add(frozen_digest(other))
    other = copy.deepcopy(model)
    other.get_parameter("scale").data = other.get_parameter("scale").data.reshape(1, 2)
    seen.add(frozen_digest(other))
    assert len(seen) == 1 + len(frozen_values(model)) + 1


def test_other_frozen_parameters_in_another_process_are_refused() -> None:
    config = config_of("by_chance")
    model = made(config)
    x, y = records()
    federation = Federation(["a"], Records(x, y), np.array([0, len(x)]), None, None, None, CLASSES)
    host = ClientHost(make_terms(config, make_groups(config, ["a"])[0], None, model.facts), Site(device="cpu"), federation)
    with pytest.raises(ConfigError, match="made other frozen parameters here .* must make the same ones in every process"):
        host.ready()
    with pytest.raises(ConfigError, match="other frozen parameters"):
        Evaluator(config, Records(x, y), model.facts, {}).ready()
    with pytest.raises(ConfigError, match="other frozen parameters"):
        frozen_of(model.facts)


def test_a_type_that_cannot_be_saved_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="odd of 'x' is bfloat16.*make it float32"):
        check_frozen(build_model(config_of("coarse").model, (WIDTH,), CLASSES, 0), "x", "")


# -- what is saved -------------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, kind: str) -> tuple[Config, RunFiles, nn.Module]:
    """The files of a run whose model has moved."""
    config = config_of(kind)
    model = build_model(config.model, (WIDTH,), CLASSES, config.seed)
    layout = Layout.of(model)
    weights = get_vector(model, layout) + 1
    set_vector(model, layout, weights)
    files = RunFiles(tmp_path)
    frozen = frozen_of(made(config).facts)
    files.save_model(layout, weights, frozen)
    write_json(files.summary, {"model_sha256": model_digest(weights, frozen)})
    shape = {"input_shape": [WIDTH], "outputs": CLASSES, "tokens": False, "frozen_sha256": frozen_digest(model)}
    write_json(files.partition, {"model": shape})
    return config, files, model


@pytest.mark.parametrize("kind", ["base_and_head", "many"])
def test_the_saved_model_is_whole(tmp_path: Path, kind: str) -> None:
    config, files, model = saved(tmp_path, kind)
    state = model.state_dict()
    for found in (load_file(files.model), trained_model(files, config)[0].state_dict()):
        assert set(found) == set(state)
        for name, value in found.items():
            assert value.dtype == state[name].dtype
            assert value.shape == state[name].shape
            assert value.numpy().tobytes() == state[name].numpy().tobytes(), name


def test_a_saved_model_with_other_frozen_parameters_is_none_of_the_run(tmp_path: Path) -> None:
    config, files, _ = saved(tmp_path, "base_and_head")
    described = json.loads(files.partition.read_text())
    described["model"]["frozen_sha256"] = "0" * 64
    write_json(files.partition, described)
    with pytest.raises(ConfigError, match="other frozen parameters"):
        trained_model(files, config)


def test_a_run_goes_on_with_its_own_frozen_parameters_only() -> None:
    model = made(config_of("base_and_head"))
    meta = {"frozen_sha256": model.facts.frozen}
    check_model(Saved(3, model.weights.value, {}, meta), model, "checkpoints")
    with pytest.raises(FedrayError, match="frozen parameters are others"):
        check_model(Saved(3, model.weights.value, {}, {"frozen_sha256": "0" * 64}), model, "checkpoints")
    with pytest.raises(FedrayError, match="of another model"):
        check_model(Saved(3, model.weights.value[:-1], {}, meta), model, "checkpoints")
