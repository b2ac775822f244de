"""Losses: values, no reduction over records, users' own."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fedray.components import LOSSES
from fedray.errors import ConfigError
from fedray.training.losses import find_loss, outputs_for

USER = """
def squared(outputs, targets): return (outputs.squeeze(-1) - targets) ** 2
def reduced(outputs, targets): return squared(outputs, targets).mean()
def number(outputs, targets): return 1.0
def column(outputs, targets): return (outputs - targets[:, None]) ** 2
def survival(outputs, targets): return outputs.sum(1)
survival.outputs = 7
def total(outputs, targets): return squared(outputs, targets[:, 0]).sum()
total.couples, total.targets, total.outputs = True, ("n", 2), 1
def apart(outputs, targets): return squared(outputs, targets[:, 0])
apart.couples = True
def odd(outputs, targets): return squared(outputs, targets)
odd.targets = (3, "n")
constant = 3
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_losses_for_test.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_losses_for_test", raising=False)
    return "python:my_losses_for_test:"


def batch(name: str, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    loss = find_loss(name)
    width = loss.outputs or 2
    sizes = {"outputs": width, "positions": 4}
    along = [sizes["positions"]] if "positions" in loss.targets else []
    outputs = torch.randn(n, *along, width, generator=draws)
    targets = torch.randint(0, 2, (n, *(sizes[size] if isinstance(size, str) else size for size in loss.targets[1:])), generator=draws)
    return outputs, targets.float() if name in ("mse", "mae") else targets


@pytest.mark.parametrize("name", sorted(name for name in LOSSES.parts() if not find_loss(name).couples))
def test_every_loss_gives_one_value_a_record_that_depends_on_that_record_alone(name: str) -> None:
    outputs, targets = batch(name)
    outputs.requires_grad_(True)
    losses = find_loss(name)(outputs, targets)
    assert losses.shape == (6,)
    (gradient,) = torch.autograd.grad(losses[2], outputs)
    assert gradient[2].abs().max() > 0
    assert gradient[[0, 1, 3, 4, 5]].abs().max() == 0


@pytest.mark.parametrize("name", ["binary_cross_entropy", "mse", "mae"])
def test_one_output_may_be_flat_or_a_column(name: str) -> None:
    outputs, targets = batch(name)
    assert torch.equal(find_loss(name)(outputs, targets), find_loss(name)(outputs[:, 0], targets))


def test_values_are_those_of_the_formulas() -> None:
    outputs, targets = batch("cross_entropy")
    p = outputs.softmax(1)[torch.arange(6), targets]
    torch.testing.assert_close(find_loss("cross_entropy")(outputs, targets), -p.log())
    torch.testing.assert_close(find_loss("focal")(outputs, targets), -((1 - p) ** 2) * p.log())
    logits, labels = batch("binary_cross_entropy")
    torch.testing.assert_close(find_loss("binary_cross_entropy")(logits, labels), functional.softplus((1 - 2 * labels) * logits[:, 0]))
    torch.testing.assert_close(find_loss("mse")(logits, labels), (logits[:, 0] - labels) ** 2)
    torch.testing.assert_close(find_loss("mae")(logits, labels), (logits[:, 0] - labels).abs())


def test_focal_loss_has_finite_gradients_where_the_model_is_sure() -> None:
    outputs = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], requires_grad=True)
    find_loss("focal")(outputs, torch.tensor([0, 0])).sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize(
    ("name", "classes", "outputs"),
    [("cross_entropy", 10, 10), ("focal", 3, 3), ("binary_cross_entropy", 2, 1), ("mse", None, 1), ("mae", None, 1), ("mse", 5, 1)],
)
def test_outputs_for(name: str, classes: int | None, outputs: int) -> None:
    assert outputs_for(name, classes) == outputs


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [
        ("cross_entropy", None, "use mse"),
        ("binary_cross_entropy", 10, "has 10 classes; use cross_entropy"),
        ("binary_cross_entropy", None, "real-valued targets; use mse"),
        ("cross_entrpy", 10, "Did you mean 'cross_entropy'"),
    ],
)
def test_losses_that_do_not_suit_the_data_are_refused(name: str, classes: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        outputs_for(name, classes)
    assert str(caught.value).startswith("training.loss: ")


def test_users_losses_are_held_to_one_value_a_record(user: str) -> None:
    outputs, targets = torch.randn(5, 1), torch.randn(5)
    loss = find_loss(user + "squared")
    torch.testing.assert_close(loss(outputs, targets), (outputs[:, 0] - targets) ** 2)
    assert pickle.loads(pickle.dumps(loss)) == loss
    for name, words in (("reduced", r"shape \(\) for 5"), ("number", "a float"), ("column", r"shape \(5, 1\)")):
        with pytest.raises(ConfigError, match=words):
            find_loss(user + name)(outputs, targets)
    with pytest.raises(ConfigError, match="is a int"):
        find_loss(user + "constant")


def test_users_losses_may_say_how_many_outputs_they_need(user: str) -> None:
    assert outputs_for(user + "survival", None) == 7
    assert outputs_for(user + "squared", 3) == 3
    with pytest.raises(ConfigError, match="`outputs`"):
        outputs_for(user + "squared", None)


def test_users_losses_may_say_that_they_are_of_whole_batches(user: str) -> None:
    loss = find_loss(user + "total")
    assert (loss.couples, loss.targets, loss.outputs) == (True, ("n", 2), 1)
    assert loss(torch.zeros(4, 1), torch.ones(4, 2)).item() == 4
    with pytest.raises(ConfigError, match="one number, for its attribute couples is true"):
        find_loss(user + "apart")(torch.zeros(4, 1), torch.ones(4, 2))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("cross_entropy", (10,), r"takes targets \[n\], but those of the data are \[n, 10\]; name one column"),
        ("cox", (), r"takes targets \[n, 2\], but those of the data are \[n\]; name the columns with data.label"),
        ("cox", (3,), r"\[n, 2\], but those of the data are \[n, 3\]"),
        ("bce", (2, 2), r"\[n, outputs\], but those of the data are \[n, 2, 2\]"),
        ("squared", (4,), r"set your loss's attribute targets = \('n', 4\)"),
        ("odd", (4,), r"give a tuple such as"),
    ],
)
def test_targets_that_a_loss_does_not_take_are_refused(user: str, name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        outputs_for(name if name in LOSSES.parts() else user + name, None, shape)


def test_outputs_follow_from_the_targets_where_the_loss_says_so(user: str) -> None:
    assert outputs_for("bce", None, (7,)) == 7
    assert outputs_for("cox", None, (2,)) == 1
    assert outputs_for(user + "total", None, (2,)) == 1
