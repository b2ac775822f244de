"""Cohorts by weight with unbiased updates, and cohorts of those on which the model does worst."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtualray import drive

from fedray.aggregation.exact import FULL
from fedray.clients.messages import ClientReport, ClientTask
from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.privacy.regime import Regime
from fedray.rounds.cohort import Population
from fedray.rounds.drawing import CohortDraw
from fedray.rounds.importance import chances
from fedray.rounds.power_of_choice import power_of_choice

CHOICE = {"kind": "power_of_choice", "size": 2, "candidates": 6}


def config(**sections: Any) -> Config:
    raw = {
        "name": "t",
        "seed": 3,
        "rounds": 1,
        "data": {"source": "sklearn:digits", "partition": {"kind": "quantity", "clients": 4, "power": 1.0}},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.1, "batch_size": 20, "epochs": 1},
        "evaluation": {"metrics": []},
        "tracking": {"enabled": False},
    }
    return build_config({**raw, **sections})


def population(records: list[int], losses: list[float]) -> Population:
    there, one, sizes = np.ones(len(records), dtype=np.bool_), np.ones(len(records)), np.array(records)
    return Population(there, one, 0, 0, sizes, sizes.astype(np.float64), np.array(losses))


@given(st.lists(st.floats(1e-3, 1e6) | st.just(0.0), min_size=1, max_size=30), st.integers(1, 30))
@settings(max_examples=30)
def test_chances_times_factors_are_one_share(weights: list[float], size: int) -> None:
    found = chances(np.array(weights), size)
    able = np.array(weights) > 0
    assert (found.drawn[~able] == 0).all() and (found.drawn[able] > 0).all() and (found.drawn <= 1).all()
    assert np.allclose(found.drawn[able] * found.factors[able] / FULL, found.share, rtol=1e-12, atol=0)
    assert ((found.factors >= 1) & (found.factors <= FULL)).all()
    wanted = min(size, int(able.sum()))
    assert wanted * 8 / 9 - 1e-9 <= found.drawn.sum() <= wanted + 1e-9


def test_larger_weights_have_larger_chances() -> None:
    found = chances(np.array([1.0, 2.0, 4.0, 1.0, 8.0]), 2)
    assert np.allclose(found.drawn, np.array([1, 2, 4, 1, 8]) / 8, rtol=0.15)
    assert found.drawn[4] == 1.0


def test_the_mean_over_all_draws_is_full_participation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through real rounds: the models after each cohort that coins can draw, times its probability, add up to that of all clients."""
    data = {"source": "sklearn:digits", "partition": {"kind": "quantity", "clients": 3, "power": 1.0}}
    given_ = config(data=data, cohort={"kind": "importance", "size": 1, "min_clients": 0})
    sizes = prepare(given_).sizes
    assert sizes is not None and len(set(sizes.tolist())) == 3
    chance = chances(sizes.astype(np.float64), 1).drawn
    assert (chance < 1).all()
    expected, total = 0.0, 0.0
    for n, drawn in enumerate(itertools.product([False, True], repeat=3)):
        probability = float(np.prod(np.where(drawn, chance, 1 - chance)))
        if probability:
            monkeypatch.setattr(Regime, "coins", lambda self, round_, drawn=drawn: np.where(drawn, 0.0, 1 - 1e-12))
            _, _, model = drive(given_, tmp_path / str(n), lambda client: 1.0, 2, monkeypatch)
            expected, total = expected + probability * model.astype(np.float64), total + probability
    _, _, everyone = drive(config(data=data), tmp_path / "all", lambda client: 1.0, 2, monkeypatch)
    assert total == pytest.approx(1.0)
    np.testing.assert_allclose(expected, everyone, rtol=0, atol=2e-6)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0, 10) | st.just(np.inf)), min_size=4, max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_those_with_the_largest_losses_are_taken(clients: list[tuple[int, float]], seed: int) -> None:
    records, losses = [n for n, _ in clients], [loss for _, loss in clients]
    coins = np.random.default_rng(seed).random(len(clients))
    taken = power_of_choice(population(records, losses), coins, size=2, candidates=len(clients))
    assert sorted(losses)[-2:] == sorted(losses[k] for k in taken)
    asked = power_of_choice(population(records, [1.0] * len(clients)), coins, size=3, candidates=3)
    some = power_of_choice(population(records, losses), coins, size=2, candidates=3)
    assert set(some.tolist()) <= set(asked.tolist())


def test_candidates_are_drawn_by_their_records() -> None:
    """Four thousand draws of one of three: a deviation of five standard errors has a probability below 1e-6."""
    draws, counts, rounds = np.random.default_rng(0), np.zeros(3), 4_000
    for _ in range(rounds):
        counts[power_of_choice(population([1, 2, 5], [1.0] * 3), draws.random(3), size=1, candidates=1)] += 1
    share = np.array([1, 2, 5]) / 8
    assert (np.abs(counts - rounds * share) < 5 * np.sqrt(rounds * share * (1 - share))).all()


def test_everyone_is_asked_once_and_then_those_with_the_largest_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, seen, learn = np.full(6, np.inf), list[list[int]](), CohortDraw.learn

    def learned(self: CohortDraw, reports: list[ClientReport]) -> None:
        seen.append(sorted(r.index for r in reports))
        if len(seen) > 3:
            assert seen[-1] == sorted(np.argsort(-losses, kind="stable")[:2].tolist())
        for r in reports:
            losses[r.index] = r.loss
        learn(self, reports)

    monkeypatch.setattr(CohortDraw, "learn", learned)
    given_ = config(rounds=5, data={"source": "sklearn:digits", "partition": {"kind": "shards", "clients": 6}}, cohort=CHOICE)
    _, _, model = drive(given_, tmp_path / "a", lambda client: 1.0, 2, monkeypatch)
    assert sorted(itertools.chain(*seen[:3])) == list(range(6)) and len(seen) == 5
    monkeypatch.undo()
    _, _, again = drive(given_, tmp_path / "b", lambda client: float(1 + client.index), 3, monkeypatch)
    assert model.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"cohort": {"kind": "importance", "size": 2}, "pacing": {"kind": "synchronous", "arrival": "simulated"}}, "synchronous rounds"),
        ({"cohort": {"kind": "importance", "size": 2}, "aggregation": {"kind": "median"}}, "which 'median' is no function of; use mean"),
        ({"cohort": {"kind": "importance", "size": 2}, "algorithm": {"kind": "scaffold"}}, "the clients of 'scaffold' send more"),
        ({"cohort": {"kind": "importance", "size": 9}}, "between 1 and the 4 clients"),
        ({"cohort": {**CHOICE, "candidates": 1}}, r"cohort\.candidates: should be between cohort\.size=2 and the 4 clients"),
        ({"cohort": {**CHOICE, "candidates": 4}, "algorithm": {"kind": "newton"}, "training": {}}, "do not train; use fixed"),
    ],
)
def test_what_they_mean_nothing_with_is_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare(config(**sections))


@pytest.mark.parametrize(
    ("cohort", "sections", "code"),
    [
        ({"kind": "importance", "size": 2}, {"regime": "client"}, "privacy.incompatible.client.cohort"),
        ({"kind": "importance", "size": 2}, {"regime": "local"}, "privacy.incompatible.client.cohort"),
        (CHOICE, {"regime": "client"}, "privacy.incompatible.client.losses"),
        (CHOICE, {"regime": "record"}, "privacy.incompatible.record.losses"),
        (CHOICE, None, "privacy.incompatible.secure.losses"),
    ],
)
def test_what_no_guarantee_covers_is_refused(cohort: dict[str, Any], sections: dict[str, Any] | None, code: str) -> None:
    more: dict[str, Any] = {"secure": {"kind": "secagg"}}
    if sections is not None:
        more = {"privacy": {"noise_multiplier": 9.0, "delta": 1e-2, **sections}, "algorithm": {"kind": "fedavg", "weights": "uniform"}}
    training = {"lr": 0.1, "sampling_rate": 0.1, "steps": 1, "expected_batch": 20} if sections == {"regime": "record"} else None
    more |= {} if training is None else {"training": training}
    with pytest.raises(PrivacyRefusal) as refused:
        check_only(config(cohort=cohort, **more))
    assert refused.value.code == code


def test_the_audit_and_others_may_draw_without_knowing_the_clients() -> None:
    alike = Population.of(np.ones(5, dtype=np.bool_), np.ones(5))
    assert alike.drawable.tolist() == [1.0] * 5 and ClientTask(0, "a").factor == FULL
