"""A private turn draws from what nobody knows, and meets nothing that another client's turn has left behind."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedray import components
from fedray.choices import ModelChoice
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import PrivacyRefusal
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.privacy.clientplan import plan_clients
from fedray.privacy.recordplan import plan_record
from fedray.privacy.release import Release
from fedray.training.engine import SECRET, secretly_seed_torch, torch_draws
from fedray.training.kept import fresh_models, keeps_nothing, kept
from fedray.training.losses import Loss, cross_entropy

RECORD = {"regime": "record", "noise_multiplier": 1.0, "budget": 1000, "delta": 1e-3}
CLIENT = {"regime": "client", "noise_multiplier": 1.0, "budget": 1000, "delta": 1e-2}
POISSON = {"lr": 0.1, "sampling_rate": 0.9, "expected_batch": 9, "steps": 2}
BATCHES = {"lr": 0.1, "batch_size": 5, "epochs": 1, "engine": "plain"}
CPU = torch.device("cpu")
DRAWN: list[float] = []
ORDER: list[list[float]] = []
MODELS: list[int] = []


class Witness(nn.Module):
    """Notes what torch would draw next, and which records it sees."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.5), nn.Linear(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            back = torch_draws(CPU)
            DRAWN.append(torch.rand(()).item())
            back()
            ORDER.append(x[:, 0].tolist())
            MODELS.append(id(self))
        return self.body(x)


def witness(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Witness(input_shape[0], outputs)


@pytest.fixture(autouse=True)
def _provided() -> None:
    components.provide({"python:provided:witness": witness})


def host(privacy: dict[str, Any], training: dict[str, Any], model: str = "python:provided:witness") -> tuple[ClientHost, RoundTask, Any]:
    rng = np.random.default_rng(0)
    names = [f"c{k}" for k in range(10)]
    records = Records(rng.standard_normal((100, 4), dtype=np.float32), rng.integers(0, 3, 100))
    federation = Federation(names, records, np.arange(11, dtype=np.int64) * 10, None, None, None, 3)
    config = build_config(
        {
            "name": "turns",
            "rounds": 1,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": model},
            "training": training,
            "algorithm": {"kind": "fedavg", "weights": "uniform"},
            "cohort": {"kind": "all", "min_clients": 2},
            "privacy": privacy,
        }
    )
    group = make_groups(config, names)[0]
    plan = plan_record(config, group.training) if config.privacy.record else None
    net = build_model(config.model, (4,), 3, config.seed)
    layout = Layout.of(net)
    task = RoundTask(0, 10.0)
    if config.privacy.whole_clients:
        release = Release(plan_clients(config, 10, layout.size, 40), config.privacy.insecure_seed)
        release.begin(0)
        task = RoundTask(0, 10.0, release.stages(0), release.plan.sha256)
    made = ClientHost(make_terms(config, group, plan, first_model(config.model, (4,), 3, config.seed)[1]), Site(device="cpu"), federation)
    made.ready()
    return made, task, get_vector(net, layout)


def turns(privacy: dict[str, Any], training: dict[str, Any]) -> tuple[list[float], list[list[float]], list[int]]:
    for seen in (DRAWN, ORDER, MODELS):
        seen.clear()
    made, task, weights = host(privacy, training)
    for seen in (DRAWN, ORDER, MODELS):
        seen.clear()
    reports = made.train(task, weights, [ClientTask(k, f"c{k}") for k in range(2)])
    assert [r.status for r in reports] == ["done"] * 2, [r.error for r in reports]
    return list(DRAWN), list(ORDER), list(MODELS)


@pytest.mark.parametrize(("privacy", "training"), [(RECORD, POISSON), (CLIENT, BATCHES)], ids=["record", "client"])
def test_nothing_random_follows_from_the_config_unless_it_may_be_replayed(privacy: dict[str, Any], training: dict[str, Any]) -> None:
    one, other = (turns(privacy, training) for _ in range(2))
    assert not set(one[0]) & set(other[0])
    assert one[1] != other[1]
    seeded, again = (turns(privacy | {"insecure_seed": 3}, training) for _ in range(2))
    assert seeded[:2] == again[:2]
    assert seeded[0]


def test_without_privacy_draws_follow_from_the_seed() -> None:
    one, other = (turns({}, BATCHES) for _ in range(2))
    assert one[:2] == other[:2]
    assert len(set(one[2])) == 1  # one model for all


def test_private_turns_train_models_of_their_own() -> None:
    made, task, weights = host(RECORD, POISSON)
    first = made._trainer.model
    made.train(task, weights, [ClientTask(0, "c0")])
    assert made._trainer.model is not first
    made, task, weights = host(RECORD, POISSON, "softmax")
    first = made._trainer.model
    made.train(task, weights, [ClientTask(0, "c0")])
    assert made._trainer.model is first  # torch's own layers keep nothing, and a copy would cost time


def test_a_secret_state_is_the_whole_generators() -> None:
    """All 19,968 bits: of a seed torch's CPU generator keeps 32, which can be tried one by one."""
    draws = []
    for first, last in ((1, 1), (2, 1), (1, 2)):
        secret = bytes([first]) * 8 + bytes(4 * 624 - 16) + bytes([last]) * 8 + bytes(8)
        assert len(secret) == SECRET
        with torch.random.fork_rng(devices=[]):
            secretly_seed_torch(secret, CPU)
            draws.append(torch.rand(2000, dtype=torch.float64))
            secretly_seed_torch(secret, CPU)
            assert torch.equal(torch.rand(2000, dtype=torch.float64), draws[-1])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with torch.random.fork_rng(devices=[]):
        secretly_seed_torch(random.Random(0).randbytes(SECRET), CPU)
        assert abs(torch.rand(100_000).mean().item() - 0.5) < 0.005  # five standard deviations


# -- what is kept ------------------------------------------------------------------------------------

TOP: dict[str, Any] = {"most": 0.0, "seen": []}


class Keeps(nn.Module):
    """Calls ``keep`` with itself and the batch, before its layer."""

    count = 0

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.layer, self.keep = nn.Linear(4, 3), keep
        self.most, self.scale, self.log, self.window = 0.0, None, [], deque(maxlen=2)
        self.array, self.inner, self.draws = np.zeros(2), nn.ModuleDict({"part": nn.Identity()}), torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        self.keep(self, x)
        return self.layer(x)


def at_the_top(_self: Keeps, x: Tensor) -> None:
    TOP["most"] = max(TOP["most"], float(x.nan_to_num().max()))


def on_the_class(_self: Keeps, x: Tensor) -> None:
    Keeps.count += len(x)


def closing_over() -> Any:
    total = torch.zeros(())

    def keep(_self: Keeps, x: Tensor) -> None:
        total.add_(x.nan_to_num().sum())

    return keep


KEEPING = {
    "number": lambda m, x: setattr(m, "most", max(m.most, float(x.nan_to_num().abs().max()))),
    "lazy": lambda m, x: setattr(m, "scale", x.std(0) if m.scale is None else m.scale),
    "list": lambda m, x: m.log.append(len(x)),
    "deque": lambda m, x: m.window.append(x[0, 0].item()),
    "array": lambda m, x: m.array.__setitem__(0, x[0, 0].item()),
    "nested": lambda m, x: setattr(m.inner["part"], "last", x.detach()),
    "generator": lambda m, x: torch.rand(1, generator=m.draws),
    "buffer": lambda m, x: m.register_buffer("mean", x.nan_to_num().mean(0)),
    "flag": lambda m, x: m.layer.bias.requires_grad_(False),
    "on a parameter": lambda m, x: setattr(m.layer.weight, "scale", float(x.nan_to_num().abs().max())),
    "parameter": lambda m, x: m.layer.bias.data.add_(x.nan_to_num().mean()),
    "new": lambda m, x: setattr(m, "unheard_of", x),
    "top": at_the_top,
    "class": on_the_class,
    "closure": closing_over(),
}


@pytest.mark.parametrize("how", KEEPING)
def test_what_a_model_keeps_between_calls_is_found(how: str) -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    path = kept(Keeps(KEEPING[how]), cross_entropy, [(x, y), (x[:2], y[:2])])
    assert path is not None, how
    assert path.startswith("model.") == (how not in ("top", "class", "closure")), path


def test_a_loss_that_keeps_something_is_found_and_what_keeps_nothing_is_not() -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    seen: list[float] = []

    def remembering(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = cross_entropy(outputs, targets)
        seen.append(float(losses.detach().mean()))
        return losses

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + outputs.detach().mean()
            return cross_entropy(outputs, targets) / (1 + self.mean.abs())

    for loss in (remembering, Remembering()):
        path = kept(nn.Linear(4, 3), Loss(loss, "mine"), [(x, y)], own=False)
        assert path is not None
        assert not path.startswith("model.")
    for net in (Keeps(lambda m, x: None), nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)), nn.LSTM(4, 3)):
        run = (lambda out, y: out[0].sum(1)) if isinstance(net, nn.LSTM) else cross_entropy
        assert kept(net, run, [(x, y), (x[:2], y[:2])]) is None


@pytest.mark.parametrize("how", ["number", "lazy", "top", "nested", "flag"])
def test_it_is_refused_where_records_are_protected(how: str) -> None:
    components.provide({"python:provided:keeps": lambda input_shape, outputs: Keeps(KEEPING[how])})
    made, _, _ = host(RECORD, POISSON, "python:provided:keeps")
    with pytest.raises(PrivacyRefusal, match="keeps something between calls") as caught:
        made.preflight()
    assert caught.value.code == "privacy.preflight.kept"


@pytest.mark.parametrize(("how", "refused"), [("number", False), ("lazy", False), ("top", True), ("class", True)])
def test_where_clients_are_protected_only_what_outlives_a_model_is_refused(how: str, refused: bool) -> None:
    components.provide({"python:provided:keeps": lambda input_shape, outputs: Keeps(KEEPING[how])})
    made, task, weights = host(CLIENT, BATCHES, "python:provided:keeps")
    if refused:
        with pytest.raises(PrivacyRefusal, match="keeps something between calls"):
            made.preflight()
        return
    assert made.preflight() == 0.0
    made.train(task, weights, [ClientTask(0, "c0")])
    last = made._trainer.model
    made.train(task, weights, [ClientTask(1, "c1")])
    assert made._trainer.model is not last


def test_fresh_models_are_as_the_first_was() -> None:
    net = Keeps(KEEPING["number"])
    fresh = fresh_models(net, lambda: net)
    assert fresh is not None
    net(torch.full((2, 4), 100.0))
    assert net.most == 100.0
    assert fresh().most == 0.0  # type: ignore[comparison-overlap]
    fresh()(torch.full((2, 4), 50.0))
    assert fresh().most == 0.0  # type: ignore[comparison-overlap]
    uncopyable = Keeps(KEEPING["number"])
    uncopyable.scale = torch.ones(2, requires_grad=True) * 2  # type: ignore[assignment]
    built = Keeps(KEEPING["number"])
    assert fresh_models(uncopyable, lambda: built)() is built  # type: ignore[misc]
    parts = [ModelChoice(kind="mlp"), ModelChoice(kind="resnet18_gn"), ModelChoice(kind="lstm", tokens=9)]
    for part, shape in zip(parts, ((4,), (3, 16, 16), (8,)), strict=True):
        assert keeps_nothing(build_model(part, shape, 3, 0, torch.int64 if part.kind == "lstm" else torch.float32)), part.kind
