"""The price of the best of a random number of trials, and the random number itself."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import LedgerError
from fedray.privacy.accounting import accountant, renyi
from fedray.privacy.accounting.event_json import canonical, from_canonical, from_json, to_json
from fedray.privacy.accounting.events import (
    Composed,
    Event,
    Gaussian,
    Laplace,
    Poisson,
    PureDp,
    RepeatAndSelect,
    SelfComposed,
    TruncatedPoisson,
    Unsupported,
    Wor,
)
from fedray.privacy.accounting.repetition import Repetitions

MNIST = SelfComposed(3750, Poisson(Fraction(1, 250), Gaussian(1.3)))
SMALL = SelfComposed(100, Poisson(Fraction(1, 10), Gaussian(1.8356)))


@pytest.mark.parametrize(
    ("event", "delta", "mean", "shape", "published"),
    [
        (MNIST, 1e-5, None, 0.0, 0.922),
        (MNIST, 1e-5, 10.0, 0.0, 1.645),
        (MNIST, 1e-5, 30.0, 0.0, 1.825),
        (MNIST, 1e-5, 100.0, 0.0, 2.000),
        (MNIST, 1e-5, 10.0, 1.0, 1.977),
        (SMALL, 3e-4, None, 0.0, 2.285),
        (SMALL, 3e-4, 10.0, 0.0, 4.185),
    ],
)
def test_the_golden_values_are_met(event: Event, delta: float, mean: float | None, shape: float, published: float) -> None:
    charged = event if mean is None else RepeatAndSelect(mean, shape, (event,))
    assert accountant.epsilon({charged: 1}, delta, "rdp") == pytest.approx(published, rel=3e-3)
    if mean is not None:  # privacy-loss distributions do not bound it, so Renyi DP gives the headline
        assert accountant.bound({charged: 1}, delta) == accountant.epsilon({charged: 1}, delta, "rdp")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mean=st.floats(1.001, 300.0), shape=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.05, 5.0)), z=st.floats(0.6, 8.0))
def test_the_cost_is_that_of_dp_accounting(mean: float, shape: float, z: float) -> None:
    direct = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    inner = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(z)), 40)
    direct.compose(dp_event.RepeatAndSelectDpEvent(inner, mean, shape))
    ours = accountant.epsilon({RepeatAndSelect(mean, shape, (SelfComposed(40, Poisson(Fraction(1, 20), Gaussian(z))),)): 1}, 1e-5, "rdp")
    assert ours == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6)


def test_of_several_mechanisms_the_largest_divergence_of_each_order_counts() -> None:
    # Laplace noise is the worse mechanism at low orders, Gaussian noise at high ones.
    one, other = Gaussian(3.0), Laplace(1.5)
    vectors = [renyi.vector(event, "zero_out") for event in (one, other)]
    assert any(vectors[0] > vectors[1]) and any(vectors[1] > vectors[0])
    both = renyi.vector(RepeatAndSelect(10.0, 0.0, (one, other)), "zero_out")
    np.testing.assert_allclose(both, renyi.selected(np.maximum(*vectors), Repetitions(10.0, 0.0)))
    for single in (one, other):
        assert (both >= renyi.vector(RepeatAndSelect(10.0, 0.0, (single,)), "zero_out") - 1e-12).all()


def test_it_composes_with_earlier_charges_by_renyi_dp() -> None:
    sealed = RepeatAndSelect(10.0, 0.0, (SMALL,))
    together = accountant.bound({sealed: 1, SMALL: 1}, 3e-4)
    vectors = renyi.vector(sealed, "zero_out") + 100 * renyi.vector(Poisson(Fraction(1, 10), Gaussian(1.8356)), "zero_out")
    assert together == pytest.approx(renyi.epsilon(vectors, 3e-4))
    assert together > accountant.bound({sealed: 1}, 3e-4)
    assert accountant.bound({sealed: 2}, 3e-4) > together


def test_without_the_sampling_of_clients_it_costs_more() -> None:
    sealed = RepeatAndSelect(10.0, 0.0, (SelfComposed(3, Poisson(Fraction(1, 10), Gaussian(4.0))),))
    stripped = accountant.unamplified({sealed: 1})
    assert stripped == Counter({RepeatAndSelect(10.0, 0.0, (Composed((SelfComposed(3, Gaussian(4.0)),)),)): 1})
    assert accountant.bound(stripped, 1e-5) > accountant.bound({sealed: 1}, 1e-5)


def test_replace_one_doubles_the_sensitivity_inside_as_well() -> None:
    wor = Wor(100, 10, Gaussian(4.0))
    sealed = RepeatAndSelect(5.0, 1.0, (SelfComposed(7, wor),))
    inner = 7 * renyi.vector(wor, "replace_one")
    np.testing.assert_allclose(renyi.vector(sealed, "replace_one"), renyi.selected(inner, Repetitions(5.0, 1.0)))
    assert accountant.bounded(((RepeatAndSelect(5.0, 1.0, (PureDp(1.0),)), 1),), "rdp", "replace_one")


@pytest.mark.parametrize(
    "inner", [TruncatedPoisson(100, Fraction(1, 10), 30, 2.0), Unsupported("a release"), RepeatAndSelect(3.0, 0.0, (Gaussian(1.0),))]
)
def test_what_renyi_dp_does_not_bound_is_refused(inner: Event) -> None:
    with pytest.raises(LedgerError, match="does not bound the event"):
        accountant.bound({RepeatAndSelect(10.0, 0.0, (Gaussian(2.0), inner)): 1}, 1e-5)


def test_the_json_form_is_read_back_and_checked() -> None:
    event = RepeatAndSelect(10.0, 0.0, (MNIST, Gaussian(2.0)))
    assert from_json(to_json(event)) == event == from_canonical(canonical(event))
    with pytest.raises(LedgerError, match="mean of at least 1"):
        from_json({"repeat_and_select": {"mean": 0.5, "shape": 0.0, "of": [to_json(MNIST)]}})
    with pytest.raises(LedgerError, match="one mechanism or more"):
        from_json({"repeat_and_select": {"mean": 2.0, "shape": 0.0, "of": []}})
    with pytest.raises(LedgerError, match="shape"):
        from_json({"repeat_and_select": {"mean": 2.0, "shape": -1.0, "of": [to_json(MNIST)]}})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mean=st.floats(1.0, 200.0), shape=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.01, 8.0)))
def test_the_number_of_trials_has_the_stated_mean(mean: float, shape: float) -> None:
    drawn = Repetitions(mean, shape)
    total = expected = 0.0
    for k, p in enumerate(drawn.probabilities(), start=1):
        total, expected = total + p, expected + k * p
        if p * k < 1e-13 and k > 3 * mean:
            break
    assert total == pytest.approx(1.0, abs=1e-7)
    assert expected == pytest.approx(mean, rel=1e-5)
    assert drawn.number(1e-17) == 1
    assert 1 <= drawn.number(0.5) <= drawn.number(0.99) <= drawn.number(1 - 2.0**-53)


def test_the_distributions_are_the_named_ones() -> None:
    geometric = Repetitions(4.0, 1.0).probabilities()
    for k in range(1, 20):
        assert next(geometric) == pytest.approx(0.25 * 0.75 ** (k - 1))
    drawn = Repetitions(10.0, 0.0)
    gamma = drawn.lowest_gamma
    logarithmic = drawn.probabilities()
    for k in range(1, 20):
        assert next(logarithmic) == pytest.approx((1 - gamma) ** k / (k * math.log(1 / gamma)))
