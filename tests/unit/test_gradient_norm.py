"""``training.max_grad_norm``: a step's gradient has at most that norm, in every engine that trains without privacy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedray.config import Config, Training
from fedray.configfile import build_config
from fedray.errors import PrivacyRefusal
from fedray.parameters import Layout, get_vector
from fedray.planning.combinations import check_only
from fedray.training import batched
from fedray.training.engine import LocalJob
from fedray.training.lockstep import Crowd, lockstep, train_crowd
from fedray.training.losses import find_loss
from fedray.training.plain import plain

ENGINES = {"plain": plain, "lockstep": lockstep}


def records(n: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    draws = np.random.default_rng(seed)
    return torch.from_numpy((scale * draws.standard_normal((n, 5))).astype(np.float32)), torch.from_numpy(draws.integers(0, 3, n))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def job(training: Training, seed: int = 1, **more: Any) -> LocalJob:
    return LocalJob(training, training.lr, find_loss("cross_entropy"), np.random.default_rng(seed), **more)


def moved(engine: str, training: Training, n: int = 30, scale: float = 1.0, seed: int = 0, **more: Any) -> np.ndarray:
    model = network(seed)
    layout = Layout.of(model)
    before = get_vector(model, layout)
    ENGINES[engine](model, *records(n, seed, scale), job(training, seed, **more))
    return get_vector(model, layout) - before


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25, deadline=None)
@given(largest=st.floats(1e-3, 10), scale=st.floats(0.1, 100), steps=st.integers(1, 4), seed=st.integers(0, 50))
def test_steps_are_no_longer_than_the_norm_allows(engine: str, largest: float, scale: float, steps: int, seed: int) -> None:
    training = Training(lr=0.5, batch_size=8, steps=steps, max_grad_norm=largest)
    length = float(np.linalg.norm(moved(engine, training, scale=scale, seed=seed).astype(np.float64)))
    assert length <= 0.5 * largest * steps * (1 + 1e-4) + 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_norm_that_no_gradient_reaches_changes_nothing(engine: str) -> None:
    for more in ({}, {"momentum": 0.9, "weight_decay": 0.01}):
        section = Training(lr=0.1, batch_size=8, epochs=2, **more)
        clipped = moved(engine, section.model_copy(update={"max_grad_norm": 1e6}))
        np.testing.assert_allclose(clipped, moved(engine, section), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("more", [{}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("largest", [0.01, 0.3, 2.0])
def test_lockstep_clips_as_plain_does(more: dict[str, Any], largest: float) -> None:
    training = Training(lr=0.3, batch_size=7, epochs=3, max_grad_norm=largest, **more)
    np.testing.assert_allclose(moved("lockstep", training, scale=5.0), moved("plain", training, scale=5.0), rtol=1e-4, atol=1e-6)


def test_a_frozen_layer_has_no_part_in_the_norm() -> None:
    training, found = Training(lr=0.3, batch_size=7, epochs=2, max_grad_norm=0.1), []
    for engine in ENGINES.values():
        model = network()
        model[0].weight.requires_grad_(False)  # type: ignore[index]
        engine(model, *records(30, scale=5.0), job(training))
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_clients_steps_do_not_depend_on_who_is_trained_beside_it() -> None:
    model = network()
    layout, (x, y) = Layout.of(model), records(60, scale=5.0)
    training = Training(lr=0.3, batch_size=7, epochs=2, max_grad_norm=0.2)
    starts, stops = [0, 10, 31, 32], [10, 31, 32, 60]

    def trained(clients: list[int]) -> np.ndarray:
        crowd = Crowd(x, y, [starts[k] for k in clients], [stops[k] for k in clients], lambda k: np.random.default_rng(clients[k]))
        return train_crowd(model, layout, get_vector(model, layout), crowd, job(training))[0]

    together = trained([0, 1, 2, 3])
    for k in range(4):
        np.testing.assert_array_equal(trained([k])[0], together[k])
    np.testing.assert_array_equal(trained([3, 1]), together[[3, 1]])


@given(n=st.integers(1, 9), size=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_a_clients_norm_has_the_same_bits_alone(n: int, size: int) -> None:
    values = torch.randn(n, 16, 16 * (1 + size // 32), generator=torch.Generator().manual_seed(size))
    together = batched.square(values)
    assert all(torch.equal(batched.square(values[k : k + 1].clone()), together[k : k + 1]) for k in range(n))
    torch.testing.assert_close(together.flatten(), values.square().sum((1, 2)), rtol=1e-5, atol=0.0)


def test_parts_of_a_batch_are_clipped_together() -> None:
    whole = Training(lr=0.3, batch_size=10, epochs=2, max_grad_norm=0.1)
    parts = whole.model_copy(update={"physical_batch": 3})
    np.testing.assert_allclose(moved("plain", parts, scale=5.0), moved("plain", whole, scale=5.0), rtol=1e-4, atol=1e-6)


def test_an_algorithms_own_correction_is_added_after_the_clip() -> None:
    def adjust(model: nn.Module) -> None:
        for p in model.parameters():
            p.grad = torch.ones_like(p)

    training = Training(lr=0.5, batch_size=30, steps=1, max_grad_norm=1e-3)
    np.testing.assert_allclose(moved("plain", training, adjust=adjust), -0.5, rtol=1e-5)


def config(**more: Any) -> Config:
    return build_config(
        {
            "name": "clipped",
            "rounds": 1,
            "data": {"source": "sklearn:digits", "classes": 10, "partition": {"kind": "iid", "clients": 4}},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "sampling_rate": 0.2, "steps": 2, "expected_batch": 10.0},
            "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-5},
        }
        | more
    )


def test_record_privacy_refuses_it() -> None:
    training = config().training.model_dump(exclude_unset=True)
    groups = {"groups": [{"name": "own", "clients": 1, "training": {"max_grad_norm": 1.0}}]}
    for more in ({"training": {**training, "max_grad_norm": 1.0}}, {"clients": groups}):
        with pytest.raises(PrivacyRefusal, match=r"training\.max_grad_norm: clips the gradient of a batch, .* set privacy\.clip") as caught:
            check_only(config(**more))
        assert caught.value.code == "privacy.incompatible.record.max_grad_norm"
