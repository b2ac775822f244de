"""Properties of local training that must hold for any data and setting."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fedray import rng
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.server import ServerSGD
from fedray.config import Part, Training
from fedray.models.build import build_model
from fedray.parameters import Layout, get_vector, set_vector
from fedray.training.engine import LocalJob
from fedray.training.losses import find_loss
from fedray.training.plain import plain

FEW = settings(max_examples=25, deadline=None)


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = np.random.default_rng(seed)
    return torch.from_numpy(draws.standard_normal((n, 5), dtype=np.float32)), torch.from_numpy(draws.integers(0, 3, n))


def job(training: Training, seed: int) -> LocalJob:
    return LocalJob(training, training.lr, find_loss(training.loss), rng.generator(seed, "batches", 0))


@FEW
@given(n=st.integers(1, 40), seed=st.integers(0, 1000), lr=st.floats(0.01, 1.0), rounds=st.integers(1, 3))
def test_fedavg_with_one_client_and_one_full_step_is_central_sgd(n: int, seed: int, lr: float, rounds: int) -> None:
    x, y = data(n, seed)
    model, central = (build_model(Part(kind="mlp", hidden=[4]), (5,), 3, seed) for _ in range(2))
    layout, algorithm, server = Layout.of(model), FedAvg(), ServerSGD()
    weights, state = get_vector(model, layout), server.init(layout.size)
    optimizer = torch.optim.SGD(central.parameters(), lr=lr)
    for number in range(rounds):
        set_vector(model, layout, weights)
        algorithm.local(plain, model, x, y, job(Training(lr=lr, batch_size=n, epochs=1), number))
        weights, state = server.step(weights, get_vector(model, layout) - weights, state)
        optimizer.zero_grad()
        functional.cross_entropy(central(x), y).backward()
        optimizer.step()
    np.testing.assert_allclose(weights, get_vector(central, layout), rtol=1e-4, atol=1e-5)


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
    np.testing.assert_allclose(model.weight.item(), -0.5 * joined / 3.0, rtol=1e-5, atol=1e-7)


@FEW
@given(seed=st.integers(0, 1000), batch=st.integers(1, 20), momentum=st.sampled_from([0.0, 0.9]))
def test_the_same_job_gives_the_same_bytes(seed: int, batch: int, momentum: float) -> None:
    x, y = data(17, seed)
    vectors = []
    for noise in (0, 1):
        torch.manual_seed(noise)  # global state that must not matter
        model = build_model(Part(kind="mlp"), (5,), 3, seed)
        plain(model, x, y, job(Training(lr=0.2, momentum=momentum, batch_size=batch, steps=5), seed))
        vectors.append(get_vector(model, Layout.of(model)))
    assert vectors[0].tobytes() == vectors[1].tobytes()
