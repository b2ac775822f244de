"""Events and accountants: round trips, what each accountant refuses, caches."""

from __future__ import annotations

import json
import math
import time
from fractions import Fraction

import numpy as np
import pytest

from fedray.errors import ConfigError, LedgerError
from fedray.privacy import accounting, events
from fedray.privacy.accounting import affordable, bound, calibrate, epsilon, epsilon_many, flatten, person_epsilon
from fedray.privacy.events import Composed, Event, Gaussian, Laplace, Poisson, SelfComposed, Tree, TruncatedPoisson, Unsupported, Wor, ZCdp

STEP = Poisson(Fraction(1, 20), Gaussian(1.1))
ALL: list[Event] = [
    Gaussian(1.1),
    Laplace(2.0),
    ZCdp(0.25, 0.5),
    Tree(4.0, 100),
    STEP,
    TruncatedPoisson(100, Fraction(1, 10), 25, 1.0),
    Wor(100, 10, Gaussian(2.0)),
    SelfComposed(20, STEP),
    Composed((STEP, Gaussian(0.1 + 0.2))),
    Composed(()),
    Unsupported("a metric without noise"),
]


@pytest.mark.parametrize("event", ALL, ids=lambda e: type(e).__name__)
def test_an_event_survives_json_exactly(event: Event) -> None:
    text = events.canonical(event)
    again = events.from_json(json.loads(text))
    assert again == event
    assert hash(again) == hash(event)
    assert events.canonical(again) == text
    events.to_dp_event(event)


def test_the_schema_is_the_written_one() -> None:
    assert events.to_json(SelfComposed(20, STEP)) == {"self": {"count": 20, "of": {"poisson": {"q": [1, 20], "of": {"gaussian": 1.1}}}}}


def test_a_rate_is_what_its_decimals_say() -> None:
    assert events.rate(0.05) == Fraction(1, 20)
    assert events.rate(1e-5) == Fraction(1, 100_000)
    assert float(events.rate(0.1)) == 0.1


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"gaussian": 1.0, "laplace": 1.0},
        {"gauss": 1.0},
        {"gaussian": True},
        {"gaussian": "1"},
        {"gaussian": -1.0},
        {"poisson": {"q": 0.05, "of": {"gaussian": 1.0}}},
        {"poisson": {"q": [1, 0], "of": {"gaussian": 1.0}}},
        {"poisson": {"q": [3, 2], "of": {"gaussian": 1.0}}},
        {"poisson": {"q": [1, 2], "of": {"gaussian": 1.0}, "more": 1}},
        {"self": {"count": 0, "of": {"gaussian": 1.0}}},
        {"self": {"count": 1.0, "of": {"gaussian": 1.0}}},
        {"wor": {"n": 3, "m": 4, "of": {"gaussian": 1.0}}},
        {"wor": {"n": 3, "m": 2, "of": {"laplace": 1.0}}},
        {"composed": {"gaussian": 1.0}},
    ],
)
def test_what_is_not_an_event_is_refused(data: object) -> None:
    with pytest.raises(LedgerError, match="event"):
        events.from_json(data)


def test_nothing_spent_costs_nothing() -> None:
    for spent in ({}, {STEP: 0}, {Composed(()): 3}):
        assert epsilon(spent, 1e-5) == epsilon(spent, 1e-5, "rdp") == bound(spent, 1e-5) == 0.0


def test_compositions_are_unrolled() -> None:
    assert flatten({SelfComposed(20, STEP): 3, STEP: 2}) == ((STEP, 62),)
    assert flatten({Poisson(Fraction(1), Gaussian(2.0)): 4}) == ((Gaussian(2.0), 4),)
    with pytest.raises(LedgerError, match="negative"):
        flatten({STEP: -1})


def test_an_unsupported_release_makes_epsilon_infinite() -> None:
    spent: dict[Event, int] = {STEP: 10, Unsupported("x"): 1}
    assert epsilon(spent, 1e-5) == epsilon(spent, 1e-5, "rdp") == bound(spent, 1e-5) == math.inf
    assert not affordable(spent, 1e-5, 1e9)


@pytest.mark.parametrize(
    ("event", "by"),
    [
        (ZCdp(0.1), "pld"),
        (Tree(4.0, 10), "pld"),
        (Wor(10, 2, Gaussian(1.0)), "pld"),
        (Wor(10, 2, Gaussian(1.0)), "rdp"),
        (TruncatedPoisson(10, Fraction(1, 2), 9, 1.0), "rdp"),
        (Poisson(Fraction(1, 2), Laplace(1.0)), "rdp"),
        (Poisson(Fraction(1, 2), STEP), "pld"),
    ],
)
def test_an_accountant_refuses_what_it_does_not_bound(event: Event, by: accounting.Accountant) -> None:
    with pytest.raises(LedgerError, match=f"the accountant {by} does not bound"):
        epsilon({event: 1}, 1e-5, by)


def test_a_nested_sample_can_never_be_charged() -> None:
    with pytest.raises(LedgerError, match="nothing more may be charged"):
        bound({Poisson(Fraction(1, 2), SelfComposed(3, STEP)): 1}, 1e-5)


@pytest.mark.parametrize("name", ["gdp", "prv", "moments"])
def test_other_accountants_are_not_offered(name: str) -> None:
    with pytest.raises(ConfigError, match="use pld or rdp"):
        epsilon({STEP: 1}, 1e-5, name)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="delta"):
        epsilon({STEP: 1}, 0.0)


def test_a_divergence_lost_to_cancellation_is_not_a_free_release() -> None:
    vector = accounting._rdp_vector(Poisson(Fraction(1, 10**9), Gaussian(50.0)), "zero_out")
    assert (vector > 0).all()
    assert not np.isnan(vector).any()


def test_another_round_costs_almost_nothing_to_account_for_by_rdp() -> None:
    epsilon({STEP: 1}, 1e-5, "rdp")
    start = time.perf_counter()
    for n in range(2, 502):
        epsilon({STEP: n}, 1e-5, "rdp")
    assert (time.perf_counter() - start) / 500 < 2e-3


def test_a_thousand_clients_of_few_histories_cost_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[object] = []
    inner = accounting._pld_epsilon
    monkeypatch.setattr(accounting, "_pld_epsilon", lambda *a: counted.append(a) or inner(*a))
    event = SelfComposed(7, Poisson(Fraction(1, 17), Gaussian(1.3)))
    figures = epsilon_many([{event: 1 + i % 3} for i in range(1000)], 1e-5)
    assert len(counted) == len(set(figures)) == 3


def test_a_person_in_several_silos_costs_more_than_the_worst_silo_and_less_than_their_sum() -> None:
    spents: list[dict[Event, int]] = [{STEP: 100}, {STEP: 60}, {STEP: 20}, {}]
    single = [bound(s, 1e-5) for s in spents]
    assert person_epsilon(spents, 1e-5, 1) == max(single)
    two, three, all_ = (person_epsilon(spents, 1e-5, s) for s in (2, 3, 9))
    assert max(single) < two < three == all_
    assert two < sum(epsilon(s, 1e-5, "rdp") for s in spents[:2])
    assert two == pytest.approx(epsilon({STEP: 160}, 1e-5, "rdp"))
    assert person_epsilon([], 1e-5, 2) == 0.0


def test_calibration_counts_what_was_spent_before() -> None:
    spent: dict[Event, int] = {STEP: 100}
    z = calibrate(lambda z: Poisson(Fraction(1, 20), Gaussian(z)), 50, 1e-5, 4.0, spent=spent)
    assert epsilon({STEP: 100, Poisson(Fraction(1, 20), Gaussian(z)): 50}, 1e-5) <= 4.0
    assert z > calibrate(lambda z: Poisson(Fraction(1, 20), Gaussian(z)), 50, 1e-5, 4.0)


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match="privacy.target_epsilon: no noise multiplier"):
        calibrate(lambda z: Gaussian(z), 10**6, 1e-300, 1e-6)
