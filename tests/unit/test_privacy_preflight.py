"""The sensitivity test finds whatever lets one record move a step by more than the clip norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedray.config import Part, Training
from fedray.errors import ClaimVoid, ConfigError, PrivacyRefusal
from fedray.models.build import build_model
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import LocalJob, LocalResult
from fedray.training.losses import LOSSES, cross_entropy
from fedray.training.preflight import CODE, TOLERANCE, sensitivity_check

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
        sensitivity_check(engine, lambda: build_model(Part(kind=kind), shape, 3, 0), cross_entropy, shape, 3, TRAINING, 1.0)
        <= 1 + TOLERANCE
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_built_in_losses_pass(name: str) -> None:
    loss = LOSSES[name]
    outputs = getattr(loss, "outputs", 3)
    make = lambda: nn.Linear(6, outputs)  # noqa: E731
    assert sensitivity_check(hooks, make, loss, (6,), outputs, TRAINING, 1.0, classes=getattr(loss, "classes", None)) <= 1 + TOLERANCE


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


@BOTH
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8).requires_grad_(False)], ids=["affine", "frozen"])
def test_batch_normalisation_is_refused_in_every_form(engine: Any, layer: nn.Module) -> None:
    with pytest.raises(PrivacyRefusal, match="GroupNorm"):
        measure(engine, lambda: nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)))


def test_batch_normalisation_is_found_by_measurement_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.training.dpsgd.check_model", lambda model: None)
    for layer in (nn.BatchNorm1d(8, affine=False, track_running_stats=False), nn.BatchNorm1d(8).requires_grad_(False)):
        with pytest.raises(PrivacyRefusal, match=CODE.replace(".", r"\.")):
            measure(hooks, lambda layer=layer: nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)))


class Shared(nn.Module):
    """Ghost clipping sees the layer, but not the second use of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.linear(self.first(x), self.first.weight * 3))


def test_a_use_of_a_weight_that_ghost_does_not_see_is_found() -> None:
    with pytest.raises(PrivacyRefusal, match="times the clip norm"):
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


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_other_randomness_than_dropout_is_refused() -> None:
    with pytest.raises(PrivacyRefusal, match="random numbers in training"):
        measure(hooks, lambda: nn.Sequential(nn.Linear(6, 8), Noisy(), nn.Linear(8, 3)))


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
