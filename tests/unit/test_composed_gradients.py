"""Steps whose gradient an algorithm makes of several: their batches, what is counted, and where they are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, label_skewed
from torch import Tensor, nn

from fedray.algorithms.algorithm import Algorithm, Update
from fedray.algorithms.turn import Turn
from fedray.config import Training
from fedray.errors import ConfigError, PrivacyRefusal, Stopped
from fedray.parameters import Layout, get_vector
from fedray.planning.combinations import check_only
from fedray.rng import generator
from fedray.training.choose import choose_engine
from fedray.training.engine import BatchGradient, Compose, LocalJob, LocalResult
from fedray.training.losses import find_loss
from fedray.training.plain import plain
from fedray.traits import Traits

RECORDS = 23
X = torch.from_numpy(np.random.default_rng(0).normal(size=(RECORDS, 4)).astype(np.float32))
Y = torch.arange(RECORDS) % 3
BATCHES: list[dict[str, Any]] = [
    {"batch_size": 5, "epochs": 2},
    {"batch_size": 50, "steps": 3},
    {"sampling_rate": 0.1, "steps": 9, "expected_batch": 2.0},
]


def trained(compose: Compose | None, settings: dict[str, Any], **more: Any) -> tuple[np.ndarray, LocalResult]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    training = Training(lr=0.1, **settings)
    streams = lambda name: generator(0, name)  # noqa: E731
    job = LocalJob(training, 0.1, find_loss("cross_entropy"), streams("batches"), compose=compose, streams=streams, **more)
    result = plain(model, X, Y, job)
    return get_vector(model, Layout.of(model)), result


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "optimizer",
    [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"optimizer": "adam"}, {"max_grad_norm": 0.1}, {"physical_batch": 2}],
    ids=str,
)
def test_one_gradient_over_the_steps_own_batch_is_the_usual_step(batch: dict[str, Any], optimizer: dict[str, Any]) -> None:
    usual, composed = (trained(compose, {**batch, **optimizer}) for compose in (None, lambda model, gradient: gradient()))
    assert usual[0].tobytes() == composed[0].tobytes()
    assert usual[1] == composed[1]


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 30), epochs=st.integers(1, 3), asked=st.lists(st.sampled_from([None, "a", "b"]), min_size=1, max_size=6))
def test_each_step_has_one_batch_of_each_stream_and_a_pass_has_every_record_once(size: int, epochs: int, asked: list[str | None]) -> None:
    seen: list[tuple[str | None, list[int]]] = []
    rows: list[list[int]] = []

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        rows.append(y.tolist())
        return outputs.sum(1)

    def compose(model: nn.Module, gradient: BatchGradient) -> None:
        for stream in asked:
            gradient(stream)
            seen.append((stream, rows[-1]))

    training = Training(lr=0.1, batch_size=size, epochs=epochs)
    job = LocalJob(training, 0.1, loss, generator(0, "own"), compose=compose, streams=lambda name: generator(0, name))
    result = plain(nn.Linear(4, 2), X, torch.arange(RECORDS), job)
    assert result.steps == epochs * -(-RECORDS // size)
    assert result.examples == epochs * RECORDS * len(asked)
    by_step = [dict(seen[at : at + len(asked)]) for at in range(0, len(seen), len(asked))]
    assert [pair for step in by_step for pair in [(stream, step[stream]) for stream in asked]] == seen
    for stream in set(asked):
        drawn = [n for step in by_step for n in step[stream]]
        passes = [drawn[at : at + RECORDS] for at in range(0, len(drawn), RECORDS)]
        assert all(sorted(one) == list(range(RECORDS)) for one in passes)
    if "a" in asked and "b" in asked:  # each stream has an order of its own
        assert [n for step in by_step for n in step["a"]] != [n for step in by_step for n in step["b"]]


def test_a_stop_ends_a_step_between_two_of_its_gradients() -> None:
    calls: list[None] = []

    def compose(model: nn.Module, gradient: BatchGradient) -> None:
        for _ in range(10):
            gradient()
            calls.append(None)

    with pytest.raises(Stopped):
        trained(compose, BATCHES[0], should_stop=lambda: len(calls) >= 3)
    assert len(calls) == 3


@dataclass(frozen=True)
class Doubled(Algorithm):
    """Two gradients a step, said or not."""

    traits: ClassVar[Traits] = Traits(gradients="composed")

    def local(self, turn: Turn) -> Update:
        turn.train(compose=lambda model, gradient: gradient("other"))
        return Update({"model": turn.moved()})


@dataclass(frozen=True)
class Silent(Doubled):
    """It does not say so."""

    traits: ClassVar[Traits] = Traits(gradients="adjusted")


def test_what_composes_gradients_says_so() -> None:
    federation, _ = label_skewed()
    run = Rehearsed(config_of({"kind": f"python:{__name__}:Doubled"}), federation)
    run.train([[0]])
    silent = Rehearsed(config_of({"kind": f"python:{__name__}:Silent"}), federation)
    with pytest.raises(AssertionError, match="set gradients='composed'"):
        silent.train([[0]])


def test_only_the_plain_engine_composes_gradients() -> None:
    section = Training(lr=0.1, batch_size=5, epochs=1)
    assert choose_engine("auto", False, nn.Linear(2, 2), section, composes=True)[0] == "plain"
    with pytest.raises(
        ConfigError, match="takes one gradient of the loss a step, but this algorithm.kind makes it in its own way; use auto or plain"
    ):
        choose_engine("python:fedray.training.plain:plain", False, nn.Linear(2, 2), section, composes=True)


def test_gradients_that_nobody_charges_are_refused_where_records_are_protected() -> None:
    training = {"lr": 0.1, "sampling_rate": 0.1, "expected_batch": 30, "steps": 1}
    privacy = {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5}
    with pytest.raises(
        PrivacyRefusal, match="takes several gradients, or that of more than the loss, but DP-SGD clips, noises and charges one"
    ) as caught:
        check_only(config_of({"kind": f"python:{__name__}:Doubled"}, training=training, privacy=privacy))
    assert caught.value.code == "privacy.incompatible.record.composed"
