"""Events and accountants: round trips, what each accountant refuses, caches."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from fractions import Fraction

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.rdp import RdpAccountant
from scipy.stats import binom

from fedray.errors import ConfigError, LedgerError
from fedray.privacy.accounting import accountant, event_json, events, pld, renyi
from fedray.privacy.accounting.accountant import (
    Accountant,
    affordable,
    bound,
    bounded,
    calibrate,
    epsilon,
    flatten,
    person_epsilon,
    unamplified,
)
from fedray.privacy.accounting.events import (
    Adjacency,
    Composed,
    DistributedGaussian,
    Event,
    Gaussian,
    Laplace,
    Poisson,
    PoissonGroup,
    PureDp,
    RepeatAndSelect,
    SelfComposed,
    Skellam,
    Tree,
    TruncatedPoisson,
    Unsupported,
    Wor,
    ZCdp,
)

HALF = Fraction(1, 2)
GRID = DistributedGaussian(10, 50.0, 150.0, 900.0, 1024)
SKELLAM = Skellam(25_000.0, 150.0, 900.0)
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
    PureDp(1.5),
    GRID,
    SKELLAM,
    Poisson(Fraction(1, 20), GRID),
    Poisson(Fraction(1, 20), SKELLAM),
]


@pytest.mark.parametrize("event", ALL, ids=lambda e: type(e).__name__)
def test_an_event_survives_json_exactly(event: Event) -> None:
    text = event_json.canonical(event)
    again = event_json.from_json(json.loads(text))
    assert again == event
    assert hash(again) == hash(event)
    assert event_json.canonical(again) == text


def test_the_schema_is_the_written_one() -> None:
    assert event_json.to_json(SelfComposed(20, STEP)) == {"self": {"count": 20, "of": {"poisson": {"q": [1, 20], "of": {"gaussian": 1.1}}}}}


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
        {"pure_dp": -0.5},
        {"pure_dp": {"epsilon": 1.0}},
        {"skellam": {"variance": 1.0, "l2": 1.0}},
        {"skellam": {"variance": -1.0, "l2": 1.0, "l1": 1.0}},
        {"distributed_gaussian": {"clients": 0, "sigma": 1.0, "l2": 1.0, "l1": 1.0, "dimension": 1}},
        {"distributed_gaussian": {"clients": 2.0, "sigma": 1.0, "l2": 1.0, "l1": 1.0, "dimension": 1}},
        {"distributed_gaussian": {"clients": 2, "sigma": 1.0, "l2": 1.0, "l1": 1.0}},
    ],
)
def test_what_is_not_an_event_is_refused(data: object) -> None:
    with pytest.raises(LedgerError, match="event"):
        event_json.from_json(data)


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


#: Which accountant bounds which event under which adjacency; everything else is refused.
ZERO_OUT: list[tuple[Accountant, Adjacency]] = [("pld", "zero_out"), ("rdp", "zero_out")]
REPLACE_ONE: list[tuple[Accountant, Adjacency]] = [("pld", "replace_one"), ("rdp", "replace_one")]
VALID: list[tuple[Event, list[tuple[Accountant, Adjacency]]]] = [
    (Gaussian(1.0), ZERO_OUT + REPLACE_ONE),
    (Unsupported("x"), ZERO_OUT + REPLACE_ONE),
    (Laplace(1.0), ZERO_OUT),
    (ZCdp(0.1), ZERO_OUT[1:]),
    (Tree(4.0, 10), ZERO_OUT[1:]),
    (GRID, ZERO_OUT[1:]),
    (SKELLAM, ZERO_OUT[1:]),
    (PureDp(1.0), REPLACE_ONE),
    (Wor(10, 2, Gaussian(2.0)), REPLACE_ONE),
    (TruncatedPoisson(10, HALF, 9, 1.0), ZERO_OUT[:1]),
    (PoissonGroup(HALF, 3, 1.0), ZERO_OUT[:1]),
    (Poisson(HALF, Gaussian(1.0)), [*ZERO_OUT, REPLACE_ONE[0]]),
    (Poisson(HALF, SelfComposed(2, Gaussian(1.0))), [*ZERO_OUT, REPLACE_ONE[0]]),
    (Poisson(HALF, Laplace(1.0)), ZERO_OUT[:1]),
    (Poisson(HALF, GRID), ZERO_OUT[1:]),
    (Poisson(HALF, SKELLAM), ZERO_OUT[1:]),
    (Poisson(HALF, ZCdp(0.1)), []),
    (Poisson(HALF, Tree(4.0, 10)), []),
    (Poisson(HALF, PureDp(1.0)), []),
    (Poisson(HALF, TruncatedPoisson(10, HALF, 9, 1.0)), []),
    (Poisson(HALF, Wor(10, 2, Gaussian(2.0))), []),
    (Poisson(HALF, Unsupported("x")), []),
    (Poisson(HALF, Poisson(HALF, Gaussian(1.0))), []),
    (Poisson(HALF, SelfComposed(2, GRID)), []),
    (Poisson(HALF, Composed((Gaussian(1.0), Laplace(1.0)))), []),
    (RepeatAndSelect(10.0, 0.0, (Gaussian(3.0), Composed((Gaussian(4.0), Gaussian(5.0))))), [ZERO_OUT[1], REPLACE_ONE[1]]),
    (RepeatAndSelect(10.0, 0.0, (Gaussian(3.0), Laplace(2.0))), ZERO_OUT[1:]),
    (RepeatAndSelect(10.0, 0.0, (PureDp(1.0),)), REPLACE_ONE[1:]),
    (RepeatAndSelect(10.0, 0.0, (TruncatedPoisson(10, HALF, 9, 1.0),)), []),
    (Poisson(HALF, RepeatAndSelect(10.0, 0.0, (Gaussian(3.0),))), []),
]


def test_the_table_names_every_kind_of_event() -> None:
    named = {type(event) for event, _ in VALID} | {type(event.of) for event, _ in VALID if isinstance(event, Poisson)}
    assert named == set(events.KINDS.values())


@pytest.mark.parametrize("adjacency", ["zero_out", "replace_one"])
@pytest.mark.parametrize("by", ["pld", "rdp"])
@pytest.mark.parametrize(("event", "valid"), VALID, ids=[event_json.canonical(e) for e, _ in VALID])
def test_an_accountant_refuses_what_it_does_not_bound(
    event: Event, valid: list[tuple[Accountant, Adjacency]], by: Accountant, adjacency: Adjacency
) -> None:
    assert bounded(flatten({event: 3}), by, adjacency) == ((by, adjacency) in valid)
    if (by, adjacency) in valid:
        assert 0 < epsilon({event: 1}, 1e-5, by, adjacency=adjacency) <= epsilon({event: 3}, 1e-5, by, adjacency=adjacency) + 1e-9
        assert bound({event: 1}, 1e-5, adjacency=adjacency) <= epsilon({event: 1}, 1e-5, by, adjacency=adjacency)
        return
    other = ("rdp" if by == "pld" else "pld", adjacency) in valid
    with pytest.raises(LedgerError, match=f"the accountant {by} does not bound") as refusal:
        epsilon({event: 1, Gaussian(1.0): 1}, 1e-5, by, adjacency=adjacency)
    assert f"under {adjacency.replace('_', '-')} adjacency" in str(refusal.value)
    assert ("; use " in str(refusal.value)) == other
    if not other:
        with pytest.raises(LedgerError, match="nothing more may be charged"):
            bound({event: 1}, 1e-5, adjacency=adjacency)


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(0.0),
        Poisson(HALF, Gaussian(0.0)),
        Laplace(0.0),
        TruncatedPoisson(10, HALF, 9, 0.0),
        DistributedGaussian(2, 0.0, 1.0, 1.0, 1),
    ],
    ids=event_json.canonical,
)
def test_a_mechanism_without_noise_has_no_finite_epsilon(event: Event) -> None:
    assert (
        bound({event: 1}, 1e-5)
        == bound({event: 1, STEP: 5} if not isinstance(event, DistributedGaussian) else {event: 2}, 1e-5)
        == math.inf
    )


def test_a_nested_sample_can_never_be_charged() -> None:
    with pytest.raises(LedgerError, match="nothing more may be charged"):
        bound({Poisson(Fraction(1, 2), SelfComposed(3, STEP)): 1}, 1e-5)


@pytest.mark.parametrize("name", ["gdp", "prv", "moments"])
def test_other_accountants_are_not_offered(name: str) -> None:
    with pytest.raises(ConfigError, match="use pld or rdp"):
        epsilon({STEP: 1}, 1e-5, name)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="delta"):
        epsilon({STEP: 1}, 0.0)


@pytest.mark.parametrize("adjacency", ["zero_out", "replace_one"])
def test_whole_orders_alone_have_the_same_divergences(adjacency: events.Adjacency) -> None:
    whole = renyi.orders() == np.rint(renyi.orders())
    assert 0 < whole.sum() < len(whole)
    event: events.Event = Poisson(Fraction(1, 50), Gaussian(1.3)) if adjacency == "zero_out" else events.Wor(100, 7, Gaussian(1.3))
    every, some = (renyi.vector(event, adjacency, whole=only) for only in (False, True))
    assert np.array_equal(some[whole], every[whole])
    assert np.isinf(some[~whole]).all()
    assert renyi.epsilon(some, 1e-5) >= renyi.epsilon(every, 1e-5)


def test_a_divergence_lost_to_cancellation_is_not_a_free_release() -> None:
    vector = renyi.vector(Poisson(Fraction(1, 10**9), Gaussian(50.0)), "zero_out")
    assert (vector > 0).all()
    assert not np.isnan(vector).any()


def test_another_round_costs_almost_nothing_to_account_for_by_rdp() -> None:
    def seconds(*charges: dict[Event, int]) -> float:
        start = time.process_time()
        for spent in charges:
            epsilon(spent, 1e-5, "rdp")
        return (time.process_time() - start) / len(charges)

    first = seconds({Poisson(Fraction(1, 997), Gaussian(1.23)): 1})  # its divergence is computed; afterwards it is remembered
    epsilon({STEP: 1}, 1e-5, "rdp")
    assert seconds(*({STEP: n} for n in range(2, 502))) < first / 5


def test_a_thousand_clients_of_few_histories_cost_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[object] = []
    inner = pld.epsilon
    monkeypatch.setattr(accountant.pld, "epsilon", lambda *a: counted.append(a) or inner(*a))
    event = SelfComposed(7, Poisson(Fraction(1, 17), Gaussian(1.3)))
    figures = [epsilon({event: 1 + i % 3}, 1e-5) for i in range(1000)]
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


def test_calibration_of_events_that_one_accountant_bounds() -> None:
    def local(z: float) -> Event:
        return Gaussian(z)

    def fixed(z: float) -> Event:
        return Wor(100, 10, Gaussian(z))

    for event_of in (local, fixed):
        z = calibrate(event_of, 20, 1e-5, 3.0, adjacency="replace_one")
        assert (
            bound({event_of(z): 20}, 1e-5, adjacency="replace_one") <= 3.0 < bound({event_of(z * 0.999): 20}, 1e-5, adjacency="replace_one")
        )
    assert calibrate(local, 20, 1e-5, 3.0, adjacency="replace_one") == pytest.approx(2 * calibrate(local, 20, 1e-5, 3.0), rel=1e-3)

    def ring(z: float) -> Event:
        return Poisson(Fraction(1, 10), DistributedGaussian(10, z * 150.0 / math.sqrt(10), 150.0, 900.0, 1024))

    def capped(z: float) -> Event:
        return TruncatedPoisson(100, Fraction(1, 10), 25, z)

    for event_of in (ring, capped):
        z = calibrate(event_of, 20, 1e-5, 3.0)
        assert bound({event_of(z): 20}, 1e-5) <= 3.0 < bound({event_of(z * 0.999): 20}, 1e-5)
    with pytest.raises(LedgerError, match="nothing more may be charged"):
        calibrate(lambda z: Poisson(HALF, Tree(z, 3)), 1, 1e-5, 3.0)


def test_replace_one_reaches_every_function() -> None:
    spent: dict[Event, int] = {Gaussian(8.0): 10}
    swapped = bound(spent, 1e-5, adjacency="replace_one")
    assert swapped == pytest.approx(bound({Gaussian(4.0): 10}, 1e-5))
    assert person_epsilon([spent], 1e-5, 1, "replace_one") == swapped
    assert person_epsilon([spent] * 2, 1e-5, 2, "replace_one") == pytest.approx(epsilon({Gaussian(4.0): 20}, 1e-5, "rdp"))
    assert affordable(spent, 1e-5, swapped, adjacency="replace_one")
    assert not affordable(spent, 1e-5, swapped - 0.01, adjacency="replace_one")


def test_client_sampling_is_stripped_for_whoever_knows_the_cohorts() -> None:
    spent: dict[Event, int] = {
        Poisson(HALF, Gaussian(2.0)): 3,
        TruncatedPoisson(10, HALF, 9, 2.0): 4,
        Wor(10, 2, Gaussian(2.0)): 5,
        Poisson(HALF, Composed((GRID, SelfComposed(2, SKELLAM)))): 6,
        SelfComposed(7, Gaussian(2.0)): 1,
        Tree(4.0, 10): 2,
    }
    assert unamplified(spent) == {Gaussian(2.0): 19, GRID: 6, SKELLAM: 12, Tree(4.0, 10): 2}
    assert unamplified({}) == {}


@pytest.mark.parametrize(("limit", "count"), [(0.3, 1), (0.7, 10), (0.0105, 1000), (2.0, 12), (0.0, 5)])
def test_pure_mechanisms_compose_as_randomised_response_does(limit: float, count: int) -> None:
    """Kairouz, Oh & Viswanath 2015: delta of k-fold randomised response is a sum over binomial outcomes."""
    spent: dict[Event, int] = {PureDp(limit): count}
    figure, delta = epsilon(spent, 1e-5, adjacency="replace_one"), 1e-5
    outcomes = np.arange(count + 1)
    weights = binom.pmf(outcomes, count, 1 / (1 + math.exp(limit)))

    def exact(at: float) -> float:
        return float(np.sum(weights * np.maximum(0.0, -np.expm1(at - (count - 2 * outcomes) * limit))))

    assert exact(figure) <= delta * (1 + 1e-9)
    assert figure == 0 or exact(figure - 2e-3) > delta
    assert figure <= min(count * limit, epsilon(spent, delta, "rdp", adjacency="replace_one")) + 1e-6
    library = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    library.compose(dp.RandomizedResponseDpEvent(2.0 * math.exp(-limit) / (1.0 + math.exp(-limit)), 2))
    assert renyi.vector(PureDp(limit), "replace_one") == pytest.approx(library.rdp, rel=1e-9, abs=2e-15)


def test_a_pure_mechanism_of_an_absurd_epsilon_is_not_underestimated() -> None:
    assert bound({PureDp(900.0): 1}, 1e-5, adjacency="replace_one") >= 899.0


@pytest.mark.parametrize("q", [0.001, 0.02, 0.3])
@pytest.mark.parametrize("sigma", [0.7, 1.5, 6.0])
def test_the_bound_for_any_mechanism_on_a_poisson_sample_is_near_the_exact_one_of_the_gaussian(q: float, sigma: float) -> None:
    exact = renyi.vector(Poisson(events.rate(q), Gaussian(sigma)), "zero_out")
    for order, truth in zip(renyi.orders(), exact, strict=True):
        if order.is_integer():
            inner = np.arange(2, order + 1) / (2 * sigma**2)
            found = renyi.poisson_bound(q, inner)
            assert truth * (1 - 1e-9) - 1e-12 <= found <= min(inner[-1], truth + math.log(3) / (order - 1)) + 1e-12


@pytest.mark.parametrize("noise", [GRID, SKELLAM])
def test_integer_noise_costs_more_than_gaussian_noise_and_a_sample_of_it_less(noise: Event) -> None:
    whole = np.array([order.is_integer() for order in renyi.orders()])
    alone = renyi.vector(noise, "zero_out")
    gaussian = renyi.vector(Gaussian(math.sqrt(25_000) / 150), "zero_out")
    assert np.isinf(alone[~whole]).all()
    assert (alone[whole] >= gaussian[whole] * (1 - 1e-12)).all()
    sampled = renyi.vector(Poisson(Fraction(1, 20), noise), "zero_out")
    assert (sampled[whole] <= alone[whole]).all()
    assert (sampled[whole] >= renyi.vector(Poisson(Fraction(1, 20), Gaussian(math.sqrt(25_000) / 150)), "zero_out")[whole] - 1e-12).all()
    assert bound({Poisson(Fraction(1, 20), noise): 10, Gaussian(3.0): 2, Tree(4.0, 10): 1}, 1e-5) < bound({noise: 10}, 1e-5)


def test_a_fixed_cohort_of_everybody_is_the_gaussian() -> None:
    everybody: dict[Event, int] = {Wor(7, 7, Gaussian(2.0)): 3}
    for by in ("pld", "rdp"):
        figure = epsilon(everybody, 1e-5, by, adjacency="replace_one")  # type: ignore[arg-type]
        assert figure == pytest.approx(epsilon({Gaussian(2.0): 3}, 1e-5, by, adjacency="replace_one"), rel=2e-3)  # type: ignore[arg-type]


def test_one_more_round_costs_one_self_composition_and_few_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[str] = Counter()
    for name in ("compose", "self_compose"):
        inner = getattr(PrivacyLossDistribution, name)
        monkeypatch.setattr(PrivacyLossDistribution, name, lambda *a, f=inner, n=name, **k: counted.update([n]) or f(*a, **k))
    monkeypatch.setattr(pld, "_kept", pld._Cache(pld._POINTS_KEPT))
    phases = [Poisson(Fraction(1, 31 + i), Gaussian(4.0)) for i in range(32)]
    spent, most = Counter[Event](), 0
    for phase in phases:
        for _ in range(3):
            spent[phase] += 1
            counted.clear()
            epsilon(spent, 1e-5)
            assert counted["self_compose"] <= 1
            most = max(most, counted["compose"])
    assert 5 <= most <= 12


def test_what_is_kept_does_not_change_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: dict[Event, int] = {Poisson(Fraction(1, 41 + i), Gaussian(1.1)): 9 + i for i in range(5)} | {Gaussian(9.0): 3, Laplace(40.0): 2}
    grown: Counter[Event] = Counter()
    for event, count in reversed(spent.items()):
        for _ in range(2):
            grown[event] += count // 2
            epsilon(grown, 1e-5)
        grown[event] = count
    figure = epsilon(grown, 1e-5)
    for points in (pld._POINTS_KEPT, 0):
        monkeypatch.setattr(pld, "_kept", pld._Cache(points))
        accountant._epsilon.cache_clear()
        assert epsilon(spent, 1e-5) == figure


@pytest.mark.filterwarnings("ignore::RuntimeWarning:dp_accounting")
@pytest.mark.parametrize(
    "spent",
    [{Gaussian(1.0): 1}, {Gaussian(1e4): 3}, {STEP: 40, Gaussian(30.0): 2}, {Laplace(5.0): 2, STEP: 1}, {Gaussian(0.03): 1}],
    ids=lambda s: " ".join(map(event_json.canonical, s)),
)
def test_the_conversion_is_that_of_dp_accounting(spent: dict[Event, int]) -> None:
    distribution = pld._composed(flatten(spent), 1e-2, "zero_out")
    for delta in (0.999, 0.3, 1e-2, 1e-6, 1e-13, 1e-16):
        figure, theirs = pld.epsilon(flatten(spent), delta, 1e-2, "zero_out"), distribution.get_epsilon_for_delta(delta)
        if theirs == math.inf and spent == {Gaussian(0.03): 1}:  # dp-accounting divides by an underflow here
            assert 0 <= figure - dp.get_epsilon_gaussian(0.03, delta) < 1
        else:
            assert figure == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("broken", [[0.5, math.nan], [math.nan, 0.5]])
def test_a_broken_distribution_bounds_nothing(broken: list[float]) -> None:
    losses = DensePLDPmf(0.1, 1, np.array(broken[::-1]), 0.0, True)
    assert pld._convert(losses, 1e-5, 0.1) > 0.1


def test_distributions_are_kept_up_to_a_total_size() -> None:
    step = pld._once(Poisson(HALF, Gaussian(90.0)), 1e-3, "zero_out")
    size = step._pmf_remove.size + step._pmf_add.size
    kept = pld._Cache(3 * size - 1)
    for name in range(4):
        kept.put((name,), step)
    assert [name for name in range(4) if kept.get((name,)) is step] == [2, 3]
