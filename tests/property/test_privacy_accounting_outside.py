"""Random histories: our epsilon is what dp-accounting gives when it is asked directly, from scratch and in one go."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedray.privacy.accounting.accountant import INTERVAL, Accountant, epsilon
from fedray.privacy.accounting.events import Event, Gaussian, Laplace, Poisson, SelfComposed

Segment = tuple[Fraction, float, int, str]


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """A phase of a schedule: rate, noise, steps, mechanism; noise grows with rate and steps, so that epsilon stays below some hundreds."""
    rate = draw(st.fractions(Fraction(1, 5000), Fraction(1, 2), max_denominator=5000))
    steps = draw(st.integers(1, 3000))
    least = 0.5 + 0.3 * float(rate) * steps**0.5
    noise = draw(st.floats(least, 4 * least))
    kind = draw(st.sampled_from(["sampled", "sampled", "sampled", "gaussian", "laplace"]))
    if kind == "gaussian":
        noise *= steps**0.5
    if kind == "laplace":
        steps = min(steps, 20)
        noise = 4.0 + noise * steps
    return rate, noise, steps, kind


def ours(segment: Segment) -> Event:
    rate, noise, _, kind = segment
    return {"sampled": Poisson(rate, Gaussian(noise)), "gaussian": Gaussian(noise), "laplace": Laplace(noise)}[kind]


def theirs(segment: Segment) -> dp.DpEvent:
    rate, noise, _, kind = segment
    if kind == "sampled":
        return dp.PoissonSampledDpEvent(float(rate), dp.GaussianDpEvent(noise))
    return dp.GaussianDpEvent(noise) if kind == "gaussian" else dp.LaplaceDpEvent(noise)


@pytest.mark.parametrize("by", ["rdp", "pld"])
@settings(max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=st.lists(segments(), min_size=1, max_size=4), exponent=st.floats(3.0, 8.0))
def test_epsilon_equals_a_direct_computation(by: Accountant, schedule: list[Segment], exponent: float) -> None:
    delta = 10.0**-exponent
    spent: Counter[Event] = Counter()
    for segment in schedule:
        spent[ours(segment)] += segment[2]
    direct = RdpAccountant() if by == "rdp" else PLDAccountant(value_discretization_interval=INTERVAL)
    for segment in schedule:
        direct.compose(theirs(segment), segment[2])
    assert epsilon(spent, delta, by) == pytest.approx(direct.get_epsilon(delta), rel=1e-6, abs=1e-12)


@settings(max_examples=15, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=st.lists(segments(), min_size=2, max_size=4), rounds=st.integers(2, 3))
def test_a_run_charged_round_by_round_costs_what_it_costs_in_one_go(schedule: list[Segment], rounds: int) -> None:
    """Each round is charged as it comes, the phases in any order, and epsilon is asked for after every one."""
    spent: Counter[Event] = Counter()
    figures = [0.0]
    for segment in schedule:
        for _ in range(rounds):
            spent[SelfComposed(segment[2], ours(segment))] += 1
            figures.append(epsilon(spent, 1e-5))
    direct = PLDAccountant(value_discretization_interval=INTERVAL)
    for segment in schedule:
        direct.compose(theirs(segment), segment[2] * rounds)
    assert figures[-1] == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6, abs=1e-12)
    assert all(b >= a - 1e-9 for a, b in pairwise(figures))
