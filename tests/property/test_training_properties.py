"""Properties of local training that must hold for any data and setting."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from everyone import Everyone
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import apart, gamma, steps_apart, terms_of
from torch import nn
from torch.nn import functional

from fedray import components, rng
from fedray.algorithms.algorithm import Mean, stepped
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.server import ServerSGD
from fedray.algorithms.turn import Moved, Turn
from fedray.choices import ModelChoice
from fedray.config import Training
from fedray.models.build import build_model
from fedray.parameters import Layout, get_vector
from fedray.training.engine import Clipping, DpStep, Engine, LocalJob, LossFn
from fedray.training.losses import LOSSES, find_loss
from fedray.training.plain import plain

FEW = settings(max_examples=25)


pytestmark = pytest.mark.usefixtures("one_thread")


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = np.random.default_rng(seed)
    return torch.from_numpy(draws.standard_normal((n, 5), dtype=np.float32)), torch.from_numpy(draws.integers(0, 3, n))


def job(training: Training, seed: int) -> LocalJob:
    return LocalJob(training, training.lr, find_loss(training.loss), rng.generator(seed, "batches", 0))


@FEW
@given(n=st.integers(1, 40), seed=st.integers(0, 1000), lr=st.floats(0.01, 1.0), rounds=st.integers(1, 3))
def test_fedavg_with_one_client_and_one_full_step_is_central_sgd(n: int, seed: int, lr: float, rounds: int) -> None:
    x, y = data(n, seed)
    model, central, start = (build_model(ModelChoice(kind="mlp", hidden=[4], activation="tanh"), (5,), 3, seed) for _ in range(3))
    layout, algorithm, server = Layout.of(model), FedAvg(), ServerSGD()
    weights, state = get_vector(model, layout), server.init(layout.size)
    optimizer = torch.optim.SGD(central.parameters(), lr=lr)
    for number in range(rounds):
        section = Training(lr=lr, batch_size=n, epochs=1)
        train = lambda stream, hooks: plain(model, x, y, job(section, number))  # noqa: B023, E731
        update = algorithm.local(Turn(number, lr, section, train, 0, n, {"model": weights}, model, layout)).values["model"]
        assert isinstance(update, Moved)
        mean = Mean({"model": update.vector()}, 1, 1.0)
        weights, state = stepped(algorithm, server, layout, algorithm.exchange(layout), weights, state, mean)
        optimizer.zero_grad()
        functional.cross_entropy(central(x), y).backward()
        optimizer.step()
    trained = get_vector(central, layout)  # the server subtracts the weights and adds them again: two more roundings a round
    assert apart(weights, trained) <= steps_apart(start, central, terms_of(start, n), steps=3 * rounds)


@FEW
@given(n=st.integers(1, 30), size=st.integers(1, 12), epochs=st.integers(1, 3), physical=st.integers(1, 12), seed=st.integers(0, 1000))
def test_every_epoch_sees_every_record_once(n: int, size: int, epochs: int, physical: int, seed: int) -> None:
    x, y = torch.arange(n, dtype=torch.float32)[:, None], torch.zeros(n)
    seen: list[float] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs[:, 0] * 0

    model = torch.nn.Linear(1, 1)
    model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0][:, 0].tolist()))
    section = Training(batch_size=size, epochs=epochs, physical_batch=physical)
    result = plain(model, x, y, LocalJob(section, 0.1, loss, rng.generator(seed, "batches")))
    assert result.steps == epochs * -(-n // size)
    assert result.examples == len(seen) == epochs * n
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@FEW
@given(n=st.integers(0, 30), rate=st.floats(0.01, 1.0), steps=st.integers(1, 5), seed=st.integers(0, 1000))
def test_poisson_steps_sum_over_who_joined_and_divide_by_the_constant(n: int, rate: float, steps: int, seed: int) -> None:
    """With loss w * x and plain SGD the weight moves by lr * (sum of x of those who joined) / expected_batch."""
    x, y = torch.ones(n, 1), torch.zeros(n)
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    section = Training(lr=0.5, sampling_rate=rate, expected_batch=3.0, steps=steps)
    result = plain(model, x, y, LocalJob(section, 0.5, lambda outputs, _: outputs[:, 0], rng.generator(seed, "batches")))
    draws = rng.generator(seed, "batches")
    joined = sum(int((draws.random(n) < rate).sum()) for _ in range(steps))
    assert (result.steps, result.examples) == (steps, joined)
    np.testing.assert_allclose(model.weight.item(), -0.5 * joined / 3.0, rtol=gamma(n + 4 * steps), atol=0)


@FEW
@given(seed=st.integers(0, 1000), batch=st.integers(1, 20), momentum=st.sampled_from([0.0, 0.9]))
def test_the_same_job_gives_the_same_bytes(seed: int, batch: int, momentum: float) -> None:
    x, y = data(17, seed)
    vectors = []
    for noise in (0, 1):
        torch.manual_seed(noise)  # global state that must not matter
        model = build_model(ModelChoice(kind="mlp"), (5,), 3, seed)
        plain(model, x, y, job(Training(lr=0.2, momentum=momentum, batch_size=batch, steps=5), seed))
        vectors.append(get_vector(model, Layout.of(model)))
    assert vectors[0].tobytes() == vectors[1].tobytes()


MODELS_SHAPES = {
    "softmax": (6,),
    "logistic": (6,),
    "mlp": (6,),
    "2nn": (6,),
    "lenet": (1, 12, 12),
    "opacus_cnn": (1, 14, 14),
    "fedavg_cnn": (1, 8, 8),
    "resnet18_gn": (3, 16, 16),
}
ENGINES: dict[str, list[Clipping]] = {"book": ["flat", "per_layer"], "hooks": ["flat", "per_layer"], "ghost": ["flat"]}


def summed(engine: Engine, model: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: LossFn, dp: DpStep) -> torch.Tensor:
    """The clipped sum over all given records, flat float64."""
    taken: list[torch.Tensor] = []

    def take(model: nn.Module) -> None:
        taken.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]))

    section = Training(lr=1.0, sampling_rate=1.0, steps=1, expected_batch=1.0)
    engine(model, x, y, LocalJob(section, 0.0, loss, rng.generator(0, "batches"), Everyone(), dp, take))
    return taken[0]


def adversarial(shape: tuple[int, ...], scales: list[float], seed: int) -> torch.Tensor:
    """Random records: of the given scales, then one that is constant, one of zeros and one with a NaN."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(scales) + 3, *shape)))
    x[: len(scales)] *= torch.tensor(scales, dtype=torch.float64).view(-1, *[1] * len(shape))
    x[-3], x[-2] = 1e3, 0.0
    x[-1].view(-1)[0] = float("nan")
    return x


def assert_no_record_moves_more_than_the_clip_norm(
    kind: str, name: str, scales: list[float], seed: int, clip: float, losses: Iterable[str] = tuple(LOSSES)
) -> None:
    """With every record in the batch and no noise, |S(D) - S(D without x)| <= C (1 + 1e-5), for every one of the losses.

    The difference of two sums is taken in float64, where the other records' rounding does not blur it; in float32 each
    record alone must keep to the clip norm.
    """
    shape = MODELS_SHAPES[kind]
    x = adversarial(shape, scales, seed)
    for loss_name in losses:
        loss = LOSSES[loss_name]
        outputs = getattr(loss, "outputs", 3)
        if kind == "logistic" and outputs != 1:
            continue
        y = torch.arange(len(x)) % (getattr(loss, "classes", None) or outputs + 1 - (outputs > 1))
        if loss_name in ("mse", "mae"):
            y = y.double() * 1e4  # far from any output
        exact = build_model(ModelChoice(kind=kind), shape, outputs, seed).double()
        rounded = build_model(ModelChoice(kind=kind), shape, outputs, seed)
        for clipping in ENGINES[name]:
            engine, dp = components.find(components.ENGINES, name), DpStep(0.0, clip, clipping)
            whole = summed(engine, exact, x, y, loss, dp)
            assert torch.isfinite(whole).all()
            for i in range(len(x)) if kind != "resnet18_gn" else (0, len(x) - 1):
                rest = torch.arange(len(x)) != i
                moved = float((whole - summed(engine, exact, x[rest], y[rest], loss, dp)).norm())
                alone = float(summed(engine, rounded, x[i : i + 1].float(), y[i : i + 1], loss, dp).norm())
                assert max(moved, alone) <= clip * (1 + 1e-5), (loss_name, clipping, i)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", [kind for kind in MODELS_SHAPES if kind != "resnet18_gn"])
@settings(max_examples=3)
@given(
    scales=st.lists(st.sampled_from([1e-4, 1.0, 1e2, 1e4, 1e6]), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    clip=st.sampled_from([1e-2, 1.0, 30.0]),
)
def test_no_record_moves_a_private_step_by_more_than_the_clip_norm(
    kind: str, name: str, scales: list[float], seed: int, clip: float
) -> None:
    assert_no_record_moves_more_than_the_clip_norm(kind, name, scales, seed, clip)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_no_record_moves_a_private_step_of_a_residual_network_by_more_than_the_clip_norm(name: str) -> None:
    assert_no_record_moves_more_than_the_clip_norm("resnet18_gn", name, [1.0, 1e4], 0, 0.5, ["cross_entropy", "mse"])
