"""Partitioners and the hold-out: who may get what, for any labels, sizes and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedray import rng
from fedray.data.holdout import split
from fedray.data.partition import PARTITIONERS, apportion, check_parts, dirichlet, iid, natural, quantity, shards
from fedray.data.skew import label_distance
from fedray.errors import DataError

quick = settings(max_examples=40)


def draws(seed: int = 0) -> np.random.Generator:
    return rng.generator(seed, "partition")


@st.composite
def dealt(draw: st.DrawFn) -> tuple[str, Any, Any, dict[str, Any], int]:
    """A partitioner, labels and arguments that can be met."""
    kind = draw(st.sampled_from(["iid", "dirichlet", "shards", "quantity"]))
    clients = draw(st.integers(1, 20))
    n = draw(st.integers(clients * 3, 300))
    classes = draw(st.integers(1, 7))
    labels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, classes, n).astype(np.int64)
    arguments: dict[str, Any] = {"clients": clients}
    if kind == "dirichlet":
        arguments |= {"alpha": draw(st.sampled_from([0.05, 1.0, 50.0])), "balanced": draw(st.booleans())}
        if not arguments["balanced"]:
            arguments |= {"alpha": 50.0} if clients > 3 else {}
    elif kind == "shards":
        arguments["shards_per_client"] = draw(st.integers(1, 3))
    elif kind == "quantity":
        arguments["power"] = draw(st.sampled_from([0.0, 0.7, 3.0]))
    return kind, labels, None, arguments, draw(st.integers(0, 2**31))


@quick
@given(dealt())
def test_every_record_belongs_to_exactly_one_client(case: tuple[str, Any, Any, dict[str, Any], int]) -> None:
    kind, labels, groups, arguments, seed = case
    parts = PARTITIONERS[kind](labels, groups, draws(seed), **arguments)
    assert len(parts) == arguments["clients"]
    assert all(part.dtype == np.int64 and len(part) > 0 for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


@quick
@given(dealt())
def test_the_same_seed_gives_the_same_parts(case: tuple[str, Any, Any, dict[str, Any], int]) -> None:
    kind, labels, groups, arguments, seed = case
    first = PARTITIONERS[kind](labels, groups, draws(seed), **arguments)
    again = PARTITIONERS[kind](labels.copy(), groups, draws(seed), **arguments)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("iid", {}), ("dirichlet", {"alpha": 1.0}), ("dirichlet", {"alpha": 1.0, "balanced": True}), ("shards", {}), ("quantity", {})],
)
def test_another_seed_gives_other_parts(kind: str, arguments: dict[str, Any]) -> None:
    labels = np.arange(500, dtype=np.int64) % 10
    one, other = (PARTITIONERS[kind](labels, None, draws(seed), clients=10, **arguments) for seed in (1, 2))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(one, other, strict=True))


@quick
@given(st.integers(1, 30), st.integers(0, 300), st.integers(0, 99))
def test_iid_sizes_differ_by_at_most_one(clients: int, extra: int, seed: int) -> None:
    sizes = [len(p) for p in iid(np.zeros(clients + extra, dtype=np.int64), None, draws(seed), clients=clients)]
    assert max(sizes) - min(sizes) <= 1


@quick
@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 50))
def test_iid_with_records_per_client_leaves_the_rest_to_nobody(clients: int, each: int, extra: int) -> None:
    n = clients * each + extra
    parts = iid(np.zeros(n, dtype=np.int64), None, draws(), clients=clients, records_per_client=each)
    assert [len(p) for p in parts] == [each] * clients
    assert len(np.unique(np.concatenate(parts))) == clients * each


def test_iid_gives_each_record_to_each_client_equally_often() -> None:
    owner = np.empty((400, 60), dtype=np.int64)
    for seed in range(400):
        for k, part in enumerate(iid(np.zeros(60, dtype=np.int64), None, draws(seed), clients=3)):
            owner[seed, part] = k
    # Record 0's owner over 400 seeds is uniform on three clients: chi-squared, false alarm 1e-6.
    counts = np.bincount(owner[:, 0], minlength=3)
    assert stats.chisquare(counts).pvalue > 1e-6


@quick
@given(st.integers(1, 20), st.integers(0, 300), st.floats(0, 4), st.integers(0, 99))
def test_quantity_sizes_fall_and_follow_the_power(clients: int, extra: int, power: float, seed: int) -> None:
    n = clients + extra
    sizes = np.array([len(p) for p in quantity(np.zeros(n, dtype=np.int64), None, draws(seed), clients=clients, power=power)])
    assert (np.diff(sizes) <= 0).all()
    weights = np.arange(1, clients + 1, dtype=np.float64) ** -power
    assert np.abs(sizes - 1 - extra * weights / weights.sum()).max() <= 1


@quick
@given(st.integers(1, 15), st.integers(1, 4), st.integers(1, 30), st.integers(0, 99))
def test_shards_give_few_classes(clients: int, each: int, per_class: int, seed: int) -> None:
    classes = clients * each  # as many records a class as a shard holds: a shard is one class
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class)).astype(np.int64)
    for part in shards(labels, None, draws(seed), clients=clients, shards_per_client=each):
        assert len(np.unique(labels[part])) == each
        assert len(part) == each * per_class


@quick
@given(st.integers(2, 10), st.integers(1, 4), st.integers(2, 6), st.integers(0, 99))
def test_shards_span_at_most_two_classes_each_when_classes_are_larger(clients: int, each: int, classes: int, seed: int) -> None:
    size = -(-clients * each * 10 // classes)
    labels = np.repeat(np.arange(classes), max(size, 11)).astype(np.int64)
    count = clients * each
    if len(labels) // count + 1 > max(size, 11):
        return  # shards longer than a class
    for part in shards(labels, None, draws(seed), clients=clients, shards_per_client=each):
        assert len(np.unique(labels[part])) <= 2 * each


def test_dirichlet_shares_are_dirichlet() -> None:
    clients, alpha, per_class = 10, 0.5, 20_000
    labels = np.repeat(np.arange(10), per_class).astype(np.int64)
    shares = []
    for seed in range(100):
        own = dirichlet(labels, None, draws(seed), clients=clients, alpha=alpha)[3]
        shares += (np.bincount(labels[own], minlength=10) / per_class).tolist()
    # One client's share of one class is Beta(alpha, (clients - 1) alpha); 1000 independent shares.
    # False alarm 1e-4; rounding to whole records moves the distribution function by at most 0.012.
    limit = stats.kstwo.isf(1e-4, len(shares)) + 0.012
    assert stats.kstest(shares, stats.beta(alpha, (clients - 1) * alpha).cdf).statistic < limit
    # The test can fail: the same shares are not those of another alpha.
    assert stats.kstest(shares, stats.beta(1.0, (clients - 1) * 1.0).cdf).statistic > 1.5 * limit


@pytest.mark.parametrize("balanced", [False, True])
def test_dirichlet_clients_differ_more_with_smaller_alpha(balanced: bool) -> None:
    labels = np.repeat(np.arange(10), 500).astype(np.int64)
    distances = []
    for alpha in (0.1, 1.0, 100.0):
        parts = dirichlet(labels, None, draws(3), clients=20, alpha=alpha, balanced=balanced)
        distances.append(label_distance(np.stack([np.bincount(labels[p], minlength=10) for p in parts])))
    assert distances[0] > distances[1] + 0.1 > distances[2] + 0.2


@quick
@given(st.integers(1, 25), st.integers(0, 100), st.sampled_from([1e-3, 0.1, 10.0]), st.integers(0, 99))
def test_dirichlet_balanced_sizes_differ_by_at_most_one(clients: int, extra: int, alpha: float, seed: int) -> None:
    labels = np.arange(clients + extra, dtype=np.int64) % 4
    sizes = [len(p) for p in dirichlet(labels, None, draws(seed), clients=clients, alpha=alpha, balanced=True)]
    assert max(sizes) - min(sizes) <= 1


@quick
@given(st.integers(1, 5), st.integers(0, 99))
def test_dirichlet_keeps_min_records(least: int, seed: int) -> None:
    labels = np.arange(300, dtype=np.int64) % 5
    parts = dirichlet(labels, None, draws(seed), clients=6, alpha=0.5, min_records=least)
    assert min(len(p) for p in parts) >= least


def test_dirichlet_gives_up_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"no draw of \d+ .* 50 clients 1 of the 60 records; raise alpha"):
        dirichlet(np.arange(60, dtype=np.int64) % 2, None, draws(), clients=50, alpha=0.01)


@quick
@given(st.lists(st.integers(0, 6), min_size=1, max_size=80))
def test_natural_gives_each_group_its_records(keys: list[int]) -> None:
    _, groups = np.unique(keys, return_inverse=True)
    parts = natural(np.zeros(len(keys), dtype=np.int64), groups.astype(np.int64), draws())
    for g, part in enumerate(parts):
        np.testing.assert_array_equal(part, np.flatnonzero(groups == g))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards", "quantity"])
def test_more_clients_than_records_is_one_error(kind: str) -> None:
    arguments = {"alpha": 1.0} if kind == "dirichlet" else {}
    with pytest.raises(DataError, match=r"data.partition.clients: 11 clients for 10 training records"):
        PARTITIONERS[kind](np.zeros(10, dtype=np.int64), None, draws(), clients=11, **arguments)
    with pytest.raises(DataError, match=r"data.partition.clients: should be 1 or more"):
        PARTITIONERS[kind](np.zeros(10, dtype=np.int64), None, draws(), clients=0, **arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("iid", {"clients": 3, "records_per_client": 4}, "need 12 records, there are 10"),
        ("iid", {"clients": 3, "records_per_client": 0}, "records_per_client"),
        ("dirichlet", {"clients": 2, "alpha": 0.0}, "alpha: should be a number above 0"),
        ("dirichlet", {"clients": 2, "alpha": 1.0, "min_records": 6}, "at most records / clients = 5"),
        ("shards", {"clients": 4, "shards_per_client": 3}, "need 12 records, there are 10"),
        ("quantity", {"clients": 2, "power": -1.0}, "power: should be 0 or more"),
        ("natural", {}, "no natural clients; name the column"),
    ],
)
def test_arguments_that_cannot_be_met(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PARTITIONERS[kind](np.zeros(10, dtype=np.int64), None, draws(), **arguments)


def test_dirichlet_refuses_regression() -> None:
    with pytest.raises(DataError, match="needs class labels"):
        dirichlet(np.zeros(10, dtype=np.float32), None, draws(), clients=2, alpha=1.0)


@pytest.mark.parametrize("parts", [[], [[0, 1], []], [[0, 1], [1]], [[0], [5]], [[-1]], [["a"]], 3])
def test_broken_partitions_of_users_are_refused(parts: Any) -> None:
    with pytest.raises(DataError, match=r"^data.partition: "):
        check_parts(parts, 5, "data.partition")


@quick
@given(st.integers(0, 1000), st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_apportion_sums_and_stays_within_one(total: int, weights: list[float]) -> None:
    values = np.array(weights)
    parts = apportion(total, values)
    assert parts.sum() == total
    assert np.abs(parts - total * values / values.sum()).max() < 1 + 1e-6


@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.floats(0, 0.99), st.booleans(), st.booleans(), st.integers(0, 99))
def test_holdout_splits_all_records_and_keeps_proportions(
    keys: list[int], fraction: float, stratify: bool, grouped: bool, seed: int
) -> None:
    labels = np.array(keys, dtype=np.int64)
    groups = np.unique(labels, return_inverse=True)[1].astype(np.int64) if grouped else None
    train, test = split(labels, fraction, stratify, draws(seed), groups)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert len(train) >= 1
    if groups is not None:
        assert set(labels[train]) == set(keys)  # every natural client keeps a record
        return
    assert len(test) == min(int(fraction * len(labels) + 0.5), len(labels) - 1)
    if stratify:
        for c in set(keys):
            assert abs((labels[test] == c).sum() - len(test) * keys.count(c) / len(keys)) < 1 + 1e-9
