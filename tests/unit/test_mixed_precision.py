"""``training.precision``: sixteen bits in the passes, and float32 in weights, gradients, losses and steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rehearsed import Rehearsed, config_of, label_skewed
from torch import Tensor, nn

from fedray.choices import ModelChoice
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.models.build import build_model
from fedray.parameters import Layout, get_vector
from fedray.planning.combinations import check_only
from fedray.training.choose import choose_engine
from fedray.training.engine import LocalJob, LossFn
from fedray.training.fast.mixed import LossScale, check_convolutions
from fedray.training.losses import cross_entropy
from fedray.training.plain import plain

pytestmark = pytest.mark.usefixtures("one_thread")

MLP = {"kind": "mlp", "hidden": [32]}
SIZES = {"lr": 0.1, "batch_size": 10, "epochs": 1}


def mlp() -> nn.Module:
    return build_model(ModelChoice.model_validate(MLP), (64,), 10, 0)


def digits(n: int = 80) -> tuple[Tensor, Tensor]:
    federation, _ = label_skewed()
    return torch.from_numpy(federation.train.x[:n]), torch.from_numpy(federation.train.y[:n])


def moved(precision: str, model: nn.Module | None = None, loss: LossFn = cross_entropy, **more: Any) -> np.ndarray:
    model = mlp() if model is None else model
    layout = Layout.of(model)
    before = get_vector(model, layout)
    x, y = digits()
    training = Training.model_validate({**SIZES, **more, "precision": precision})
    result = plain(model, x, y, LocalJob(training, training.lr, loss, np.random.default_rng(0)))
    assert result.steps == 8 and result.examples == 80 and result.loss is not None and np.isfinite(result.loss)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return get_vector(model, layout) - before


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
@pytest.mark.parametrize("more", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"optimizer": "adam", "lr": 0.01}, {"max_grad_norm": 0.1}])
def test_an_update_is_off_by_the_rounding_of_the_passes(precision: str, bits: int, more: dict[str, Any]) -> None:
    assert 2.0 ** -(bits + 8) < apart(moved(precision, **more), moved("fp32", **more)) < 2.0 ** -(bits - 6)


def test_losses_are_computed_in_float32() -> None:
    seen = set[torch.dtype]()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(outputs.dtype)
        return cross_entropy(outputs, targets)

    moved("bf16", loss=loss)
    assert seen == {torch.float32}


def test_gradients_too_small_for_float16_are_kept() -> None:
    """Without a factor most of these would be zero: the smallest number of float16 is 6e-8."""
    tiny = lambda outputs, targets: 1e-7 * cross_entropy(outputs, targets)  # noqa: E731
    assert apart(moved("fp16", loss=tiny, lr=1e4), moved("fp32", loss=tiny, lr=1e4)) < 0.3


def test_a_pass_that_overflows_is_made_again() -> None:
    """No step is lost by it, which a client of few steps would miss."""
    large = lambda outputs, targets: 300.0 * cross_entropy(outputs, targets)  # noqa: E731
    assert apart(moved("fp16", loss=large, lr=1e-4), moved("fp32", loss=large, lr=1e-4)) < 0.05


def test_the_factor_falls_at_once_and_rises_slowly() -> None:
    parameter, scale = nn.Parameter(torch.zeros(2)), LossScale("fp16")
    first = scale.factor
    parameter.grad = torch.tensor([1.0, torch.inf])
    assert not scale.unscaled([parameter]) and scale.factor == first / 2
    for _ in range(200):
        parameter.grad = torch.tensor([first / 2, 0.0])
        assert scale.unscaled([parameter])
        assert parameter.grad.tolist() == [1.0, 0.0]
    assert scale.factor == first
    parameter.grad = torch.tensor([1.0, torch.nan])
    while not scale.unscaled([parameter]):
        pass
    assert scale.factor == 1.0 and parameter.grad[1].isnan()


def test_float32_has_no_factor() -> None:
    parameter, scale = nn.Parameter(torch.zeros(1)), LossScale("bf16")
    parameter.grad = torch.tensor([torch.inf])
    assert scale.unscaled([parameter]) and scale.factor == 1.0


def test_digits_are_learned_as_in_float32() -> None:
    federation, test = label_skewed()
    found = {}
    for precision in ("fp32", "bf16"):
        config = config_of(
            {"kind": "fedavg"}, model=MLP, rounds=6, training={"lr": 0.2, "batch_size": 10, "epochs": 2, "precision": precision}
        )
        run = Rehearsed(config, federation)
        for _ in range(6):
            run.train([range(10)])
        assert run.host(0)._trainer.engine_name == ("lockstep" if precision == "fp32" else "plain")
        found[precision] = run.accuracy(test)
    assert found["fp32"] > 0.85
    assert abs(found["bf16"] - found["fp32"]) < 0.02


@pytest.mark.parametrize("algorithm", [{"kind": "scaffold"}, {"kind": "pfedme", "inner_lr": 0.01}], ids=str)
def test_algorithms_change_float32_gradients(algorithm: dict[str, Any]) -> None:
    federation, _ = label_skewed()
    runs = [
        Rehearsed(config_of(algorithm, model=MLP, training={**SIZES, "precision": precision}), federation) for precision in ("fp32", "bf16")
    ]
    first = runs[0].globals
    for run in runs:
        run.train([[0, 1, 2]])
    ours, theirs = (run.globals[: run.layout.size] - first[: run.layout.size] for run in reversed(runs))
    assert 0 < apart(ours, theirs) < 0.1


@pytest.mark.parametrize("engine", ["lockstep", "python:my_engines:own"])
def test_other_engines_are_refused(engine: str) -> None:
    training = Training.model_validate({**SIZES, "precision": "bf16"})
    with pytest.raises(ConfigError, match=r"precision"):
        choose_engine(engine, False, mlp(), training, untouched=True)


def test_float16_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^training\.precision: fp16 is for GPUs.*use bf16"):
        check_only(config_of({"kind": "fedavg"}, training={**SIZES, "precision": "fp16"}))
    check_only(config_of({"kind": "fedavg"}, training={**SIZES, "precision": "fp16"}, clients={"resources": {"gpu": 0.5}}))
    groups = [{"name": "g", "clients": 1, "training": {"precision": "fp16"}}]
    with pytest.raises(ConfigError, match=r"^clients\.groups\.0\.training\.precision: fp16 is for GPUs"):
        check_only(config_of({"kind": "fedavg"}, clients={"groups": groups}))


def test_convolutions_that_are_not_there_cannot_be_in_bfloat16() -> None:
    training = Training.model_validate({**SIZES, "precision": "bf16_convolutions"})
    with pytest.raises(ConfigError, match=r"training\.precision: the model has no convolutions.*use bf16"):
        check_convolutions(training, mlp())
    check_convolutions(training, build_model(ModelChoice(kind="lenet"), (1, 28, 28), 10, 0))
