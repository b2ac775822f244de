"""Per-FedAvg: a step written out with the Hessian itself, the model that clients measure, and what it comes to."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rehearsed import Rehearsed, config_of, few_shards, label_skewed, with_client_tests
from torch import Tensor, nn

from fedray.algorithms.algorithm import Algorithm
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.parameters import Layout, get_vector, set_vector
from fedray.planning.combinations import check_only
from fedray.rng import Keyed
from fedray.training.losses import find_loss
from fedray.training.meangradient import mean_gradient
from fedray.training.plain import batches
from fedray.traits import Traits

FEDERATION, _ = label_skewed()


def of_client(k: int) -> tuple[Tensor, Tensor]:
    rows = slice(*FEDERATION.offsets[k : k + 2])
    return torch.from_numpy(FEDERATION.train.x[rows]).double(), torch.from_numpy(FEDERATION.train.y[rows])


def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of softmax regression; ``w`` has the weight and then the bias, float64."""
    return nn.functional.cross_entropy(x @ w[:640].view(10, 64).T + w[640:], y)


def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    w = w.detach().requires_grad_()
    return torch.autograd.grad(loss(w, x, y), w)[0]


@pytest.mark.parametrize(("variant", "tolerance"), [("first_order", 1e-4), ("hessian_free", 2e-4)])
@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=["sgd", "momentum"])
def test_a_turn_is_algorithm_1(variant: str, tolerance: float, optimizer: dict[str, Any]) -> None:
    """Inner gradient, outer gradient and Hessian over batches of their own; the latter by automatic differentiation, in float64."""
    alpha, lr = 0.5, 0.2
    part = {"kind": "perfedavg", "alpha": alpha, "variant": variant, **({"delta": 0.05} if variant == "hessian_free" else {})}
    config = config_of(part, training={"lr": lr, "batch_size": 20, "steps": 4, **optimizer})
    run, k = Rehearsed(config, FEDERATION), 4
    w, (x, y) = torch.from_numpy(run.globals.copy()).double().requires_grad_(), of_client(k)
    moved = torch.optim.SGD([w], lr=lr, **optimizer)
    inner, outer, third = (batches(len(y), config.training, Keyed(config.seed, name, 0)(k)) for name in ("inner", "batches", "hessian"))
    shift = torch.zeros_like(w)
    for a, b, c in zip(inner, outer, third, strict=True):
        at = w.detach().clone()
        g = gradient(at - alpha * gradient(at, x[a], y[a]), x[b], y[b])
        if variant == "hessian_free":
            product = torch.autograd.functional.hvp(lambda v, c=c: loss(v, x[c], y[c]), at, g)[1]
            g, shift = g - alpha * product, shift + alpha * product
        w.grad = g
        moved.step()
    run.train([[k]])
    np.testing.assert_allclose(run.globals, w.detach().numpy(), rtol=0, atol=tolerance)
    assert (
        variant == "first_order" or lr * float(shift.detach().abs().max()) > 10 * tolerance
    )  # the Hessian's part is more than the difference allowed


@pytest.mark.parametrize("adaptations", [1, 3])
def test_clients_measure_the_global_model_after_full_gradient_steps(adaptations: int) -> None:
    part = {"kind": "perfedavg", "alpha": 0.3, "adaptations": adaptations}
    run = Rehearsed(config_of(part, evaluation={"batch_size": 7}), FEDERATION)
    run.train([[0, 5]])
    for k, measured in enumerate(run.measured()):
        w = torch.from_numpy(run.globals.copy()).double()
        for _ in range(adaptations):
            w = w - 0.3 * gradient(w, *of_client(k))
        np.testing.assert_allclose(measured, w.numpy(), rtol=0, atol=1e-5)


def test_a_full_gradient_moves_and_draws_nothing() -> None:
    """Neither running statistics, nor dropout, nor the mode; and it is zero where there is nothing to learn from."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    layout, cross_entropy = Layout.of(model), find_loss("cross_entropy")
    before, state = get_vector(model, layout), torch.get_rng_state()
    x, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3
    whole, parts = (mean_gradient(model, layout, x, y, cross_entropy, size) for size in (100, 2))
    np.testing.assert_allclose(whole, parts, rtol=0, atol=1e-6)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert get_vector(model, layout).tobytes() == before.tobytes() and torch.equal(torch.get_rng_state(), state)
    assert not whole[layout.mask("buffer")].any() and np.linalg.norm(whole) > 0.1
    assert not mean_gradient(model, layout, x[:0], y[:0], cross_entropy, 10).any()
    model.eval()
    set_vector(model, layout, before)
    nn.functional.cross_entropy(model(x), y).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    np.testing.assert_allclose(whole[layout.mask("shared")], expected.numpy(), rtol=0, atol=1e-6)


def partial_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """One number for a batch."""
    return (outputs.square().sum() / (1 + targets.sum())).reshape(())


partial_likelihood.couples = True  # type: ignore[attr-defined]


def test_a_loss_of_whole_batches_is_taken_over_all_records() -> None:
    model = nn.Linear(4, 1)
    x, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9)
    coupled = find_loss(f"python:{__name__}:partial_likelihood")
    found = mean_gradient(model, Layout.of(model), x, y, coupled, 2)
    partial_likelihood(model(x), y).backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    np.testing.assert_allclose(found[:4], model.weight.grad[0].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 0}, "alpha: 0.0 is not above 0"),
        ({"delta": 0, "variant": "hessian_free"}, "delta: 0.0 is not above 0"),
        ({"delta": 0.01}, "delta: has no effect with algorithm.variant=first_order"),
        ({"adaptations": 0}, "adaptations: 0 is not 1 or more"),
        ({"variant": "second_order"}, "algorithm.variant"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Rehearsed(config_of({"kind": "perfedavg", **arguments}), FEDERATION)


class Adapted(Algorithm):
    """Only what it measures takes gradients."""

    traits: ClassVar[Traits] = Traits(adapted=True)


def test_models_that_are_made_of_unnoised_gradients_are_refused_where_records_are_protected() -> None:
    training = {"lr": 0.1, "sampling_rate": 0.1, "expected_batch": 30, "steps": 1}
    privacy = {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5}
    with pytest.raises(PrivacyRefusal, match="measure are made by gradients over their training records without noise") as caught:
        check_only(config_of({"kind": f"python:{__name__}:Adapted"}, training=training, privacy=privacy))
    assert caught.value.code == "privacy.incompatible.record.adapted"


def test_a_model_that_adapts_fits_clients_with_few_labels() -> None:
    """Measured: FedAvg 0.458, Per-FedAvg 0.876, and 0.879 with the Hessian."""
    federation = with_client_tests(few_shards()[0])
    found = []
    for algorithm in (
        {"kind": "fedavg"},
        {"kind": "perfedavg", "alpha": 0.5},
        {"kind": "perfedavg", "alpha": 0.5, "variant": "hessian_free"},
    ):
        run = Rehearsed(config_of(algorithm, training={"lr": 0.1, "batch_size": 10, "epochs": 1}), federation)
        for _ in range(3):
            run.train([range(10)])
        found.append(run.client_accuracy())
    assert min(found[1:]) > found[0] + 0.25
