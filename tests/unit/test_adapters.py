"""Adapters on a frozen base, and weights that are read from a folder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from fedray import components
from fedray.algorithms.algorithm import make_algorithm
from fedray.checkpoint import Saved
from fedray.choices import ModelChoice
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
from fedray.frozen import frozen_digest
from fedray.models.adapters import LoraLinear, lora, merged
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.models.weights import load_weights
from fedray.parameters import Layout, get_vector, set_vector
from fedray.planning.global_model import Model
from fedray.privacy.recordplan import plan_record
from fedray.runfiles import RunFiles
from fedray.storage import write_json
from fedray.training.engine import DpStep, LocalJob
from fedray.training.losses import cross_entropy

HERE = f"python:{__name__}:"
WIDTH, CLASSES = 6, 3


class Attentive(nn.Module):
    """Linear layers at positions, one of them used at two places, and one that is tied to another."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.query, self.value, self.out = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(4, outputs)
        self.again = self.out
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), -1, 2)
        query = self.query(x)
        mixed = torch.softmax(query @ query.transpose(1, 2), -1) @ self.value(x)
        return self.again(self.norm(mixed)).mean(1)


class Tied(nn.Module):
    """Two names of one parameter."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, outputs)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).relu()))


def normalised(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, outputs))


def lazy(outputs: int) -> nn.Module:
    return nn.LazyLinear(outputs)


def own_weights(input_shape: tuple[int, ...], outputs: int, weights: str = "none") -> nn.Module:
    model = nn.Linear(WIDTH, outputs)
    nn.init.constant_(model.weight, len(weights))
    return model


def config_of(model: dict[str, Any], **sections: Any) -> Config:
    return build_config(
        {
            "name": "adapters",
            "rounds": 2,
            "data": {"source": "python:nowhere:data"},
            "model": model,
            "training": {"lr": 0.1, "batch_size": 10, "epochs": 2},
            "algorithm": {"kind": "fedavg", "weights": "uniform"},
            **sections,
        }
    )


def adapted(**arguments: Any) -> dict[str, Any]:
    return {"kind": "mlp", "hidden": [5], "adapters": {"kind": "lora", "rank": 2, "alpha": 6.0, **arguments}}


def records(n: int = 40) -> Records:
    draws = np.random.default_rng(3)
    return Records(draws.normal(size=(n, WIDTH)).astype(np.float32), draws.integers(0, CLASSES, n))


def state_of(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


# -- adapters ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(rank=st.integers(1, 8), alpha=st.floats(0.1, 64), seed=st.integers(0, 99), bias=st.booleans())
def test_an_adapted_layer_is_the_papers_formula_and_merges_into_one(rank: int, alpha: float, seed: int, bias: bool) -> None:
    torch.manual_seed(seed)
    base = nn.Linear(5, 4, bias=bias)
    x = torch.randn(3, 7, 5)
    layer = lora(copy.deepcopy(base), rank, alpha)
    assert isinstance(layer, LoraLinear)
    assert torch.equal(layer(x), base(x)), "it begins as the base"
    nn.init.normal_(layer.up.weight)
    wanted = base(x).double() + alpha / rank * x.double() @ layer.down.weight.double().t() @ layer.up.weight.double().t()
    wanted = wanted.detach()
    size = float(wanted.abs().max()) + 1
    assert float((layer(x).detach() - wanted).abs().max()) < 1e-5 * size
    whole = merged(layer)
    assert type(whole) is nn.Linear
    assert float((whole(x).detach() - wanted).abs().max()) < 1e-5 * size


def test_only_the_adapters_are_trained_and_exchanged() -> None:
    model, facts = first_model(config_of(adapted(targets=["fc1"])).model, (WIDTH,), CLASSES, 0)
    assert [(e.name, e.shape, e.kind) for e in facts.layout.entries] == [
        ("fc1.down.weight", (2, WIDTH), "shared"),
        ("fc1.up.weight", (5, 2), "shared"),
    ]
    assert facts.frozen == frozen_digest(model) != ""
    plain = build_model(config_of({"kind": "mlp", "hidden": [5]}).model, (WIDTH,), CLASSES, 0)
    assert torch.equal(model.get_parameter("fc1.base.weight"), plain.get_parameter("fc1.weight"))


def test_a_layer_that_is_used_twice_keeps_one_adapter() -> None:
    model = build_model(config_of({"kind": HERE + "Attentive", "adapters": {"kind": "lora"}}).model, (WIDTH,), CLASSES, 0)
    assert model.again is model.out
    assert isinstance(model.query, LoraLinear)
    whole = merged(model)
    assert whole.again is whole.out
    assert type(whole.out) is nn.Linear


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (adapted(targets=["fc9"]), "no Linear layer 'fc9'; it has fc1, out. Did you mean 'fc1'"),
        (adapted(targets=[]), "at least one Linear layer"),
        (adapted(rank=0), "rank 0 and alpha 6 must both be above 0"),
        (adapted(ranks=3), "model.adapters.ranks: unknown argument"),
        ({"kind": "mlp", "adapters": {"kind": "lore"}}, "model.adapters.kind: 'lore' is not known.*Did you mean 'lora'"),
        ({"kind": HERE + "normalised", "adapters": {"kind": "lora"}}, "float buffer 0.running_mean, which would be exchanged"),
        ({"kind": HERE + "lazy", "adapters": {"kind": "lora"}}, "has lazy layers"),
        ({"kind": "fedavg_cnn", "adapters": {"kind": HERE + "CLASSES"}}, "is a int; name a function"),
    ],
)
def test_what_cannot_be_adapted_is_refused(model: dict[str, Any], message: str) -> None:
    shape = (1, 28, 28) if model["kind"] == "fedavg_cnn" else (WIDTH,)
    with pytest.raises(ConfigError, match=message):
        build_model(config_of(model).model, shape, CLASSES, 0)


@pytest.mark.parametrize("engine", ["plain", "hooks", "ghost", "book"])
@pytest.mark.parametrize("model", [adapted(), {"kind": HERE + "Attentive", "adapters": {"kind": "lora", "targets": ["query", "value"]}}])
def test_training_moves_the_adapters_and_leaves_the_base_to_the_byte(engine: str, model: dict[str, Any]) -> None:
    private = engine != "plain"
    sections: dict[str, Any] = {"training": {"lr": 0.1, "batch_size": 10, "epochs": 2, "engine": engine}}
    if private:
        sections = {
            "privacy": {"regime": "record", "noise_multiplier": 0.5, "clip": 1.0, "delta": 1e-3},
            "training": {"lr": 0.1, "sampling_rate": 0.5, "expected_batch": 10.0, "steps": 4, "engine": engine},
        }
    config = config_of(model, **sections)
    start, facts = first_model(config.model, (WIDTH,), CLASSES, config.seed)
    group = make_groups(config, ["a", "b"])[0]
    federation = Federation(["a", "b"], records(), np.array([0, 20, 40]), None, None, None, CLASSES)
    host = ClientHost(
        make_terms(config, group, plan_record(config, group.training) if private else None, facts), Site(device="cpu"), federation
    )
    host.ready()
    if private:
        assert 0 < host.preflight() <= 1 + 1e-6
    task = RoundTask(0, 2.0)
    reports = host.train(task, get_vector(start, facts.layout), [ClientTask(0, "a"), ClientTask(1, "b")])
    assert [r.status for r in reports] == ["done"] * 2, reports[0].traceback
    total = host.collect(task).total
    assert total.values.shape == (facts.layout.size,)
    update = total.mean()
    for name, view in facts.layout.views(update.astype(np.float32)).items():
        assert ("down" in name or "up" in name) and np.abs(view).max() > 0
    before, after = state_of(start), state_of(host._trainer.model)
    adapters = {e.name for e in facts.layout.entries}
    assert {name for name in before if before[name] != after[name]} <= adapters


@pytest.mark.parametrize("engine", ["hooks", "ghost", "book"])
@pytest.mark.parametrize("kind", ["mlp", HERE + "Attentive"])
def test_clipped_gradients_of_adapters_equal_brute_force(engine: str, kind: str) -> None:
    """Two layers are targets: the clip norm is of both adapters together."""
    targets = ["fc1", "out"] if kind == "mlp" else ["query", "value"]
    start = build_model(ModelChoice(kind=kind, adapters={"kind": "lora", "targets": targets}), (WIDTH,), CLASSES, 1)
    torch.manual_seed(4)
    for module in start.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.up.weight, std=0.3)
    found = records(16)
    x, y = torch.from_numpy(found.x), torch.from_numpy(found.y)
    layout = Layout.of(start)
    trained = [p for p in start.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(cross_entropy(start(x[k : k + 1]), y[k : k + 1]).sum(), trained) for k in range(len(x))]
    norms = [float(torch.cat([g.reshape(-1) for g in of_record]).norm()) for of_record in gradients]
    clip = float(np.median(norms))
    assert min(norms) < clip < max(norms)
    shares = [min(1.0, clip / norm) for norm in norms]
    total = [sum(share * g for share, g in zip(shares, of_parameter, strict=True)) for of_parameter in zip(*gradients, strict=True)]
    wanted = copy.deepcopy(start)
    with torch.no_grad():
        for p, g in zip([p for p in wanted.parameters() if p.requires_grad], total, strict=True):
            p -= g / len(x)

    class Silence:
        def uniform(self, n: int) -> np.ndarray:
            return np.zeros(n)

        def normal(self, n: int) -> np.ndarray:
            return np.zeros(n)

    model = copy.deepcopy(start)
    training = Training(lr=1.0, sampling_rate=1.0, expected_batch=float(len(x)), steps=1)
    job = LocalJob(training, 1.0, cross_entropy, np.random.default_rng(0), Silence(), DpStep(0.0, clip))
    components.find(components.ENGINES, engine)(model, x, y, job)
    moved, right = (get_vector(m, layout) - get_vector(start, layout) for m in (model, wanted))
    assert np.abs(moved - right).max() <= 1e-5 * np.abs(right).max()


# -- a run's files -------------------------------------------------------------------------------------------------------


def test_the_saved_model_has_both_and_the_merged_one_reloads_with_the_same_outputs(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file(build_model(ModelChoice(kind="mlp", hidden=[5]), (WIDTH,), CLASSES, 8).state_dict(), base / "model.safetensors")
    config = config_of({**adapted(), "weights": str(base)})
    model, facts = first_model(config.model, (WIDTH,), CLASSES, config.seed)
    weights = get_vector(model, facts.layout) + np.float32(0.1)
    set_vector(model, facts.layout, weights)
    files = RunFiles(tmp_path / "run")
    files.root.mkdir()
    files.save_model(facts.layout, weights, frozen_of(facts))
    write_json(
        files.partition, {"model": Model(facts, make_algorithm(config.algorithm).exchange(facts.layout), weights, "plain").document()}
    )
    (base / "model.safetensors").rename(base / "gone")
    found, _ = trained_model(files, config)
    assert state_of(found) == state_of(model)
    exported = tmp_path / "exported"
    exported.mkdir()
    save_file(merged(found).state_dict(), exported / "model.safetensors")
    again = build_model(ModelChoice(kind="mlp", hidden=[5], weights=str(exported)), (WIDTH,), CLASSES, 0)
    x = torch.from_numpy(records().x)
    assert float((again(x) - found(x)).detach().abs().max()) < 1e-5 * float(found(x).detach().abs().max())
    assert all(p.requires_grad for p in again.parameters())


def test_another_base_is_refused_in_other_processes_and_at_a_resume(tmp_path: Path) -> None:
    save_file(build_model(ModelChoice(kind="mlp", hidden=[5]), (WIDTH,), CLASSES, 8).state_dict(), tmp_path / "model.safetensors")
    config = config_of({**adapted(), "weights": str(tmp_path)})
    model, facts = first_model(config.model, (WIDTH,), CLASSES, config.seed)
    facts.build()
    save_file(build_model(ModelChoice(kind="mlp", hidden=[5]), (WIDTH,), CLASSES, 9).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="other frozen parameters"):
        facts.build()
    weights = get_vector(model, facts.layout)
    exchange = make_algorithm(config.algorithm).exchange(facts.layout)
    other = Model(first_model(config.model, (WIDTH,), CLASSES, config.seed)[1], exchange, weights, "plain")
    with pytest.raises(FedrayError, match="frozen parameters are others"):
        check_model(Saved(3, weights, {}, {"frozen_sha256": facts.frozen}), other, "checkpoints")
    check_model(Saved(3, weights, {}, {"frozen_sha256": facts.frozen}), replace(other, facts=facts), "checkpoints")


# -- weights from a folder -----------------------------------------------------------------------------------------------


def test_weights_are_read_from_one_file_or_many_in_the_models_types(tmp_path: Path) -> None:
    source = build_model(ModelChoice(kind=HERE + "Tied"), (WIDTH,), CLASSES, 1)
    state = source.state_dict()
    del state["second.weight"]  # as the hub's files are: one name of tied weights
    halves = {name: value.to(torch.bfloat16) if "out" in name else value.clone() for name, value in state.items()}
    save_file(halves, tmp_path / "model.safetensors")
    many = tmp_path / "many"
    many.mkdir()
    for number, name in enumerate(halves):
        save_file({name: halves[name]}, many / f"model-{number}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"model-{number}.safetensors" for number, name in enumerate(halves)}}
    (many / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (tmp_path, many):
        model = build_model(ModelChoice(kind=HERE + "Tied", weights=str(folder)), (WIDTH,), CLASSES, 2)
        for name, value in halves.items():
            assert torch.equal(model.state_dict()[name], value.to(torch.float32)), name
        assert model.second.weight is model.first.weight
        assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_a_factory_that_takes_weights_itself_gets_them() -> None:
    model = build_model(ModelChoice(kind=HERE + "own_weights", weights="four"), (WIDTH,), CLASSES, 0)
    assert float(model.weight.detach().mean()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("weight"), "lacks 'weight'; give"),
        (lambda s: s.update({f"more.{k}": torch.zeros(1) for k in range(5)}), "holds 'more.0', 'more.1', 'more.2' and 2 more, which"),
        (lambda s: s.update(weight=torch.zeros(CLASSES, WIDTH + 1)), r"has shape \(3, 7\), but the model's has \(3, 6\)"),
        (lambda s: s.update(weight=torch.zeros(CLASSES, WIDTH).to(torch.float8_e4m3fn)), "of type F8_E4M3; use one of F64"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    state = nn.Linear(WIDTH, CLASSES).state_dict()
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        load_weights(nn.Linear(WIDTH, CLASSES), str(tmp_path))


def test_files_that_are_damaged_or_missing_are_refused(tmp_path: Path) -> None:
    model, path, index = nn.Linear(WIDTH, CLASSES), tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"
    with pytest.raises(ConfigError, match="holds neither model.safetensors nor"):
        load_weights(model, str(tmp_path))
    for text in ("{", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(ConfigError, match=r"index.json cannot be read"):
            load_weights(model, str(tmp_path))
    index.write_text('{"weight_map": {"weight": "part.safetensors"}}')
    with pytest.raises(ConfigError, match=r"part.safetensors cannot be read"):
        load_weights(model, str(tmp_path))
    save_file(model.state_dict(), path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", whole + b"x", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read as safetensors"):
            load_weights(model, str(tmp_path))
