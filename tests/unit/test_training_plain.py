"""The plain engine against loops written out by hand, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from elsewhere import DEVICE
from rounding import apart, gamma, steps_apart, terms_of
from torch import nn
from torch.nn import functional

from fedray import rng
from fedray.choices import ModelChoice
from fedray.config import Training
from fedray.errors import Stopped
from fedray.models.build import build_model
from fedray.training.engine import LocalJob
from fedray.training.losses import find_loss
from fedray.training.plain import plain

N = 23


pytestmark = pytest.mark.usefixtures("one_thread")


def data(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    draws = np.random.default_rng(1)
    x, y = draws.standard_normal((n, 6), dtype=np.float32), draws.integers(0, 4, n)
    return torch.from_numpy(x).to(DEVICE), torch.from_numpy(y).to(DEVICE)


def model(kind: str = "mlp", **arguments: object) -> nn.Module:
    return build_model(ModelChoice(kind=kind, **arguments), (6,), 4, seed=2).to(DEVICE)


def job(training: Training, **more: object) -> LocalJob:
    return LocalJob(training, training.lr, find_loss("cross_entropy"), rng.generator(9, "batches", 0, 1), **more)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def torch_optimizer(kind: str, net: nn.Module) -> torch.optim.Optimizer:
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.3),
        "momentum": lambda: torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda: torch.optim.Adam(net.parameters(), lr=0.3, betas=(0.8, 0.9), weight_decay=0.01),
        "adamw": lambda: torch.optim.AdamW(net.parameters(), lr=0.3, betas=(0.8, 0.9), weight_decay=0.01),
    }
    return makers[kind]()


SECTIONS: dict[str, dict[str, object]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "betas": [0.8, 0.9], "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "betas": [0.8, 0.9], "weight_decay": 0.01},
}


@pytest.mark.parametrize("kind", sorted(SECTIONS))
@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 7}, {"steps": 2}])
def test_shuffled_passes_equal_a_hand_written_loop_bit_for_bit(kind: str, length: dict[str, int]) -> None:
    x, y = data()
    ours, theirs = model(), model()
    result = plain(ours, x, y, job(Training(lr=0.3, batch_size=5, **length, **SECTIONS[kind])))

    draws, optimizer = rng.generator(9, "batches", 0, 1), torch_optimizer(kind, theirs)
    left = length.get("steps", 3 * 5)
    steps, losses = left, []
    while left:
        order = torch.from_numpy(draws.permutation(N))
        for start in range(0, N, 5):
            if not left:
                break
            batch = order[start : start + 5]
            optimizer.zero_grad()
            loss = functional.cross_entropy(theirs(x[batch]), y[batch], reduction="none")
            (loss.sum() * (1 / len(batch))).backward()
            optimizer.step()
            losses += loss.tolist()
            left -= 1
    assert same(ours, theirs)
    assert (result.steps, result.examples, result.history) == (steps, len(losses), None)
    assert result.loss == pytest.approx(np.mean(losses), rel=gamma(len(losses)))


def test_the_gradient_is_that_of_torchs_mean() -> None:
    x, y = data()
    ours, theirs = model(), model()
    plain(ours, x, y, job(Training(lr=0.3, batch_size=N, steps=1)))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.3)
    functional.cross_entropy(theirs(x), y).backward()
    optimizer.step()
    assert apart(ours, theirs) <= steps_apart(model(), theirs, terms_of(theirs, N), steps=1)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_poisson_steps_are_dp_sgd_without_clip_and_noise(kind: str) -> None:
    x, y = data()
    section = Training(lr=0.3, sampling_rate=0.1, expected_batch=2.3, steps=12, **SECTIONS[kind])
    ours, theirs = model(), model()
    result = plain(ours, x, y, job(section))

    draws, optimizer = rng.generator(9, "batches", 0, 1), torch_optimizer(kind, theirs)
    sizes = []
    for _ in range(12):
        batch = torch.from_numpy(np.flatnonzero(draws.random(N) < 0.1))
        for p in theirs.parameters():
            p.grad = torch.zeros_like(p)
        if len(batch):
            (functional.cross_entropy(theirs(x[batch]), y[batch], reduction="sum") * (1 / 2.3)).backward()
        optimizer.step()
        sizes.append(len(batch))
    assert 0 in sizes, "the draw should hold an empty step"
    assert same(ours, theirs)
    assert (result.steps, result.examples) == (12, sum(sizes))


def test_an_empty_step_still_decays_and_still_calls_adjust() -> None:
    x, y = data(1)
    calls: list[float] = []

    def adjust(net: nn.Module) -> None:
        calls.append(sum(float(p.grad.abs().sum()) for p in net.parameters()))

    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    section = Training(lr=0.5, weight_decay=0.1, sampling_rate=1e-9, expected_batch=1.0, steps=2)
    result = plain(net, x, y, job(section, adjust=adjust))
    assert calls == [0.0, 0.0]
    assert (result.steps, result.examples, result.loss) == (2, 0, None)
    for p, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * 0.95**2)


@pytest.mark.parametrize("section", [{"batch_size": 20, "epochs": 2}, {"sampling_rate": 0.9, "expected_batch": 20.0, "steps": 3}])
def test_large_steps_are_accumulated_over_physical_batches(section: dict[str, object]) -> None:
    x, y = data()
    whole, parts = model(), model()
    sizes: list[int] = []
    parts.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    one = plain(whole, x, y, job(Training(lr=0.3, **section)))
    two = plain(parts, x, y, job(Training(lr=0.3, physical_batch=3, **section)))
    assert max(sizes) == 3
    assert sum(sizes) == one.examples == two.examples
    assert one.steps == two.steps
    assert apart(whole, parts) <= steps_apart(model(), whole, terms_of(whole, N), one.steps)


def test_adjust_changes_the_gradient_before_the_step() -> None:
    x, y = data()
    net = model()
    before = [p.detach().clone() for p in net.parameters()]

    def ones(inner: nn.Module) -> None:
        for p in inner.parameters():
            p.grad = torch.ones_like(p)

    plain(net, x, y, job(Training(lr=0.25, batch_size=10, steps=2), adjust=ones))
    for p, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.5)


def test_the_learning_rate_is_the_jobs_not_the_sections() -> None:
    x, y = data()
    one, two = model(), model()
    plain(one, x, y, LocalJob(Training(lr=9.0, batch_size=5, epochs=1), 0.1, find_loss("cross_entropy"), rng.generator(9, "batches", 0, 1)))
    plain(two, x, y, job(Training(lr=0.1, batch_size=5, epochs=1)))
    assert same(one, two)


def test_training_stops_between_steps() -> None:
    x, y = data()
    asked: list[None] = []

    def after_two() -> bool:
        asked.append(None)
        return len(asked) > 2

    net, two = model(), model()
    with pytest.raises(Stopped):
        plain(net, x, y, job(Training(lr=0.3, batch_size=5, epochs=3), should_stop=after_two))
    plain(two, x, y, job(Training(lr=0.3, batch_size=5, steps=2)))
    assert same(net, two)


def test_where_records_lie_in_memory_changes_nothing() -> None:
    x, y = data()
    odd = torch.empty(N * 6 + 1, device=DEVICE)[1:].reshape(N, 6).copy_(x)
    one, two = model("2nn"), model("2nn")
    plain(one, x, y, job(Training(lr=0.3, batch_size=N, epochs=3)))
    plain(two, odd, y, job(Training(lr=0.3, batch_size=N, epochs=3)))
    assert same(one, two)


def test_dropout_follows_torchs_generator_and_nothing_else_does() -> None:
    x, y = data()
    section = Training(lr=0.3, batch_size=5, epochs=1)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        net = model(dropout=0.5)
        plain(net, x, y, job(section))
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    plain(model(), x, y, job(section))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_evaluation_mode_is_trained_and_frozen_layers_stay() -> None:
    x, y = data()
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).to(DEVICE)
    net[0].requires_grad_(False)
    net.eval()
    frozen = net[0].weight.clone()
    plain(net, x, y, job(Training(lr=0.3, batch_size=12, epochs=1)))
    assert net.training
    assert net[1].num_batches_tracked == 2
    assert torch.equal(net[0].weight, frozen)


@pytest.mark.parametrize("section", [{"batch_size": 5, "epochs": 2}, {"batch_size": 5, "steps": 2}])
def test_a_client_without_records_takes_no_steps(section: dict[str, int]) -> None:
    x, y = data()
    result = plain(model(), x[:0], y[:0], job(Training(**section)))
    assert (result.steps, result.examples, result.loss) == (0, 0, None)
