"""Canary records: where they go, how they are scored, and what a run with them shows.

Noise is cryptographic and has no seed here; each test says with what probability a sound audit would fail it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from audited import digits

from fedray.audit.canaries import Canaries, canary_attacks, make_canaries, score_attack, with_canaries
from fedray.audit.findings import Attack
from fedray.audit.local_run import LocalRun
from fedray.data.records import Federation, Records
from fedray.errors import FedrayError
from fedray.planning.preparation import prepare
from fedray.rng import generator


def federation(tokens: bool = False) -> Federation:
    draws = np.random.default_rng(0)
    x = draws.integers(0, 50, (30, 8)) if tokens else draws.standard_normal((30, 8)).astype(np.float32)
    return Federation(["a", "b", "c"], Records(x, draws.integers(0, 3, 30)), np.array([0, 5, 12, 30]), None, None, None, 3)


def canaries_of(fed: Federation, count: int) -> Canaries:
    return make_canaries(fed, count, generator(0, "test"))


def test_canaries_are_larger_than_records_and_dealt_evenly() -> None:
    fed = federation()
    canaries = canaries_of(fed, 31)
    assert np.bincount(canaries.clients).tolist() == [11, 10, 10]
    assert 0 < canaries.included.sum() < 31
    for k in range(3):
        median = np.median(np.linalg.norm(fed.client(k).train.x, axis=1))
        np.testing.assert_allclose(np.linalg.norm(canaries.records.x[canaries.clients == k], axis=1), 4 * median, rtol=1e-4)


def test_under_zero_out_every_place_stays_and_without_a_claim_only_half_do() -> None:
    fed = federation()
    canaries = canaries_of(fed, 30)
    zeroed, removed = with_canaries(fed, canaries, zeroed=True), with_canaries(fed, canaries, zeroed=False)
    assert zeroed.sizes.tolist() == [15, 17, 28]
    assert removed.sizes.sum() == 30 + canaries.included.sum()
    np.testing.assert_array_equal(removed.client(1).train.x[:7], fed.client(1).train.x)
    absent = np.isnan(zeroed.client(1).train.x).all(axis=1)
    np.testing.assert_array_equal(absent[7:], ~canaries.included[canaries.clients == 1])


def test_tokens_get_tokens() -> None:
    x = canaries_of(federation(tokens=True), 40).records.x
    assert x.dtype == np.int64 and x.min() >= 0 and x.max() < 50


def test_guesses_are_the_surest_eighths() -> None:
    scores = np.arange(80.0)
    included = scores >= 40
    found = score_attack("x", scores, included, 1.0, 1e-5, {})
    assert (found.facts["guesses"], found.facts["correct"]) == (20, 20)
    assert found.violated and found.verdict == "VIOLATED"
    reverse = score_attack("x", -scores, included, 1.0, 1e-5, {})
    assert (reverse.facts["correct"], reverse.lower, reverse.estimate) == (0, 0.0, 0.0)
    assert not reverse.violated


def test_scores_that_are_not_finite_are_no_reason_to_stay_quiet() -> None:
    scores = np.where(np.arange(80) % 2 == 0, np.nan, 1.0)
    assert score_attack("x", scores, np.arange(80) % 2 == 0, 1.0, 1e-5, {}).estimate == math.inf


def test_verdicts() -> None:
    assert Attack("x", 0.1, 3.0, 1.0, at_least=1.6).verdict == "estimate suspicious"
    assert Attack("x", 0.1, 3.0, 1.0, at_least=1.4).verdict == "consistent"
    assert Attack("x", 0.1, 3.0, None).verdict == "nothing proven"
    assert Attack("x", None, None, None).verdict == "demonstration"
    assert Attack("x", math.inf, None, 1.0).row()["lower"] == "infinity"


@pytest.mark.parametrize(("rule", "combine"), [("mean", partial(np.mean, axis=0)), ("median", partial(np.median, axis=0))])
def test_a_local_run_trains_as_the_run_does(rule: str, combine: Any) -> None:
    """Without privacy, where nothing is random but the batches: the model improves, and cohorts are those of the config."""
    sections = ("privacy={regime: none}", "cohort={kind: fixed, size: 3}", "training.engine=auto", "algorithm.weights=uniform")
    prepared = prepare(digits(*sections, f"aggregation.kind={rule}"))
    assert prepared.federation is not None and prepared.model is not None
    local = LocalRun(prepared, prepared.federation)
    released = list(local.run(4, seed=1))
    assert len(released) == 12 == local.participations.sum()
    assert not np.array_equal(local.weights, prepared.model.weights.value)
    np.testing.assert_array_equal(released[0].before, prepared.model.weights.value)
    of_first = [r.update for r in released if r.round == 0]
    second = next(r.before for r in released if r.round == 1)
    np.testing.assert_allclose(second - released[0].before, combine(of_first), rtol=0, atol=1e-6)


def test_much_leaks_without_privacy_and_little_with_it() -> None:
    """With z = 2 the bound is some 0.8 of 2.96: the sound run would fail by chance in less than 1 of 10,000 cases."""
    open_ = prepare(digits("privacy={regime: none}", "rounds=10"))
    private = prepare(digits("rounds=10"))
    assert open_.federation is not None and private.federation is not None
    _, without = canary_attacks(open_, open_.federation, 400, seed=0)
    _, with_ = canary_attacks(private, private.federation, 400, seed=0)
    assert without.epsilon is None and without.lower is not None and without.lower > 2.5
    assert with_.epsilon == pytest.approx(2.963, abs=0.01)
    assert with_.lower is not None and with_.lower < with_.epsilon
    assert with_.estimate is not None and 0.5 < with_.estimate < 6.0


def test_too_few_canaries_are_refused() -> None:
    prepared = prepare(digits())
    assert prepared.federation is not None
    with pytest.raises(FedrayError, match="--canaries 4"):
        canary_attacks(prepared, prepared.federation, 4, seed=0)
