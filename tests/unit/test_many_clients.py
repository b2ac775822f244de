"""What a population of millions is kept in: names that are made when asked for, packed groups, one array for all deals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.clients.groups import group_of, make_groups, rates
from fedray.config import Cohort
from fedray.configfile import build_config
from fedray.data.partition import Deal, check_parts, iid
from fedray.data.records import Numbered, positions
from fedray.data.skew import MAX_ROWS, partition_report
from fedray.errors import DataError
from fedray.rounds.cohort import Population, make_sampler

MILLION = 1_000_000


def test_numbered_names_are_those_of_a_list():
    names, listed = Numbered(12_000), [f"client-{k:04d}" for k in range(12_000)]
    assert list(names) == listed
    assert names == listed == names
    assert names != listed[1:]
    assert names[3] == "client-0003"
    assert names[-1] == "client-11999"
    assert names[9_998:10_001] == listed[9_998:10_001]
    assert [names.index(name) for name in listed] == list(range(12_000))
    for stranger in ("client-12000", "client-00003", "client-3", "client--003", "client-", "site-0003", "client-٣٣٣٣", 3):
        assert stranger not in names
    with pytest.raises(ValueError, match="no client 'client-3' among 12000"):
        names.index("client-3")
    with pytest.raises(IndexError):
        names[12_000]


def test_numbered_names_travel_as_a_number():
    sent = pickle.dumps(Numbered(MILLION))
    assert len(sent) < 200
    assert pickle.loads(sent) == Numbered(MILLION)


@pytest.mark.parametrize("names", [Numbered(50), [f"silo {k}" for k in range(50)]])
def test_positions(names):
    position = positions(names)
    assert [position(name) for name in names] == list(range(50))


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=50)
def test_a_fixed_cohort_is_who_has_the_smallest_coins(seed, size, clients):
    draws = np.random.default_rng(seed)
    coins = draws.integers(0, 20, clients) / 20  # with ties, which the lower index wins
    eligible = draws.random(clients) < 0.8
    sampler = make_sampler(Cohort(kind="fixed", size=min(size, clients)), clients)
    chosen = sampler(Population.of(eligible, np.ones(clients)), coins)
    able = np.flatnonzero(eligible)
    assert chosen.tolist() == sorted(able[np.argsort(coins[able], kind="stable")[: min(size, clients)]].tolist())


def test_groups_of_a_million_are_packed():
    base = {
        "name": "t",
        "rounds": 1,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 2, "epochs": 1},
    }
    sections = [
        {"name": "few", "clients": ["client-0007", "client-0003"], "rate": 0.5},
        {"name": "many", "clients": 400_000, "rate": 0.25},
    ]
    groups = make_groups(build_config(base | {"clients": {"groups": sections}}), Numbered(MILLION))
    few, many, rest = groups
    assert list(few.members) == [3, 7]
    assert list(many.members[:5]) == [0, 1, 2, 4, 5]
    assert rest.members == range(400_002, MILLION)
    assert len(pickle.dumps(groups)) < 8 * 400_000 + 20_000
    where = group_of(groups, MILLION)
    assert np.bincount(where).tolist() == [2, 400_000, 599_998]
    assert np.array_equal(rates(groups, MILLION), np.array([0.5, 0.25, 1.0])[where])


def test_a_deal_is_one_array_that_reads_like_a_list():
    deal = iid(np.zeros(10, dtype=np.int64), None, np.random.default_rng(0), clients=4)
    parts = list(deal)
    assert [len(part) for part in parts] == deal.sizes.tolist() == [3, 3, 2, 2]
    assert all(np.array_equal(part, np.sort(part)) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(10))
    assert parts[1].base is not None
    assert np.array_equal(deal[-1], parts[3])
    assert [part.tolist() for part in deal[1:3]] == [part.tolist() for part in parts[1:3]]
    again = check_parts([part.tolist() for part in parts], 10, "here")
    assert np.array_equal(again.order, deal.order)
    assert np.array_equal(again.offsets, deal.offsets)


def test_a_deal_with_an_empty_client_is_refused():
    with pytest.raises(DataError, match="client 1 got no records"):
        check_parts(Deal.of([np.array([0]), np.array([], dtype=np.int64), np.array([1])]), 2, "here")


def test_the_partition_report_of_very_many_names_the_first_only():
    sizes = np.arange(1, MAX_ROWS + 6)
    report = partition_report(Numbered(len(sizes)), sizes, None)
    assert (report["clients"], report["records"]) == (MAX_ROWS + 5, int(sizes.sum()))
    assert len(report["rows"]) == MAX_ROWS
    assert report["rows"][-1] == {"client": f"client-{MAX_ROWS - 1}", "records": MAX_ROWS}
