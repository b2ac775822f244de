"""Losses with arguments: values, what is refused, one concept through config, groups and privacy, and the effect on rare classes."""

from __future__ import annotations

import json
import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from fedray.choices import LossChoice
from fedray.clients.groups import make_groups
from fedray.config import Config, Training
from fedray.configfile import build_config, dump_config, parse_yaml, resolve_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only
from fedray.training import lockstep
from fedray.training.bookkeeping import book
from fedray.training.classweights import balanced
from fedray.training.engine import LocalJob
from fedray.training.losses import Loss, find_loss, known_apart, outputs_for
from fedray.training.plain import plain
from fedray.training.preflight import sensitivity_check

ARGUMENTS: list[dict[str, Any]] = [
    {"kind": "cross_entropy", "smoothing": 0.1},
    {"kind": "cross_entropy", "weights": [0.5, 2.0, 1.0], "smoothing": 0.2},
    {"kind": "cross_entropy", "weights": "balanced", "counts": [90, 9, 1]},
    {"kind": "cross_entropy", "weights": "balanced", "beta": 0.9},
    {"kind": "focal", "gamma": 0.5, "alpha": [0.25, 0.75, 0.5]},
    {"kind": "focal", "alpha": "balanced"},
]


def scaled(outputs: torch.Tensor, targets: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    return factor * functional.cross_entropy(outputs, targets, reduction="none")


def loss_of(choice: dict[str, Any] | str) -> Loss:
    return find_loss(LossChoice.model_validate(choice))


def config(loss: Any, group: Any = None, **more: Any) -> Config:
    record = "regime" in more.get("privacy", {})
    how = {"sampling_rate": 0.2, "steps": 2, "expected_batch": 10.0} if record else {"batch_size": 8, "epochs": 1}
    return build_config(
        {
            "name": "loss",
            "rounds": 1,
            "data": {"source": "sklearn:digits", "classes": 10, "partition": {"kind": "iid", "clients": 4}},
            "model": {"kind": "softmax"},
            "clients": {"groups": [] if group is None else [{"name": "own", "clients": 1, "training": {"loss": group}}]},
            "training": {"lr": 0.1, "loss": loss, **how},
            **more,
        }
    )


RECORD = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-5}


def batch(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=draws, dtype=torch.float64), torch.randint(0, 3, (n,), generator=draws)


# -- values --------------------------------------------------------------------------------------------


def test_values_are_those_of_the_papers() -> None:
    outputs, targets = batch()
    log = outputs.log_softmax(1)
    own = log[torch.arange(len(targets)), targets]
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)[targets]
    smoothed = -(0.9 * own + 0.1 * log.mean(1))
    torch.testing.assert_close(loss_of({"kind": "cross_entropy", "smoothing": 0.1})(outputs, targets), smoothed)
    both = loss_of({"kind": "cross_entropy", "smoothing": 0.1, "weights": [0.5, 2.0, 1.0]})
    torch.testing.assert_close(both(outputs, targets), weights * smoothed)
    focal = loss_of({"kind": "focal", "gamma": 1.5, "alpha": [0.5, 2.0, 1.0]})
    torch.testing.assert_close(focal(outputs, targets), -weights * (1 - own.exp()) ** 1.5 * own)
    logits, labels = outputs[:, 0], targets.clamp(max=1)
    weighted = loss_of({"kind": "binary_cross_entropy", "positive_weight": 3.0})(logits, labels)
    torch.testing.assert_close(weighted, torch.where(labels == 1, 3 * functional.softplus(-logits), functional.softplus(logits)))


def test_arguments_that_say_the_usual_change_no_bit() -> None:
    outputs, targets = batch()
    for name, usual in (("cross_entropy", {"smoothing": 0.0, "weights": None}), ("focal", {"gamma": 2.0, "alpha": None})):
        assert torch.equal(find_loss(name)(outputs, targets), loss_of({"kind": name, **usual})(outputs, targets))
    assert torch.equal(
        find_loss("binary_cross_entropy")(outputs[:, 0], targets.clamp(max=1)),
        loss_of({"kind": "binary_cross_entropy", "positive_weight": 1.0})(outputs[:, 0], targets.clamp(max=1)),
    )


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12).filter(any), st.floats(0, 0.9999))
def test_balanced_weights_have_mean_one_and_favour_rare_classes(counts: list[int], beta: float) -> None:
    weights = balanced(counts, beta)
    present = [(n, w) for n, w in zip(counts, weights, strict=True) if n]
    assert np.mean([w for _, w in present]) == pytest.approx(1)
    assert all(w == 0 for n, w in zip(counts, weights, strict=True) if not n)
    assert all(v >= w * (1 - 1e-9) for n, v in present for m, w in present if n <= m)


def test_balanced_weights_lie_between_none_and_the_inverse_frequency() -> None:
    assert balanced([900, 100], 0.0) == [1.0, 1.0]
    np.testing.assert_allclose(balanced([900, 100], 1 - 1e-9), [0.2, 1.8], rtol=1e-5)


def test_a_client_weights_by_its_own_numbers_and_evaluation_by_none() -> None:
    outputs, targets = batch()
    loss = loss_of({"kind": "cross_entropy", "weights": "balanced", "beta": 0.9})
    counts = torch.bincount(targets, minlength=3).tolist()
    declared = loss_of({"kind": "cross_entropy", "weights": "balanced", "beta": 0.9, "counts": counts})
    assert torch.equal(loss.of_client(targets)(outputs, targets), declared(outputs, targets))
    assert torch.equal(loss(outputs, targets), find_loss("cross_entropy")(outputs, targets))
    assert declared.of_client(targets) is declared


@pytest.mark.parametrize("choice", ARGUMENTS)
def test_losses_with_arguments_keep_records_apart(choice: dict[str, Any]) -> None:
    outputs, targets = batch(6)
    loss = loss_of(choice).of_client(targets)
    assert known_apart(loss)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(outputs, targets), loss(outputs, targets))
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(outputs, targets)[2], outputs)
    assert gradient[[0, 1, 3, 4, 5]].abs().max() == 0
    assert outputs_for(LossChoice.model_validate(choice), 3) == 3


@pytest.mark.parametrize("choice", [c for c in ARGUMENTS if not loss_of(c).by_counts])
def test_a_step_on_records_has_the_sensitivity_of_its_clip_norm(choice: dict[str, Any]) -> None:
    section = Training(lr=0.1, sampling_rate=0.5, steps=1, expected_batch=4.0)
    sensitivity_check(book, lambda: nn.Linear(4, 3), loss_of(choice), (4,), 3, section, 1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_loss_has_finite_gradients_for_every_gamma(gamma: float) -> None:
    outputs = torch.tensor([[60.0, -60.0], [-60.0, 60.0], [0.0, 0.0]], requires_grad=True)
    loss_of({"kind": "focal", "gamma": gamma})(outputs, torch.tensor([0, 0, 1])).sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


# -- config --------------------------------------------------------------------------------------------


def test_a_name_is_written_as_a_name_and_arguments_stay() -> None:
    named = config("focal")
    assert named.training.loss == LossChoice(kind="focal")
    assert named.model_dump()["training"]["loss"] == json.loads(named.model_dump_json())["training"]["loss"] == "focal"
    assert config({"kind": "focal"}) == named
    full = config({"kind": "focal", "alpha": [0.1] * 10})
    for one in (named, full):
        assert resolve_config(parse_yaml(dump_config(one), "")) == one
    assert resolve_config(full, ["training.loss.gamma=1.5"]).training.loss.arguments == {"alpha": [0.1] * 10, "gamma": 1.5}
    assert resolve_config(full, ["training.loss=mse"]).training.loss == LossChoice(kind="mse")


def test_a_group_has_its_own_arguments() -> None:
    groups = make_groups(config("focal", {"kind": "focal", "alpha": [1.0] * 9 + [3.0]}), ["a", "b", "c", "d"])
    assert [g.training.loss.arguments.get("alpha", [0])[-1] for g in groups] == [3.0, 0]


def test_a_users_loss_takes_arguments() -> None:
    outputs, targets = batch()
    twice = loss_of({"kind": f"python:{__name__}:scaled", "factor": 2})
    assert torch.equal(twice(outputs, targets), 2 * scaled(outputs, targets))
    with pytest.raises(
        ConfigError, match=r"^training\.loss\.facter: unknown argument of scaled \(it takes factor\)\. Did you mean 'factor'"
    ):
        loss_of({"kind": f"python:{__name__}:scaled", "facter": 2})


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"kind": "focal", "gama": 2.0}, r"training\.loss\.gama: unknown argument of focal .* Did you mean 'gamma'"),
        ({"kind": "mse", "gamma": 2.0}, r"training\.loss\.gamma: unknown argument of mse"),
        ({"kind": "focal", "gamma": -1.0}, r"training\.loss\.gamma: input should be greater than or equal to 0"),
        ({"kind": "cross_entropy", "smoothing": 1.0}, r"training\.loss\.smoothing: input should be less than 1"),
        ({"kind": "cross_entropy", "weights": [1.0, float("nan")]}, r"training\.loss\.weights: .*finite"),
        ({"kind": "cross_entropy", "weights": "balancd"}, r"training\.loss\.weights: "),
        ({"kind": "cross_entropy", "weights": [0.0, 0.0]}, r"training\.loss\.weights: is \[0.0, 0.0\]; give one number for each class"),
        ({"kind": "focal", "alpha": "balanced", "counts": [5]}, r"training\.loss\.counts: is \[5\]; give one number for each class"),
        ({"kind": "focal", "beta": 0.9}, r"training\.loss\.beta: belongs to balanced weights; set training\.loss\.alpha=balanced"),
        ({"kind": "cross_entropy", "counts": [5, 6], "weights": [1.0, 2.0]}, r"training\.loss\.counts: belongs to balanced weights"),
        ({"kind": "binary_cross_entropy", "positive_weight": -1.0}, r"training\.loss\.positive_weight: input should be greater"),
    ],
)
def test_arguments_that_a_loss_does_not_take_are_refused(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        loss_of(choice)


def test_numbers_for_other_classes_than_the_datas_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.loss: has numbers for 3 classes, but the data has 10 classes; give 10 numbers"):
        outputs_for(LossChoice.model_validate({"kind": "focal", "alpha": [1.0, 2.0, 3.0]}), 10)


@pytest.mark.parametrize("where", ["training.loss", "clients.groups.0.training.loss"])
@pytest.mark.parametrize("choice", [{"kind": "cross_entropy", "weights": "balanced"}, {"kind": "focal", "alpha": "balanced"}])
def test_weights_from_private_counts_are_refused_under_record_privacy(where: str, choice: dict[str, Any]) -> None:
    losses = (choice, None) if where == "training.loss" else ("focal", choice)
    with pytest.raises(PrivacyRefusal, match=rf"\] {where}: .* declare public numbers with counts") as caught:
        check_only(config(*losses, privacy=RECORD))
    assert caught.value.code == "privacy.incompatible.record.class_counts"
    check_only(config(*losses))
    public = {**choice, "counts": [5] * 10}
    check_only(config(*((public, None) if where == "training.loss" else ("focal", public)), privacy=RECORD))


def test_lockstep_leaves_clients_with_weights_of_their_own_to_plain() -> None:
    model = nn.Linear(4, 3)
    own = Training(lr=0.1, batch_size=4, epochs=1, loss=LossChoice.model_validate({"kind": "focal", "alpha": "balanced"}))
    assert "each client's own records" in (lockstep.unsupported(model, own) or "")
    assert lockstep.unsupported(model, own.model_copy(update={"loss": LossChoice.model_validate(ARGUMENTS[1])})) is None


def test_lockstep_trains_with_arguments_as_plain_does() -> None:
    draws = np.random.default_rng(0)
    x, y = torch.from_numpy(draws.standard_normal((30, 4)).astype(np.float32)), torch.from_numpy(draws.integers(0, 3, 30))
    training = Training(lr=0.3, batch_size=8, epochs=2)
    trained = []
    for engine in (plain, lockstep.lockstep):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        engine(model, x, y, LocalJob(training, 0.3, loss_of(ARGUMENTS[1]), np.random.default_rng(1)))
        trained.append(model.weight.detach())
    torch.testing.assert_close(*trained)


# -- effect on real data -------------------------------------------------------------------------------


@cache
def measured(name: str) -> np.ndarray:
    """Average precision, balanced accuracy and mean confidence for digits 8 among others, [5 seeds, 3], of eight examples in training."""
    choice = {
        "plain": "cross_entropy",
        "focal": "focal",
        "balanced": {"kind": "cross_entropy", "weights": "balanced"},
        "smoothed": {"kind": "cross_entropy", "smoothing": 0.1},
    }[name]
    return np.array([_one_seed(loss_of(choice), seed) for seed in range(5)])


def _one_seed(loss: Loss, seed: int) -> tuple[float, float, float]:
    draws = np.random.default_rng(seed)
    x, digits = load_digits(return_X_y=True)
    order, half = draws.permutation(len(digits)), len(digits) // 2
    x, y = torch.from_numpy((x[order] / 16).astype(np.float32)), torch.from_numpy((digits[order] == 8).astype(np.int64))
    few = np.concatenate([np.flatnonzero(y[:half] == 1)[:8], np.flatnonzero(y[:half] == 0)])
    rows = torch.from_numpy(draws.permutation(few))
    torch.manual_seed(seed)
    model = nn.Linear(64, 2)
    training = Training(lr=0.05, momentum=0.9, batch_size=32, epochs=5)
    plain(model, x[rows], y[rows], LocalJob(training, 0.05, loss.of_client(y[rows]), np.random.default_rng(seed)))
    p, rare = model(x[half:]).softmax(1).detach(), y[half:] == 1
    hits = rare[p[:, 1].argsort(descending=True, stable=True)].double()
    precision = float((hits.cumsum(0) / torch.arange(1, len(hits) + 1) * hits).sum() / hits.sum())
    right = p.argmax(1) == y[half:]
    return precision, float(right[rare].double().mean() + right[~rare].double().mean()) / 2, float(p.max(1).values.mean())


@pytest.mark.parametrize("name", ["focal", "balanced"])
def test_a_rare_class_is_ranked_better(name: str) -> None:
    gains = (measured(name) - measured("plain"))[:, 0]
    assert gains.min() > 0
    assert gains.mean() > 0.1


def test_balanced_weights_raise_balanced_accuracy() -> None:
    gains = (measured("balanced") - measured("plain"))[:, 1]
    assert gains.min() > 0
    assert gains.mean() > 0.1


def test_smoothing_lowers_confidence() -> None:
    assert (measured("smoothed") < measured("plain"))[:, 2].all()
