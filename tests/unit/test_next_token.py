"""Next-token prediction: the causal transformer, its loss, its metrics, and records of text."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedray import components
from fedray.choices import ModelChoice
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Training
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.data.text import character_records
from fedray.errors import ConfigError, DataError
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector, set_vector
from fedray.privacy.recordplan import plan_record
from fedray.training.engine import DpStep, LocalJob
from fedray.training.evaluate import check_metrics, evaluate, find_metrics
from fedray.training.losses import find_loss, outputs_for, positions_for
from fedray.training.tokens import next_token, perplexity, token_accuracy

LENGTH, TOKENS = 6, 5
SMALL = {"kind": "transformer", "width": 8, "layers": 2, "heads": 2, "hidden": 12}


LSTM = {"kind": "lstm", "tokens": TOKENS, "hidden": 8, "levels": 2, "each_position": True}


def small(seed: int = 0, **more: Any) -> nn.Module:
    return build_model(ModelChoice(**(SMALL | more)), (LENGTH,), TOKENS, seed, torch.int64, LENGTH)


def records(n: int, seed: int = 3) -> Records:
    """Each token is followed by the next number, but for some of the time."""
    draws = np.random.default_rng(seed)
    steps = 1 + (draws.random((n, LENGTH)) < 0.1)
    walk = (draws.integers(0, TOKENS, (n, 1)) + np.concatenate([np.zeros((n, 1), np.int64), steps.cumsum(1)], axis=1)) % TOKENS
    return Records(np.ascontiguousarray(walk[:, :-1]), np.ascontiguousarray(walk[:, 1:]))


# -- the model -----------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(position=st.integers(0, LENGTH - 1), seed=st.integers(0, 50))
def test_outputs_depend_on_no_later_token_and_on_no_other_record(position: int, seed: int) -> None:
    model = small(seed).eval()
    x = torch.from_numpy(records(4, seed).x)
    later = x.clone()
    later[:, position] = (later[:, position] + 1) % TOKENS
    with torch.no_grad():
        before, after, alone = model(x), model(later), model(x[:1])
    assert before.shape == (4, LENGTH, TOKENS)
    assert torch.allclose(before[:, :position], after[:, :position], atol=1e-6)
    assert not torch.allclose(before[:, position], after[:, position], atol=1e-7)
    assert torch.allclose(before[:1], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ({"heads": 3}, (LENGTH,), "model.heads: 3 heads do not divide a width of 8"),
        ({"layers": 0}, (LENGTH,), "model.layers: 0 is below 1"),
        ({"dropout": 1.0}, (LENGTH,), "model.dropout"),
        ({}, (LENGTH, 2), r"records of shape \(T,\)"),
        ({"kind": "lstm", "width": 3}, (LENGTH,), "model.width: unknown argument"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(model: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(ModelChoice(**(SMALL | model)), shape, TOKENS, 0, torch.int64, LENGTH)


def test_a_model_without_outputs_at_each_position_is_refused_for_the_loss() -> None:
    with pytest.raises(ConfigError, match=r"outputs of shape \(2, 5\) .* \(2, 6, 5\), 5 at each of a record's 6 targets"):
        build_model(ModelChoice(kind="lstm", tokens=TOKENS), (LENGTH,), TOKENS, 0, torch.int64, LENGTH)
    with pytest.raises(ConfigError, match=r"outputs of shape \(2, 6, 5\) for 2 records, but the data has 5 classes"):
        build_model(ModelChoice(**SMALL), (LENGTH,), TOKENS, 0, torch.int64)


# -- loss and metrics ----------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(n=st.integers(1, 4), last=st.booleans(), seed=st.integers(0, 99))
def test_the_loss_is_the_mean_over_a_records_positions(n: int, last: bool, seed: int) -> None:
    torch.manual_seed(seed)
    outputs, targets = torch.randn(n, LENGTH, TOKENS), torch.randint(0, TOKENS, (n, LENGTH if last else LENGTH - 1))
    wanted = [
        sum(float(-outputs[k, t].log_softmax(0)[targets[k, t]]) for t in range(targets.shape[1])) / targets.shape[1] for k in range(n)
    ]
    losses = next_token(outputs, targets)
    assert losses.shape == (n,)
    assert losses.tolist() == pytest.approx(wanted, rel=1e-5)
    assert perplexity(outputs, targets) == pytest.approx(math.exp(sum(wanted) / n), rel=1e-5)
    right = sum(int(outputs[k, t].argmax() == targets[k, t]) for k in range(n) for t in range(targets.shape[1]))
    assert token_accuracy(outputs, targets) == pytest.approx(right / targets.numel())


def test_metrics_of_equal_and_of_hopeless_outputs() -> None:
    targets = torch.zeros((2, LENGTH), dtype=torch.int64)
    assert perplexity(torch.zeros(2, LENGTH, TOKENS), targets) == pytest.approx(TOKENS)
    hopeless = torch.zeros(2, LENGTH, TOKENS)
    hopeless[..., 1] = 1e4
    assert perplexity(hopeless, targets) == math.inf
    with pytest.raises(ConfigError, match="perplexity is for tokens"):
        perplexity(torch.zeros(2, TOKENS), targets[:, 0])


def test_what_the_loss_asks_of_data_and_metrics() -> None:
    assert outputs_for("next_token", TOKENS, (LENGTH,)) == TOKENS
    assert positions_for("next_token", (LENGTH,)) == LENGTH
    assert positions_for("cross_entropy", ()) is None
    with pytest.raises(ConfigError, match=r"next_token takes targets \[n, positions\], but those of the data are \[n\]"):
        outputs_for("next_token", TOKENS, ())
    check_metrics(find_metrics(["perplexity", "token_accuracy", "loss"]), find_loss("next_token"), TOKENS, TOKENS)
    with pytest.raises(ConfigError, match="accuracy is for one target a record.*use perplexity, token_accuracy or loss"):
        check_metrics(find_metrics(["accuracy"]), find_loss("next_token"), TOKENS, TOKENS)
    with pytest.raises(ConfigError, match="perplexity is for next tokens, but training.loss=cross_entropy"):
        check_metrics(find_metrics(["perplexity"]), find_loss("cross_entropy"), TOKENS, TOKENS)


# -- training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "kind"), [("hooks", SMALL), ("ghost", SMALL), ("book", SMALL), ("book", LSTM)])
def test_clipped_gradients_of_sequences_equal_brute_force(engine: str, kind: dict[str, Any]) -> None:
    start, found = build_model(ModelChoice(**kind), (LENGTH,), TOKENS, 1, torch.int64, LENGTH), records(12)
    x, y = torch.from_numpy(found.x), torch.from_numpy(found.y)
    layout, trained = Layout.of(start), list(start.parameters())
    gradients = [torch.autograd.grad(next_token(start(x[k : k + 1]), y[k : k + 1]).sum(), trained) for k in range(len(x))]
    norms = [float(torch.cat([g.reshape(-1) for g in of_record]).norm()) for of_record in gradients]
    clip = float(np.median(norms))
    shares = [min(1.0, clip / norm) for norm in norms]
    wanted = copy.deepcopy(start)
    with torch.no_grad():
        for p, of_parameter in zip(wanted.parameters(), zip(*gradients, strict=True), strict=True):
            p -= sum(share * g for share, g in zip(shares, of_parameter, strict=True)) / len(x)

    class Silence:
        def uniform(self, n: int) -> np.ndarray:
            return np.zeros(n)

        def normal(self, n: int) -> np.ndarray:
            return np.zeros(n)

    model = copy.deepcopy(start)
    training = Training(lr=1.0, sampling_rate=1.0, expected_batch=float(len(x)), steps=1)
    job = LocalJob(training, 1.0, find_loss("next_token"), np.random.default_rng(0), Silence(), DpStep(0.0, clip))
    components.find(components.ENGINES, engine)(model, x, y, job)
    moved, right = (get_vector(m, layout) - get_vector(start, layout) for m in (model, wanted))
    assert np.abs(moved - right).max() <= 2e-5 * np.abs(right).max()


@pytest.mark.parametrize(("private", "kind", "lr"), [(False, SMALL, 0.5), (True, SMALL, 0.5), (True, LSTM, 4.0)])
def test_clients_learn_the_next_token(private: bool, kind: dict[str, Any], lr: float) -> None:
    """Through the clients' actors, with the pre-flight test under record-level privacy; the model is never given the targets."""
    sections: dict[str, Any] = {"training": {"loss": "next_token", "lr": lr, "batch_size": 16, "epochs": 4}}
    if private:
        sections = {
            "training": {"loss": "next_token", "lr": lr, "sampling_rate": 0.5, "expected_batch": 32.0, "steps": 16},
            "privacy": {"regime": "record", "noise_multiplier": 0.3, "clip": 2.0, "delta": 1e-3, "insecure_seed": 5},
        }
    config = build_config(
        {
            "name": "tokens",
            "rounds": 2,
            "data": {"source": "python:nowhere:data"},
            "model": kind,
            "evaluation": {"metrics": ["perplexity"]},
            "algorithm": {"kind": "fedavg", "weights": "uniform"},
            **sections,
        }
    )
    model, facts = first_model(config.model, (LENGTH,), TOKENS, config.seed, torch.int64, LENGTH)
    federation = Federation(["a", "b"], records(128), np.array([0, 64, 128]), None, None, None, TOKENS)
    group = make_groups(config, ["a", "b"])[0]
    host = ClientHost(
        make_terms(config, group, plan_record(config, group.training) if private else None, facts), Site(device="cpu"), federation
    )
    host.ready()
    if private:
        assert 0 < host.preflight() <= 1 + 1e-6
    test, weights, found = records(64, 9), get_vector(model, facts.layout), []
    for number in range(3):
        set_vector(model, facts.layout, weights)
        x, y = torch.from_numpy(test.x), torch.from_numpy(test.y)
        found.append(evaluate(model, x, y, find_metrics(["perplexity"]), find_loss("next_token"))["perplexity"])
        reports = host.train(RoundTask(number, 2.0), weights, [ClientTask(0, "a"), ClientTask(1, "b")])
        assert {r.status for r in reports} == {"done"}, reports[0].traceback or reports[0].error
        weights = (weights + host.collect(RoundTask(number, 2.0)).total.mean()).astype(np.float32)
    assert found[0] == pytest.approx(TOKENS, rel=0.1)
    assert found[2] < 0.8 * found[0]


# -- records of text -----------------------------------------------------------------------------------------------------


@given(text=st.text("abc", min_size=2, max_size=50), length=st.integers(1, 8))
def test_records_are_the_text_and_targets_what_follows(text: str, length: int) -> None:
    if len(text) <= length:
        with pytest.raises(DataError, match="no text has the"):
            character_records({"one": text}, length, "abc")
        return
    x, y = character_records({"one": text, "short": text[:length]}, length, "abc")["one"]
    assert x.shape == y.shape == ((len(text) - 1) // length, length)
    spelt = "".join("abc"[k] for k in x.reshape(-1))
    assert text.startswith(spelt + "abc"[y[-1, -1]])
    assert (x.reshape(-1)[1:] == y.reshape(-1)[:-1]).all()


def test_a_character_that_the_alphabet_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="the text of 'one' has 'd', which the alphabet lacks"):
        character_records({"one": "abcd"}, 2, "abc")
    with pytest.raises(DataError, match="length of at least 1"):
        character_records({"one": "abcd"}, 0, "abcd")
