"""Cohorts, client groups, and where actors go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.clients.groups import make_groups, rates
from fedray.clients.placement import plan_places
from fedray.config import Cohort
from fedray.configfile import build_config
from fedray.errors import ConfigError
from fedray.rng import generator
from fedray.rounds.cohort import Population, largest_cohort, make_sampler


def config(**sections):
    base = {
        "name": "t",
        "rounds": 2,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 8, "epochs": 1, "lr": 0.1},
    }
    return build_config(base | sections)


def everyone(n: int, rate: float = 1.0) -> Population:
    return Population.of(np.ones(n, bool), np.full(n, rate))


def test_poisson_coins_are_independent_with_the_stated_rate():
    sampler = make_sampler(Cohort(kind="poisson", fraction=0.3), 200)
    counts = np.zeros(200)
    sizes = []
    for r in range(500):
        chosen = sampler(everyone(200), generator(1, "cohort", r).random(200))
        counts[chosen] += 1
        sizes.append(len(chosen))
    # 500 coins a client: a two-sided z-test at 1e-6 over 200 clients is |z| < 6.
    z = (counts - 150) / np.sqrt(500 * 0.3 * 0.7)
    assert np.abs(z).max() < 6
    # Sizes vary as a binomial does: variance 42; chi-square of 499 degrees of freedom at 1e-6.
    assert 42 * 0.72 < np.var(sizes) < 42 * 1.34


@given(st.integers(0, 10_000), st.sets(st.integers(0, 19), max_size=19))
@settings(max_examples=50)
def test_excluding_a_client_changes_no_other_coin(round_, excluded):
    sampler = make_sampler(Cohort(kind="poisson", fraction=0.5), 20)
    full = set(sampler(everyone(20), generator(3, "cohort", round_).random(20)).tolist())
    eligible = np.array([i not in excluded for i in range(20)])
    part = set(sampler(Population.of(eligible, np.ones(20)), generator(3, "cohort", round_).random(20)).tolist())
    assert part == full - excluded


@given(st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=50)
def test_fixed_cohorts_have_their_size_and_no_repeats(round_, size):
    chosen = make_sampler(Cohort(kind="fixed", size=size), 20)(everyone(20), generator(3, "cohort", round_).random(20))
    assert len(chosen) == size == len(set(chosen.tolist()))
    assert (np.diff(chosen) > 0).all()


def test_fixed_cohorts_are_uniform():
    sampler = make_sampler(Cohort(kind="fixed", fraction=0.2), 50)
    counts = np.zeros(50)
    for r in range(1000):
        counts[sampler(everyone(50), generator(2, "cohort", r).random(50))] += 1
    assert np.abs((counts - 200) / np.sqrt(1000 * 0.2 * 0.8)).max() < 6


def test_largest_cohort():
    assert largest_cohort(Cohort(kind="all"), 30) == 30
    assert largest_cohort(Cohort(kind="fixed", fraction=0.1), 100) == 10
    assert 100 < largest_cohort(Cohort(kind="poisson", fraction=0.1), 1000) < 150


@pytest.mark.parametrize(
    ("cohort", "message"),
    [
        ({"kind": "fixed"}, "exactly one of size and fraction"),
        ({"kind": "fixed", "size": 9}, "between 1 and the 4 clients"),
        ({"kind": "poisson", "fraction": 1.5}, "at most 1"),
        ({"kind": "poisson"}, "cohort.fraction: poisson needs it"),
        ({"kind": "poison", "fraction": 0.5}, "Did you mean 'poisson'"),
        ({"kind": "all", "min_clients": 5}, "cannot come from 4 clients"),
    ],
)
def test_bad_cohorts(cohort, message):
    with pytest.raises(ConfigError, match=message):
        make_sampler(Cohort(**cohort), 4)


NAMES = ["a", "b", "c", "d"]


def test_groups_override_training_and_share_the_rest():
    c = config(
        clients={"groups": [{"name": "big", "clients": ["d", "a"], "rate": 0.5, "training": {"lr": 0.01}, "resources": {"cpu": 2.0}}]}
    )
    big, rest = make_groups(c, NAMES)
    assert tuple(big.members) == (0, 3)
    assert tuple(rest.members) == (1, 2)
    assert (big.training.lr, rest.training.lr) == (0.01, 0.1)
    assert big.resources.cpu == 2.0
    assert rates([big, rest], 4).tolist() == [0.5, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"name": "g", "clients": ["zz"]}], "no client 'zz'"),
        ([{"name": "g", "clients": 5}], "asks for 5 clients"),
        ([{"name": "g", "clients": ["a"]}, {"name": "h", "clients": ["a"]}], "already in group 'g'"),
        ([{"name": "g", "clients": 1, "training": {"lr": -1.0}}], "clients.groups.0.training.lr"),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(ConfigError, match=message):
        make_groups(config(clients={"groups": groups}), NAMES)


def test_hosted_places_follow_cpus_cohort_and_memory():
    c = config()
    groups = make_groups(c, NAMES)
    assert len(plan_places(c, groups, NAMES, {"CPU": 2.0, "memory": 8e9}, 4, False)) == 2
    assert len(plan_places(c, groups, NAMES, {"CPU": 64.0, "memory": 800e9}, 3, False)) == 3
    assert len(plan_places(c, groups, NAMES, {"CPU": 64.0, "memory": 1.1e9}, 4, False)) == 2
    fixed = config(clients={"actors": 3, "resources": {"cpu": 0.5}})
    assert len(plan_places(fixed, make_groups(fixed, NAMES), NAMES, {"CPU": 2.0}, 4, False)) == 3
    gpu = config(clients={"resources": {"cpu": 1.0, "gpu": 0.25}})
    assert len(plan_places(gpu, make_groups(gpu, NAMES), NAMES, {"CPU": 16.0, "GPU": 1.0}, 99, False)) == 4


def test_places_that_do_not_fit_are_refused_unless_the_cluster_may_grow():
    c = config(clients={"placement": "dedicated", "resources": {"cpu": 1.0, "custom": {"site": 1.0}}})
    groups = make_groups(c, NAMES)
    with pytest.raises(ConfigError, match="ask for 4 CPU, but the cluster has 2 free"):
        plan_places(c, groups, NAMES, {"CPU": 2.0, "site": 4.0}, 4, False)
    with pytest.raises(ConfigError, match="ask for 4 site, but the cluster has 0 free"):
        plan_places(c, groups, NAMES, {"CPU": 8.0}, 4, False)
    places = plan_places(c, groups, NAMES, {"CPU": 2.0}, 4, True)
    assert [p.key for p in places] == NAMES
    assert [p.client.index for p in places if p.client] == [0, 1, 2, 3]
