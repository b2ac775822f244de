"""Metrics against scikit-learn, and evaluation."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import gamma, terms_of
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torch import nn

from fedray.components import METRICS
from fedray.errors import ConfigError, DataError
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import find_loss


def score(name: str, outputs: object, targets: object) -> float:
    x, y = torch.as_tensor(np.asarray(outputs)), torch.as_tensor(np.asarray(targets))
    (key,) = find_metrics([name])
    return evaluate(nn.Identity(), x, y, find_metrics([name]), find_loss("cross_entropy"))[key]


@pytest.mark.parametrize("seed", range(4))
def test_class_metrics_are_scikit_learns(seed: int) -> None:
    draws = np.random.default_rng(seed)
    n, classes = 60, 5
    targets = draws.integers(0, classes - 1, n)  # the last class has no records but is predicted
    outputs = draws.standard_normal((n, classes)).astype(np.float32)
    outputs[np.arange(n), targets] += 1
    guess = outputs.argmax(1)
    assert score("accuracy", outputs, targets) == sk.accuracy_score(targets, guess)
    present = np.isin(guess, targets)
    assert not present.all()
    recalls = [np.mean(guess[targets == c] == c) for c in np.unique(targets)]
    assert score("balanced_accuracy", outputs, targets) == pytest.approx(np.mean(recalls))
    assert score("balanced_accuracy", outputs[present], targets[present]) == pytest.approx(
        sk.balanced_accuracy_score(targets[present], guess[present])
    )
    assert score("f1", outputs, targets) == pytest.approx(sk.f1_score(targets, guess, average="macro", zero_division=0))
    p = torch.softmax(torch.from_numpy(outputs).double(), 1).numpy()
    assert score("loss", outputs, targets) == pytest.approx(sk.log_loss(targets, p, labels=range(classes)), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_auc_is_scikit_learns_with_ties_and_in_all_three_shapes(seed: int) -> None:
    draws = np.random.default_rng(seed)
    targets = draws.integers(0, 2, 50)
    logits = np.round(draws.standard_normal(50) + targets, 1).astype(np.float32)
    truth = sk.roc_auc_score(targets, logits)
    assert score("auc", logits, targets) == pytest.approx(truth)
    assert score("auc", logits[:, None], targets) == pytest.approx(truth)
    assert score("auc", np.stack([np.zeros_like(logits), logits], 1), targets) == pytest.approx(truth)
    assert math.isnan(score("auc", logits, np.zeros(50, dtype=np.int64)))


@pytest.mark.parametrize("seed", range(4))
def test_precision_is_scikit_learns_of_the_second_class(seed: int) -> None:
    draws = np.random.default_rng(seed)
    targets = draws.integers(0, 2, 50)
    logits = (draws.standard_normal(50) + targets).astype(np.float32)
    truth = sk.precision_score(targets, logits > 0)
    assert score("precision", logits[:, None], targets) == truth
    assert score("precision", np.stack([np.zeros_like(logits), logits], 1), targets) == truth
    assert math.isnan(score("precision", -np.abs(logits), targets))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=30))
def test_average_precision_and_binary_f1_are_scikit_learns(records: list[tuple[bool, int]]) -> None:
    targets, logits = np.array([y for y, _ in records], dtype=np.int64), np.array([z for _, z in records], dtype=np.float32)
    both = np.stack([np.zeros_like(logits), logits], 1)
    wanted = sk.f1_score(targets, logits > 0, zero_division=math.nan)
    for outputs in (logits, logits[:, None], both):
        assert score("binary_f1", outputs, targets) == pytest.approx(wanted, nan_ok=True)
        if targets.any():
            assert score("average_precision", outputs, targets) == pytest.approx(sk.average_precision_score(targets, logits))
        else:
            assert math.isnan(score("average_precision", outputs, targets))


@settings(max_examples=40)
@given(n=st.integers(1, 200), classes=st.integers(2, 4), sharpness=st.floats(0.0, 30.0), seed=st.integers(0, 999))
def test_the_calibration_error_is_that_of_scikit_learns_curve(n: int, classes: int, sharpness: float, seed: int) -> None:
    draws = np.random.default_rng(seed)
    outputs, targets = sharpness * draws.standard_normal((n, classes)), draws.integers(0, classes, n)
    confidence, right = softmax(outputs, 1).max(1), outputs.argmax(1) == targets
    accuracies, confidences = calibration_curve(right, confidence, n_bins=15)
    sizes = np.bincount(np.ceil(confidence * 15).astype(int))
    wanted = (np.abs(accuracies - confidences) * sizes[sizes > 0]).sum() / n
    assert score("calibration_error", outputs, targets) == pytest.approx(wanted, abs=1e-9)
    if classes == 2:
        assert score("calibration_error", outputs[:, 1] - outputs[:, 0], targets) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_regression_metrics_are_scikit_learns(seed: int) -> None:
    draws = np.random.default_rng(seed)
    targets = draws.standard_normal(40).astype(np.float32)
    values = (targets + draws.standard_normal(40)).astype(np.float32)
    for outputs in (values, values[:, None]):
        assert score("mae", outputs, targets) == pytest.approx(sk.mean_absolute_error(targets, values))
        assert score("rmse", outputs, targets) == pytest.approx(sk.root_mean_squared_error(targets, values))
        assert score("r2", outputs, targets) == pytest.approx(sk.r2_score(targets, values))
    assert math.isnan(score("r2", values, np.ones(40, dtype=np.float32)))


def test_one_logit_is_cut_at_zero() -> None:
    logits, targets = np.array([[-1.0], [0.0], [0.1], [2.0]], dtype=np.float32), np.array([0, 0, 1, 0])
    assert score("accuracy", logits, targets) == 0.75
    assert score("f1", logits[:, 0], targets) == pytest.approx(sk.f1_score(targets, [0, 0, 1, 1], average="macro"))


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1", "binary_f1", "auc", "average_precision", "calibration_error"])
def test_class_metrics_refuse_real_targets(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is for classes"):
        score(name, np.zeros((4, 2), np.float32), np.zeros(4, np.float32))


def test_metrics_refuse_outputs_that_are_not_theirs() -> None:
    with pytest.raises(ConfigError, match="auc is for two classes"):
        score("auc", np.zeros((4, 3), np.float32), np.zeros(4, np.int64))
    with pytest.raises(ConfigError, match="rmse is for regressions"):
        score("rmse", np.zeros((4, 3), np.float32), np.zeros(4, np.float32))


def test_evaluation_does_not_depend_on_the_split_and_leaves_the_model_as_it_was(device: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).to(device)
    model[1].eval()
    x, y = torch.randn(101, 4), torch.randint(0, 3, (101,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    metrics, loss = find_metrics(["accuracy", "loss", "f1"]), find_loss("cross_entropy")
    one = evaluate(model, x, y, metrics, loss, device=device)
    for size in (1, 7, 101):
        other = evaluate(model, x, y, metrics, loss, batch_size=size, device=device)
        assert other["accuracy"] == one["accuracy"]
        assert other["loss"] == pytest.approx(one["loss"], rel=2 * gamma(terms_of(model)))
    assert list(one) == ["accuracy", "loss", "f1"]
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_metric_loss_is_the_runs_loss() -> None:
    x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])
    assert evaluate(nn.Identity(), x, y, find_metrics(["loss"]), find_loss("mse"))["loss"] == 2.5


def test_no_records_is_an_error() -> None:
    with pytest.raises(DataError, match="no records"):
        evaluate(nn.Identity(), torch.zeros(0, 2), torch.zeros(0), find_metrics(["loss"]), find_loss("mse"))


def test_users_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metrics_for_test.py").write_text(
        "def largest(outputs, targets): return outputs.max()\ndef each(outputs, targets): return outputs\n"
        "def accuracy(o, t): return 0\nword = 'x'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metrics_for_test", raising=False)
    own = "python:my_metrics_for_test:"
    assert list(find_metrics(["accuracy", own + "largest"])) == ["accuracy", "largest"]
    assert score(own + "largest", np.array([[1.0, 4.0]]), np.array([0])) == 4.0
    with pytest.raises(ConfigError, match="'each' returned a Tensor"):
        score(own + "each", np.zeros((3, 2)), np.zeros(3, np.int64))
    with pytest.raises(ConfigError, match="two metrics are called 'accuracy'"):
        find_metrics(["accuracy", own + "accuracy"])
    with pytest.raises(ConfigError, match="is a str"):
        find_metrics([own + "word"])
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        find_metrics(["acuracy"])


def test_every_metric_says_what_it_is() -> None:
    assert all(metric.__doc__ for metric in METRICS.parts().values())
