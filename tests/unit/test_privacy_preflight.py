"""The sensitivity test finds whatever lets one record move a step by more than the clip norm."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from fedray.choices import ModelChoice
from fedray.components import LOSSES
from fedray.config import Training
from fedray.errors import ClaimVoid, ConfigError, PrivacyRefusal
from fedray.models.build import build_model
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import LocalJob, LocalResult
from fedray.training.losses import cross_entropy, find_loss
from fedray.training.preflight import CODE, TOLERANCE, sensitivity_check
from fedray.training.probe import StepProbe
from fedray.training.recorddraws import patterns_of

TRAINING = Training(lr=0.1, sampling_rate=0.25, steps=5, expected_batch=36.0, momentum=0.9, weight_decay=0.1)
BOTH = pytest.mark.parametrize("engine", [book, hooks, ghost])


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def measure(engine: Any, make: Callable[[], nn.Module], loss: Any = cross_entropy, clip: float = 1.0, **more: Any) -> float:
    return sensitivity_check(engine, make, loss, (6,), 3, TRAINING, clip, **more)


@BOTH
@pytest.mark.parametrize("clip", [1e-2, 1.0, 50.0])
def test_a_sound_model_reaches_the_clip_norm_and_not_more(engine: Any, clip: float) -> None:
    assert 0.99 < measure(engine, linear, clip=clip) <= 1 + TOLERANCE


@BOTH
@pytest.mark.parametrize(("kind", "shape"), [("softmax", (6,)), ("mlp", (6,)), ("lenet", (1, 12, 12))])
def test_built_in_models_pass(engine: Any, kind: str, shape: tuple[int, ...]) -> None:
    assert (
        sensitivity_check(engine, lambda: build_model(ModelChoice(kind=kind), shape, 3, 0), cross_entropy, shape, 3, TRAINING, 1.0)
        <= 1 + TOLERANCE
    )


@pytest.mark.parametrize("name", sorted(name for name in LOSSES.parts() if not find_loss(name).couples))
def test_built_in_losses_pass(name: str) -> None:
    loss = find_loss(name)
    outputs = loss.outputs or 3
    shape = (outputs,) * (len(loss.targets) - 1)
    along = "positions" in loss.targets

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 9), nn.Unflatten(1, (3, 3))) if along else nn.Linear(6, outputs)

    classes = 3 if along else loss.classes
    found = sensitivity_check(hooks, make, loss, (6,), outputs, TRAINING, 1.0, classes=classes, target_shape=shape)
    assert found <= 1 + TOLERANCE


@BOTH
def test_dropout_passes_and_tokens_can_be_asked_for(engine: Any) -> None:
    assert measure(engine, lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))) <= 1 + TOLERANCE

    def tokens() -> nn.Module:
        return nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(24, 3))

    assert measure(engine, tokens, vocabulary=11) <= 1 + TOLERANCE
    with pytest.raises(ConfigError, match="cannot be run on random records"):
        measure(engine, tokens)


class Whitening(nn.Module):
    """Batch statistics without weights, buffers or a telling name."""

    def forward(self, x: Tensor) -> Tensor:
        finite = torch.nan_to_num(x)
        return (x - finite.mean(0)) / (finite.var(0, unbiased=False).sqrt() + 0.1)


def whitened() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Whitening(), nn.Linear(8, 3))


def weighted_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 5.0, 0.2])[targets]
    return len(targets) * weights / weights.sum() * cross_entropy(outputs, targets)


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets) + (torch.nan_to_num(outputs) @ torch.nan_to_num(outputs).detach().T).mean(1)


@BOTH
@pytest.mark.parametrize(
    ("make", "loss"), [(whitened, cross_entropy), (linear, weighted_mean), (linear, contrastive)], ids=["statistics", "weights", "contrast"]
)
@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e3])
def test_coupled_records_are_found(engine: Any, make: Callable[[], nn.Module], loss: Any, clip: float) -> None:
    with pytest.raises(PrivacyRefusal, match="something couples records") as caught:
        measure(engine, make, loss, clip)
    assert caught.value.code == CODE


def coupled_in_large_batches(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(outputs, targets)
    return losses * losses.detach().mean() if len(targets) > 25 else losses


def test_a_loss_that_couples_records_in_other_batches_than_the_tests_is_found() -> None:
    with pytest.raises(PrivacyRefusal, match="something couples records"):
        measure(book, linear, coupled_in_large_batches)


@BOTH
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8).requires_grad_(False)], ids=["affine", "frozen"])
def test_batch_normalisation_is_refused_in_every_form(engine: Any, layer: nn.Module) -> None:
    with pytest.raises(PrivacyRefusal, match="GroupNorm"):
        measure(engine, lambda: nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)))


def test_batch_normalisation_is_found_by_measurement_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.training.dpsgd.check_model", lambda model: None)
    for layer in (nn.BatchNorm1d(8, affine=False, track_running_stats=False), nn.BatchNorm1d(8).requires_grad_(False)):
        with pytest.raises(PrivacyRefusal, match=r"privacy\.preflight\.(sensitivity|kept)"):
            measure(hooks, lambda layer=layer: nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)))


class Attention(nn.Module):
    """The gradient of its keys' bias is zero but for rounding, since softmax forgets what all keys have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(len(x), 3, 2)
        return self.head(nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h)).mean(1))


@BOTH
def test_gradients_that_are_zero_but_for_rounding_are_no_difference(engine: Any) -> None:
    assert 0.99 < measure(engine, Attention) <= 1 + TOLERANCE


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.RNN(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.reshape(len(x), 3, 2))[0][:, -1])


def test_a_layer_that_the_engine_does_not_know_is_no_fault_of_the_model() -> None:
    with pytest.raises(ConfigError, match=r"hooks has no gradient for each record .*opacus\.layers"):
        measure(hooks, Recurrent)
    with pytest.raises(PrivacyRefusal, match=r"use opacus\.layers\.DPGRU"):
        measure(hooks, lambda: nn.GRU(6, 3))


class Shared(nn.Module):
    """Ghost clipping sees the layer, but not the second use of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.linear(self.first(x), self.first.weight * 3))


def test_a_use_of_a_weight_that_ghost_does_not_see_is_found() -> None:
    with pytest.raises(ConfigError, match="a parameter is used outside its own layer"):
        measure(ghost, Shared)


def test_an_engine_that_forgets_to_clip_to_charge_or_to_step_is_found() -> None:
    def unclipped(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        cross_entropy(model(torch.nan_to_num(x)), y).sum().backward()
        assert job.adjust is not None
        job.adjust(model)
        model.zero_grad()
        return LocalResult(1, len(x), None, [(0.0, 1.0, 1)])

    with pytest.raises(PrivacyRefusal, match="times the clip norm"):
        measure(unclipped, linear)

    def uncharged(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        result = hooks(model, x, y, job)
        return LocalResult(result.steps, result.examples, None, [])

    with pytest.raises(ClaimVoid, match="where one noised step was asked for"):
        measure(uncharged, linear)


class Drawing(nn.Module):
    """Draws in training, in one of several ways."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw, self.layer, self.head = draw, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.draw(self.layer(x)))


def time_major(x: Tensor) -> Tensor:
    return nn.functional.dropout(torch.stack([x, x]), 0.5).sum(0)


@BOTH
@pytest.mark.parametrize(
    "draw",
    [
        lambda h: h + torch.randn_like(h),
        lambda h: h * (torch.rand(len(h), 1) < 0.7),
        lambda h: nn.functional.rrelu(h, training=True),
        lambda h: h * torch.empty(8).bernoulli_(0.5),  # one mask for all records
        lambda h: nn.functional.dropout1d(h[:, None], 0.3)[:, 0],
        time_major,
        lambda h: torch.utils.checkpoint.checkpoint(nn.functional.dropout, h, 0.5, use_reentrant=False),
    ],
    ids=["noise", "depth", "rrelu", "shared", "channels", "time-major", "checkpoint"],
)
def test_what_torch_draws_is_measured_with_each_records_draws_fixed(engine: Any, draw: Callable[[Tensor], Tensor]) -> None:
    assert 0.99 < measure(engine, lambda: Drawing(draw)) <= 1 + TOLERANCE


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda h: h + torch.from_numpy(np.random.normal(size=h.shape)).to(h.dtype), "other means than torch's"),
        (lambda h: h * random.random(), "other means than torch's"),
        (lambda h: torch.manual_seed(0) and nn.functional.dropout(h, 0.5), "can be replayed"),
        (lambda h: h * torch.rand(h.shape, generator=torch.Generator()).to(h.dtype), "can be replayed"),
        (lambda h: h + h[torch.randperm(len(h))], "times the clip norm"),  # mixes records
        (lambda h: h * torch.from_numpy(np.random.default_rng(0).normal(size=h.shape)).to(h.dtype), "times the clip norm"),  # by position
    ],
    ids=["numpy", "python", "seeds", "generator", "mixes", "position"],
)
def test_other_randomness_is_refused(draw: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(PrivacyRefusal, match=words):
        measure(book, lambda: Drawing(draw))


@BOTH
def test_a_record_that_is_not_finite_or_left_out_changes_nobody_elses_masks(engine: Any) -> None:
    """With each record's masks fixed, the sum with a record of NaN is that without it, and that of the others one by one."""
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn(9, 6, generator=draws), torch.arange(9) % 3
    x[0, 2], x[4] = float("nan"), float("inf")
    probe = StepProbe(
        engine, net, cross_entropy, TRAINING.model_copy(update={"sampling_rate": 1.0, "steps": 1, "expected_batch": 1.0}), x, y, "flat"
    )
    probe.patterns = patterns_of(lambda n: probe.draws(n)[0], 4)
    everyone = torch.arange(9)
    good = everyone[[1, 2, 3, 5, 6, 7, 8]]
    whole = probe.sum(everyone, 1.0)
    assert float(whole.norm()) > 0.1
    assert torch.allclose(whole, probe.sum(good, 1.0), atol=1e-5)
    assert torch.allclose(whole, torch.stack([probe.sum(good[i : i + 1], 1.0) for i in range(7)]).sum(0), atol=1e-5)
    others = [probe.sum(everyone[everyone != i], 1.0) for i in range(9)]
    assert all(float((whole - other).norm()) <= 1 + TOLERANCE for other in others)
    assert float((probe.sum(everyone, 1.0, seed=1) - whole).norm()) > 0.1  # there are masks


def test_sums_that_are_all_zero_are_no_test() -> None:
    for engine in (book, hooks, ghost):
        with pytest.raises(PrivacyRefusal, match="cannot be measured"):
            measure(engine, lambda: Drawing(lambda h: h * float("nan")))


def test_a_hook_that_changes_what_the_engine_sees_is_refused() -> None:
    def doubled() -> nn.Module:
        net = nn.Linear(6, 3)
        net.register_forward_hook(lambda _m, _x, out: out * 2)
        return net

    with pytest.raises(ConfigError, match="a forward hook on Linear"):
        measure(hooks, doubled)


def test_an_engine_whose_gradients_are_not_autograds_is_found() -> None:
    def forgetful(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        def adjust(net: nn.Module) -> None:
            first = next(net.parameters())
            assert first.grad is not None
            assert job.adjust is not None
            first.grad.zero_()
            job.adjust(net)

        return book(model, x, y, replace(job, adjust=adjust))

    with pytest.raises(PrivacyRefusal, match=r"parameter '0\.weight' is not that of the model") as caught:
        measure(forgetful, linear)
    assert caught.value.code == "privacy.preflight.gradients"


def test_the_callers_random_state_and_threads_stay() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    measure(hooks, _fixed)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def _fixed() -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, 6, 3)
    for p in layer.parameters():
        nn.init.constant_(p, 0.1)
    return layer
