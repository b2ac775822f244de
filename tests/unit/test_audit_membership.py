"""Membership inference: rates, thresholds, and models that remember or do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedray.audit.lira import confidence, lira_attack
from fedray.audit.membership import Target, auc, losses, membership_attack, roc, sides
from fedray.config import Training
from fedray.data.records import Federation, Records
from fedray.errors import FedrayError
from fedray.training.losses import find_loss

TRAINING = Training(lr=0.1, batch_size=16, epochs=40)


def records(n: int, seed: int) -> Records:
    """Pure noise: whoever predicts the labels remembers them."""
    draws = np.random.default_rng(seed)
    return Records(draws.standard_normal((n, 400)).astype(np.float32), draws.integers(0, 2, n))


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(400, 2)


def trained(on: Records) -> nn.Module:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        find_loss("cross_entropy")(model(torch.from_numpy(on.x)), torch.from_numpy(on.y)).mean().backward()
        optimizer.step()
    return model


def target(remembers: bool, epsilon: float | None = 0.3) -> Target:
    members, others = records(200, 1), records(200, 2)
    return Target(trained(members if remembers else records(200, 3)), find_loss("cross_entropy"), members, others, epsilon, 1e-4)


def test_rates_are_those_of_gaussians() -> None:
    draws = np.random.default_rng(0)
    inside, outside = draws.standard_normal(20_000) + 1, draws.standard_normal(20_000)
    fpr, tpr = roc(inside, outside)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.interp(0.1, fpr, tpr) == pytest.approx(stats.norm.sf(stats.norm.isf(0.1) - 1), abs=0.02)
    assert auc(inside, outside) == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.01)


def test_equal_scores_are_called_together() -> None:
    fpr, tpr = roc(np.zeros(5), np.zeros(7))
    assert fpr.tolist() == tpr.tolist() == [0.0, 1.0]
    assert auc(np.zeros(5), np.zeros(7)) == 0.5


@pytest.mark.parametrize("attack", ["loss", "ratio"])
def test_a_model_that_remembers_is_caught_and_one_that_does_not_is_not(attack: str) -> None:
    """False alarm: a lower bound above 0.3 on a model of other records, below one in 1000 (and the records are seeded)."""

    def found(remembers: bool) -> Any:
        aim = target(remembers)
        return membership_attack(aim) if attack == "loss" else lira_attack(aim, make, TRAINING, rounds=1, seed=0, shadows=8)

    caught, clean = found(True), found(False)
    assert caught.facts["auc"] > 0.8 and caught.violated and caught.private
    assert abs(clean.facts["auc"] - 0.5) < 0.1 and not clean.violated
    if attack == "ratio":  # where few are accused, the loss alone accuses those who are easy
        assert caught.facts["tpr_at_fpr_0.01"] > 0.1 > clean.facts["tpr_at_fpr_0.01"]


def test_shadows_stop_when_the_time_is_up_but_not_below_four() -> None:
    found = lira_attack(target(False), make, TRAINING, rounds=1, seed=0, shadows=8, budget=0.0)
    assert found.facts["shadows"] == 4


def test_shadows_that_diverge_are_left_out() -> None:
    with pytest.raises(FedrayError, match="every shadow model diverged"):
        lira_attack(target(False), make, TRAINING.model_copy(update={"lr": 1e38}), rounds=1, seed=0, shadows=2)


def test_confidence_is_the_log_odds() -> None:
    p = np.array([0.01, 0.5, 0.99])
    np.testing.assert_allclose(confidence(-np.log(p)), np.log(p / (1 - p)), rtol=1e-9)
    assert np.isfinite(confidence(np.array([0.0, 1e9]))).all()


def test_sides_are_equally_many_and_held_out_records_are_needed() -> None:
    train, test = records(50, 0), records(20, 1)
    offsets = np.array([0, 50])
    members, others = sides(Federation(["a"], train, offsets, test, None, None, 2), seed=0)
    assert len(members) == len(others) == 20
    both, more = sides(Federation(["a"], train, offsets, test, test, np.array([0, 20]), 2), seed=0)
    assert len(both) == len(more) == 40
    with pytest.raises(FedrayError, match="data.holdout"):
        sides(Federation(["a"], train, offsets, None, None, None, 2), seed=0)


def test_a_loss_that_is_not_finite_counts_as_the_largest() -> None:
    model = make()
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    assert np.isfinite(losses(model, find_loss("cross_entropy"), records(3, 0))).all()
