"""Randomness for privacy: distribution, freshness, and that it cannot leave the process."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
from scipy import stats

from fedray.privacy.csprng import Csprng, InsecureSeeded, noise_source

#: A correct generator fails one of these tests with this probability.
ALPHA = 1e-6
SOURCES = [Csprng, lambda: InsecureSeeded(1, 2, "a")]


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 20_000])
def test_draws_have_the_asked_number_and_type(make, n: int) -> None:
    source = make()
    for values in (source.uniform(n), source.normal(n)):
        assert values.shape == (n,)
        assert values.dtype == np.float64
    assert len(source.coins(n, 1.0)) == n
    assert len(source.coins(n, 0.0)) == 0


@pytest.mark.parametrize("make", SOURCES)
def test_normals_are_normal_and_uniforms_uniform(make) -> None:
    source = make()
    assert stats.kstest(source.normal(50_001), "norm").pvalue > ALPHA
    uniform = source.uniform(50_000)
    assert stats.kstest(uniform, "uniform").pvalue > ALPHA
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_variance_of_normals_is_one() -> None:
    n = 400_000
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], n) / n
    assert low < float(np.mean(Csprng().normal(n) ** 2)) < high


def test_coins_fall_heads_at_their_rate_also_when_it_is_below_the_grid_of_float32() -> None:
    n, q = 3_000_000, 1e-5
    low, high = stats.binom.ppf([ALPHA / 2, 1 - ALPHA / 2], n, q)
    heads = Csprng().coins(n, q)
    assert low <= len(heads) <= high
    assert (np.diff(heads) > 0).all()


def test_no_two_sources_draw_alike() -> None:
    assert abs(np.corrcoef(Csprng().normal(10_000), Csprng().normal(10_000))[0, 1]) < 0.06
    source = Csprng()
    assert not np.array_equal(source.uniform(4), source.uniform(4))


def test_numpy_and_torch_seeds_do_not_reach_it() -> None:
    draws = []
    for _ in range(2):
        np.random.seed(0)
        draws.append(Csprng().uniform(8))
    assert not np.array_equal(*draws)


def test_a_forked_child_takes_a_new_key() -> None:
    source = Csprng()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, source.uniform(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(read, 32))
    assert not np.array_equal(theirs, source.uniform(4))


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_pickled_or_copied(leak) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        leak(Csprng())


def test_it_shows_nothing() -> None:
    assert repr(Csprng()) == str(Csprng()) == "Csprng()"
    assert repr(InsecureSeeded(12345, 1, "a")) == "InsecureSeeded()"


def test_the_insecure_source_is_keyed_by_seed_round_and_client() -> None:
    draw = InsecureSeeded(1, 2, "a").normal(5)
    assert np.array_equal(draw, InsecureSeeded(1, 2, "a").normal(5))
    for other in (InsecureSeeded(2, 2, "a"), InsecureSeeded(1, 3, "a"), InsecureSeeded(1, 2, "b")):
        assert not np.array_equal(draw, other.normal(5))


def test_only_the_config_makes_it_insecure() -> None:
    assert noise_source(None, 0, "a").secure
    assert not noise_source(7, 0, "a").secure
