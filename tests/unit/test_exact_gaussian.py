"""The exact sampler of the discrete Gaussian against its law, and the fact by which it is charged as a Gaussian.

Statistics fail for correct code with probability below 1e-6 each.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedray.errors import ConfigError
from fedray.privacy.csprng import Csprng, InsecureSeeded
from fedray.privacy.mechanisms.exactgaussian import EXTRA, exact_gaussian
from fedray.privacy.queryplan import noised_sums

ALPHA = 1e-6


@pytest.mark.parametrize("variance", [1, 2, 5, 40])
def test_small_variances_have_the_law_of_the_discrete_gaussian(variance) -> None:
    draws = exact_gaussian(variance, 20_000, InsecureSeeded(variance, 0, "law"))
    last = int(5 * variance**0.5) + 2
    k = np.arange(-last, last + 1)
    law = np.exp(-(k**2) / (2 * variance))
    seen = np.bincount(np.clip(draws, -last, last) + last, minlength=len(k))
    common = law / law.sum() * len(draws) >= 5
    expected = np.append(law[common], law[~common].sum()) / law.sum() * len(draws)
    found = np.append(seen[common], seen[~common].sum())
    assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > ALPHA


@pytest.mark.parametrize("variance", [10**6, 10**13, 2**90])
def test_large_variances_are_normal_to_the_eye(variance) -> None:
    draws = exact_gaussian(variance, 5_000, InsecureSeeded(1, 0, "large")) / variance**0.5
    assert stats.kstest(draws, "norm").pvalue > ALPHA


def test_no_variance_is_no_noise_and_streams_differ() -> None:
    assert not exact_gaussian(0, 9, Csprng()).any()
    assert (exact_gaussian(10**12, 9, Csprng()) != exact_gaussian(10**12, 9, Csprng())).any()
    with pytest.raises(ValueError, match="between 0"):
        exact_gaussian(1 << 101, 1, Csprng())


def test_around_any_real_number_the_normaliser_is_the_integral() -> None:
    """The one fact behind charging a discrete Gaussian as a Gaussian: see the text of the module under test."""
    with mpmath.workdps(80):
        bound = 2 * mpmath.exp(-2 * mpmath.pi**2 * EXTRA) * (1 + mpmath.mpf(10) ** -30)
        for place in range(21):
            y = mpmath.mpf(place) / 20
            total = mpmath.fsum(mpmath.exp(-((k - y) ** 2) / (2 * EXTRA)) for k in range(-60, 62))
            assert abs(total / mpmath.sqrt(2 * mpmath.pi * EXTRA) - 1) <= bound
        assert 2.2 * bound < mpmath.mpf("3e-34")


@given(
    st.floats(0.05, 200.0),
    st.lists(st.tuples(st.integers(1, 2**50), st.floats(0.01, 100.0)), min_size=1, max_size=6),
)
def test_all_sums_together_cost_at_most_the_charged_gaussian(noise, sums) -> None:
    made = noised_sums(noise, [(f"q{i}", 3, squared, share) for i, (squared, share) in enumerate(sums)])
    joint = sum(Fraction(one.squared_sensitivity, one.variance - EXTRA) for one in made)
    assert joint * Fraction(noise) ** 2 <= 1
    if noise > 1 and min(squared for squared, _ in sums) > 2**20:  # and no noise is wasted
        assert float(joint) * noise**2 > 0.99


def test_noise_beyond_the_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match="beyond the sampler"):
        noised_sums(1e12, [("q", 1, 2**60, 1.0)])
