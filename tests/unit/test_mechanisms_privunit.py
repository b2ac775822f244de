"""PrivUnit: the law of its inner product, exactly; its mean and error; its edges.

Statistics fail for correct code with probability below 1e-6 each.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from fedray.errors import ConfigError
from fedray.privacy.csprng import Csprng, InsecureSeeded
from fedray.privacy.mechanisms.privunit import MAX_EPSILON, PrivUnit

ALPHA = 1e-6


def uniform_density(t: float, d: int) -> float:
    """Of <V, u> for V uniform on the sphere in d + 1 dimensions."""
    return math.exp((d / 2 - 1) * math.log1p(-t * t) - special.betaln(0.5, d / 2))


def integral(f, low: float, high: float, d: int) -> float:
    """Over [low, high] within the reach of the density, with breaks where it is concentrated; t = sin a smooths its ends."""
    unit = 1 / math.sqrt(d + 1)
    points = sorted({low, high, *(p for k in range(-12, 13) if low < (p := k * unit) < high)})
    parts = [math.asin(p) for p in points if abs(p) <= 13 * unit or d < 100]
    return sum(
        integrate.quad(lambda a: f(math.sin(a)) * math.cos(a), x, y, epsabs=0, epsrel=1e-11)[0] for x, y in itertools.pairwise(parts)
    )


@pytest.mark.parametrize("d", [2, 5, 50, 10_000, 1_000_000])
@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0, 20.0])
def test_the_density_ratio_is_at_most_exp_epsilon_and_hardly_less(d, epsilon) -> None:
    mechanism = PrivUnit(d, 1.0, epsilon)
    p, gamma = mechanism.cap_probability, mechanism.threshold
    share = integral(lambda t: uniform_density(t, d), gamma, 1.0, d)
    ratio = math.log(p / share) - math.log((1 - p) / (1 - share))
    assert ratio <= epsilon
    assert ratio >= epsilon * (1 - 1e-5)


@pytest.mark.parametrize("epsilon", [30.0, 100.0, 1e6])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_large_epsilon_leaves_the_rest_of_the_sphere_a_coin_that_can_fall(d, epsilon) -> None:
    mechanism = PrivUnit(d, 1.0, epsilon)
    rest = 1 - mechanism.cap_probability
    assert rest >= 2.0**-53
    assert (rest * 2.0**53).is_integer()
    assert math.log(mechanism.cap_probability / mechanism.share) - math.log(rest / (1 - mechanism.share)) <= epsilon
    assert mechanism.length == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("d", "epsilon"), [(1, 2.0), (2, 0.5), (3, 8.0), (40, 4.0), (2000, 10.0)])
def test_the_length_is_the_clip_over_the_mean_inner_product(d, epsilon) -> None:
    mechanism = PrivUnit(d, 3.0, epsilon)
    p, gamma, share = mechanism.cap_probability, mechanism.threshold, mechanism.share

    def first(t: float) -> float:
        return t * uniform_density(t, d)

    mean = p / share * integral(first, gamma, 1.0, d) + (1 - p) / (1 - share) * integral(first, -1.0, gamma, d)
    assert mechanism.length == pytest.approx(3.0 / mean, rel=1e-6)


@pytest.mark.parametrize(("d", "epsilon"), [(1, 1.0), (3, 3.0), (100, 8.0), (10_000, 2.0)])
def test_no_other_threshold_gives_a_shorter_estimate(d, epsilon) -> None:
    mechanism = PrivUnit(d, 1.0, epsilon)
    lengths = []
    for gamma in np.linspace(0, min(0.999999, 6 / math.sqrt(d + 1)), 4000):
        share = special.betainc(d / 2, d / 2, (1 - gamma) / 2)
        cap_mean = math.exp(d / 2 * math.log1p(-gamma * gamma) - math.log(d) - special.betaln(0.5, d / 2))
        lengths.append((1 + math.expm1(epsilon) * share) / (cap_mean * math.expm1(epsilon)))
    assert mechanism.length <= min(lengths) * (1 + 1e-5)


@pytest.mark.parametrize(("d", "epsilon"), [(1, 2.0), (2, 1.0), (7, 5.0), (500, 6.0)])
def test_the_inner_product_that_leaves_has_the_law_that_was_charged(d, epsilon) -> None:
    mechanism, source, n = PrivUnit(d, 2.0, epsilon), InsecureSeeded(3, d, "a"), 4000
    x = np.zeros(d)
    x[0] = 2.0  # on the sphere already: the added coordinate is 0 and the estimate shows the inner product
    t = np.array([mechanism.encode(x, source)[0] for _ in range(n)]) / mechanism.length
    p, gamma, share, half = mechanism.cap_probability, mechanism.threshold, mechanism.share, d / 2
    below = 1 - special.betainc(half, half, (1 - t) / 2)
    law = np.where(t < gamma, (1 - p) * below / (1 - share), 1 - p + p * (below - (1 - share)) / share)
    assert stats.kstest(law, "uniform").pvalue > ALPHA


def test_in_one_dimension_opposite_inputs_give_outputs_within_exp_epsilon() -> None:
    epsilon, n = 1.0, 30_000
    mechanism = PrivUnit(1, 1.0, epsilon)
    outputs = [
        np.array([mechanism.encode(np.array([sign]), source)[0] for _ in range(n)]) / mechanism.length
        for sign, source in ((1.0, InsecureSeeded(1, 0, "a")), (-1.0, InsecureSeeded(1, 0, "b")))
    ]
    edges = np.linspace(-1, 1, 17)
    plus, minus = (np.histogram(values, edges)[0] for values in outputs)
    # Given plus + minus, plus is binomial with a share of at most 1 / (1 + exp(-epsilon)); 32 comparisons.
    worst = 1 / (1 + math.exp(-epsilon))
    for one, other in ((plus, minus), (minus, plus)):
        assert (stats.binom.sf(one - 1, one + other, worst) > ALPHA / 32).all()


@pytest.mark.parametrize(("d", "epsilon", "norm"), [(1, 3.0, 0.4), (4, 4.0, 1.0), (4, 0.5, 0.0), (6, 12.0, 0.7)])
def test_the_estimate_is_unbiased_and_its_error_is_the_predicted_one(d, epsilon, norm) -> None:
    clip, n = 2.0, 12_000
    mechanism, source = PrivUnit(d, clip, epsilon), InsecureSeeded(4, d, "a")
    x = np.random.default_rng(d).normal(size=d)
    x *= norm * clip / np.linalg.norm(x)
    draws = np.array([mechanism.encode(x, source) for _ in range(n)])
    deviations = (draws.mean(axis=0) - x) / (draws.std(axis=0) / math.sqrt(n))
    assert np.abs(deviations).max() < stats.norm.isf(ALPHA / d / 2) * 1.1

    p, gamma, share = mechanism.cap_probability, mechanism.threshold, mechanism.share

    def second(t: float) -> float:
        return t * t * uniform_density(t, d)

    along = p / share * integral(second, gamma, 1.0, d) + (1 - p) / (1 - share) * integral(second, -1.0, gamma, d)
    added = 1 - norm**2  # the square of the coordinate that completes x to the sphere
    dropped = along * added + (1 - along) * (1 - added) / d
    predicted = mechanism.length**2 * (1 - dropped) - (norm * clip) ** 2
    errors = np.sum((draws - x) ** 2, axis=1)
    assert abs(errors.mean() - predicted) < stats.norm.isf(ALPHA / 2) * 1.1 * errors.std() / math.sqrt(n) + 1e-9
    assert predicted < mechanism.length**2


def test_a_million_values_at_a_useful_epsilon() -> None:
    d, n = 1_000_000, 7
    mechanism, source = PrivUnit(d, 1.0, 16.0), InsecureSeeded(1, 0, "a")
    x = np.full(d, 1 / math.sqrt(d), np.float32)
    along = [float(np.dot(mechanism.encode(x, source), x)) for _ in range(n)]
    # In the cap, of probability 0.96, it is about 1. Seeded: the same every time.
    assert 0.9 < np.median(along) < 1.2
    # Its squared error is that of the best possible order, d / epsilon.
    assert mechanism.length**2 < 1.0 * d / 16 * 1.3


def test_what_leaves_has_the_same_length_whatever_the_input() -> None:
    mechanism, source = PrivUnit(3, 1.0, 5.0), Csprng()
    for x in ([1, 0, 0], [0.6, 0.8, 0]):
        assert np.linalg.norm(mechanism.encode(np.array(x, float), source)) <= mechanism.length * (1 + 1e-12)


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [1e300, 1e300, 0]])
def test_inputs_that_nobody_should_send_give_finite_outputs_all_the_same(bad) -> None:
    x = np.array(bad)
    mechanism = PrivUnit(3, 1.0, 5.0)
    y = mechanism.encode(x, InsecureSeeded(1, 0, "a"))
    assert np.isfinite(y).all()
    assert np.array_equal(y, mechanism.encode(np.zeros(3), InsecureSeeded(1, 0, "a")))


def test_an_input_above_the_clip_counts_as_scaled_down_to_it() -> None:
    mechanism, x = PrivUnit(3, 1.0, 5.0), np.array([3.0, 4.0, 0.0])
    assert np.allclose(mechanism.encode(x, InsecureSeeded(1, 0, "a")), mechanism.encode(x / 5, InsecureSeeded(1, 0, "a")))


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, MAX_EPSILON, 1e9])
@pytest.mark.parametrize("d", [1, 2, 1000, 10_000_000])
def test_every_epsilon_has_its_mechanism(d, epsilon) -> None:
    mechanism = PrivUnit(d, 1.0, epsilon)
    assert 0 <= mechanism.threshold < 1
    assert 0 < mechanism.share <= 0.5
    assert 0.5 <= mechanism.cap_probability < 1
    assert 1 <= mechanism.length < 4 * math.sqrt(d) * max(1, 1 / epsilon)


@pytest.mark.parametrize(("clip", "epsilon"), [(1.0, 0.0), (1.0, -1.0), (1.0, math.nan), (1.0, math.inf), (0.0, 1.0), (math.inf, 1.0)])
def test_constants_that_make_no_sense_are_refused(clip, epsilon) -> None:
    with pytest.raises(ConfigError):
        PrivUnit(3, clip, epsilon)
