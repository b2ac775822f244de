"""Lower bounds and estimates of epsilon: the stored vectors, the limits, and how often a bound is wrong."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from scipy import stats

from fedray.audit import bounds

VECTORS = Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data")).parent / "epsilon_vectors.json"


def vectors(kind: str) -> list[dict[str, Any]]:
    if not VECTORS.exists():
        pytest.skip(f"no test vectors at {VECTORS}")
    rows: list[dict[str, Any]] = json.loads(VECTORS.read_text())["audit"][kind]
    return rows


@pytest.mark.parametrize(("kind", "bound"), [("one_run", bounds.one_run), ("one_run_fdp_gaussian", bounds.one_run_gaussian)])
def test_one_run_bounds_are_those_of_the_vectors(kind: str, bound: Any) -> None:
    for row in vectors(kind):
        found = bound(row["m"], row["guesses"], row["correct"], row["delta"], row["significance"])
        assert found == pytest.approx(row["epsilon_lower"], abs=1e-6), row


def test_clopper_pearson_bounds_are_those_of_the_vectors() -> None:
    for row in vectors("clopper_pearson"):
        counts = (row["n_in"], row["n_out"], row["tp"], row["fp"])
        assert bounds.clopper_pearson(*counts, row["delta"], row["significance"]) == pytest.approx(row["epsilon_lower"], abs=1e-8), row


def test_the_ceiling_of_one_run_is_that_of_all_guesses_right() -> None:
    for r in (100, 400):
        p = 0.05 ** (1 / r)
        assert bounds.one_run(r, r, r, 0.0) == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def test_nothing_guessed_and_nothing_right_bound_nothing() -> None:
    assert bounds.one_run(100, 0, 0, 1e-5) == 0.0
    assert bounds.one_run_gaussian(100, 0, 0, 1e-5) == 0.0
    assert bounds.one_run(100, 50, 20, 1e-5) == 0.0
    assert bounds.one_run_gaussian(100, 50, 20, 1e-5) == 0.0
    assert bounds.clopper_pearson(100, 100, 0, 0, 0.0) == 0.0
    assert bounds.clopper_pearson(100, 100, 100, 100, 0.0) == 0.0
    assert bounds.gaussian(100, 100, 30, 30, 1e-5) == 0.0


def test_a_bound_never_falls_with_more_right_guesses() -> None:
    for bound in (bounds.one_run, bounds.one_run_gaussian):
        values = [bound(400, 100, v, 1e-4) for v in range(50, 101, 5)]
        assert values == sorted(values)


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
def test_gaussian_scores_give_the_epsilon_of_the_gaussian_mechanism(mu: float) -> None:
    # Scores with exactly the moments N(mu, 1) against N(0, 1).
    scores = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    scores = mu + (scores - scores.mean()) / scores.std(ddof=1)
    assert bounds.from_scores(scores, 0.0, 1.0, 1e-5) == pytest.approx(bounds.gaussian_epsilon(mu, 1e-5), abs=1e-4)
    if mu == 1.0:
        assert bounds.gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.37718, abs=1e-4)


@pytest.mark.parametrize(("std", "other"), [(1.0, 1.5), (1.5, 1.0), (0.7, 2.0)])
def test_the_hockey_stick_of_unlike_gaussians_is_that_of_the_integral(std: float, other: float) -> None:
    x = np.linspace(-40, 40, 400_001)
    for epsilon in (0.0, 0.3, 2.0):
        gap = stats.norm.pdf(x, 0.8, std) - math.exp(epsilon) * stats.norm.pdf(x, 0.0, other)
        by_integral = float(np.trapezoid(np.maximum(gap, 0.0), x))
        assert bounds._hockey_stick(epsilon, 0.8, std, 0.0, other) == pytest.approx(by_integral, abs=1e-6)


def test_scores_without_spread_are_told_apart_or_not_at_all() -> None:
    assert bounds.from_scores(np.ones(3), 0.0, 0.0, 1e-5) == math.inf
    assert bounds.from_scores(np.zeros(3), 0.0, 0.0, 1e-5) == 0.0


def test_lower_bounds_are_above_the_truth_in_no_more_than_one_case_of_twenty() -> None:
    """Randomised response at epsilon 1, by exact counts; 300 repetitions.

    If a bound were wrong with probability 0.05 each time, more than 32 of 300 would come up with probability 2e-5.
    """
    draws, truth, m = np.random.default_rng(7), 1.0, 200
    right = math.exp(truth) / (1 + math.exp(truth))
    wrong = {"one_run": 0, "clopper_pearson": 0}
    for _ in range(300):
        correct = int(draws.binomial(m, right))
        wrong["one_run"] += bounds.one_run(m, m, correct, 0.0) > truth
        hits, alarms = int(draws.binomial(m, right)), int(draws.binomial(m, 1 - right))
        wrong["clopper_pearson"] += bounds.clopper_pearson(m, m, hits, alarms, 0.0) > truth
    assert max(wrong.values()) <= 32


def test_a_gaussian_mechanism_is_bounded_more_tightly_as_such() -> None:
    """mu = 1 (epsilon 4.38): 5000 observations at a threshold where few others alarm."""
    n, threshold = 5000, 2.0
    hits, alarms = round(n * stats.norm.sf(threshold - 1)), round(n * stats.norm.sf(threshold))
    loose, tight = bounds.clopper_pearson(n, n, hits, alarms, 1e-5), bounds.gaussian(n, n, hits, alarms, 1e-5)
    assert 1.5 < loose < tight < bounds.gaussian_epsilon(1.0, 1e-5)
