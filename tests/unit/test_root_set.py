"""The root set: what the driver trains on itself, the rule that trusts it, and what it is refused with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, label_skewed

from fedray.aggregation import each
from fedray.aggregation.each import Each, Rows, RowsAt
from fedray.aggregation.fltrust import FLTrust
from fedray.aggregation.mean import WeightedMean
from fedray.aggregation.root import RootUse
from fedray.aggregation.rule import combined, make_rule
from fedray.choices import Choice
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.data.rootset import split_root
from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.rounds.roots import RootHere, RootHost, root_training
from fedray.traits import Wants

ROOT = {"share": 0.3, "public": True}


class Told:
    """A root set that says what a test wants."""

    def __init__(self, update: Vector) -> None:
        self._update = update

    def update(self) -> Vector:
        return self._update

    def losses(self, got: Each) -> npt.NDArray[np.float64]:
        raise NotImplementedError


def each_of(updates: npt.NDArray[np.float32], segments: int = 1, root: Any = None) -> Each:
    """Updates in two parts."""
    count, size = updates.shape
    found = Each(size, segments, root=root)
    for clients in (range(0, count, 2), range(1, count, 2)):
        rows = Rows(size)
        for k in clients:
            rows.add(updates[k])
        found = found.joined(RowsAt.here([*clients], rows, segments)) if len(clients) else found
    return found


@st.composite
def rounds(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], Vector, int]:
    count, size, seed = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(0, 2**32 - 1))
    draws = np.random.default_rng(seed)
    updates = draws.standard_normal((count, size)).astype(np.float32)
    updates[draws.random(count) < 0.2] = 0.0
    return updates, draws.standard_normal(size).astype(np.float32), draw(st.integers(1, min(size, 4)))


@settings(max_examples=60)
@given(rounds())
def test_products_and_whole_updates_are_the_same_however_columns_are_cut(made: tuple[npt.NDArray[np.float32], Vector, int]) -> None:
    updates, reference, segments = made
    got = each_of(updates, segments)
    products, squares = got.against(reference)
    wide = updates.astype(np.float64)
    np.testing.assert_allclose(products, wide @ reference, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(squares, np.square(wide).sum(axis=1), rtol=1e-12)
    for values in (1 << 23, 2 * len(reference), 1):  # all updates at once, two at a time, one by one
        with patch.object(each, "SEGMENT_VALUES", values):
            found = [(first, rows.copy()) for first, rows in got.rows()]
        assert [first for first, _ in found] == np.cumsum([0, *(len(rows) for _, rows in found[:-1])]).tolist()
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in found]), updates)


@settings(max_examples=60)
@given(rounds())
def test_fltrust_is_the_papers_formula(made: tuple[npt.NDArray[np.float32], Vector, int]) -> None:
    updates, own, segments = made
    found, kept = combined(FLTrust(), each_of(updates, segments, Told(own)), {}, len(own))
    expected, total, length = np.zeros(len(own)), 0.0, np.linalg.norm(own.astype(np.float64))
    for update in updates.astype(np.float64):
        if np.linalg.norm(update) > 0:
            trust = max(0.0, update @ own / np.linalg.norm(update) / length)
            total += trust
            expected += trust * length / np.linalg.norm(update) * update
    np.testing.assert_allclose(found, expected / total if total else expected, rtol=1e-4, atol=1e-5)
    assert not kept


def test_fltrust_is_moved_by_no_length_and_by_nothing_that_points_away() -> None:
    draws = np.random.default_rng(0)
    updates, own = draws.standard_normal((6, 50)).astype(np.float32) + 1, np.ones(50, dtype=np.float32)
    found, _ = FLTrust().combine(each_of(updates, 1, Told(own)), {})
    longer = np.concatenate([updates * np.float32(1000), -own[None] * 7])
    again, _ = FLTrust().combine(each_of(longer, 1, Told(own)), {})
    np.testing.assert_allclose(again, found, rtol=1e-4)
    away, _ = FLTrust().combine(each_of(-updates, 1, Told(own)), {})
    assert not away.any()


def test_a_rule_behind_a_mixing_one_sees_the_root_set_too() -> None:
    rule = make_rule(Choice(kind="nnm", attackers=0.2, rule={"kind": "fltrust"}))
    assert rule.root() == "must"
    updates = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    combined(rule, each_of(updates, 2, Told(updates[0])), {}, 8)


class SumWithRoot(WeightedMean):
    """A rule that asks for what it would never see."""

    wants: ClassVar[Wants] = "sum"

    def root(self) -> RootUse:
        return "may"


def test_a_rule_of_the_sum_cannot_ask_for_the_root_set() -> None:
    with pytest.raises(ConfigError, match="a root set is compared with single updates"):
        make_rule(Choice(kind=f"python:{__name__}:SumWithRoot"))


# -- at work -----------------------------------------------------------------------------------


def as_root(records: Records, classes: int | None = 10) -> Federation:
    return Federation(["root"], records, np.array([0, len(records)]), None, None, None, classes)


def test_the_root_sets_update_is_that_of_a_client_with_its_records() -> None:
    federation, test = label_skewed()
    _, root = split_root(test, 0.5, 10, 3)
    assert root is not None
    config = config_of({"kind": "fedavg"}, aggregation={"kind": "fltrust"})
    run = Rehearsed(config, federation, root)
    assert run.root is not None
    as_client = Rehearsed(config.model_copy(update={"aggregation": Choice(kind="median")}), replace(root, names=["root"]))
    as_client.globals = run.globals.copy()
    before = run.globals.copy()
    as_client.train([[0]])
    np.testing.assert_allclose(as_client.globals - before, run.root.update(0, before), atol=1e-6)
    np.testing.assert_array_equal(run.globals, before)


def test_its_loss_is_that_of_the_model_which_an_update_alone_would_make() -> None:
    federation, test = label_skewed()
    run = Rehearsed(config_of({"kind": "fedavg"}, aggregation={"kind": "fltrust"}), federation, as_root(test))
    assert run.root is not None
    own = run.root.update(0, run.globals)
    updates = np.stack([own, -own, own * np.float32(np.nan)])
    losses = RootHere(run.root, 0, run.globals).losses(each_of(updates[:2]))
    assert losses[0] < np.log(10) < losses[1]
    assert run.root.losses(run.globals, updates[2:]) == [np.inf]


def test_most_clients_may_attack_where_the_root_set_is_like_the_records() -> None:
    federation, test = label_skewed(clients=10)
    left, root = split_root(test, 0.3, 10, 0)
    assert left is not None
    accuracy = {}
    for kind in ("fltrust", "median"):
        config = config_of({"kind": "fedavg"}, aggregation={"kind": kind}, attack={"kind": "sign_flip", "times": 5.0, "fraction": 0.6})
        run = Rehearsed(config, federation, root)
        for _ in range(6):
            run.train([[*range(10)]])
        accuracy[kind] = run.accuracy(left)
    assert accuracy["fltrust"] > 0.5
    assert accuracy["median"] < 0.2


@pytest.mark.parametrize(("records", "rate", "batch"), [(50, 0.64, 32.0), (20, 1.0, 20.0), (3200, 0.01, 32.0)])
def test_coins_are_thrown_for_batches_as_large_as_a_clients(records: int, rate: float, batch: float) -> None:
    training = config_of({"kind": "fedavg"}).training
    section = training.model_copy(update={"batch_size": None, "epochs": None, "steps": 5, "sampling_rate": 0.1, "expected_batch": 32.0})
    found = root_training(section, records)
    assert found.sampling_rate == pytest.approx(rate)
    assert found.expected_batch == pytest.approx(batch)


# -- configs -----------------------------------------------------------------------------------


def section(**more: Any) -> dict[str, Any]:
    base = {"name": "t", "rounds": 1, "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 5}}}
    training = {"batch_size": 10, "epochs": 1}
    return {**base, "model": {"kind": "softmax"}, "training": training, "aggregation": {"kind": "fltrust"}, "root": ROOT, **more}


def test_the_root_set_is_taken_from_what_the_driver_holds_and_tests_nothing() -> None:
    whole = prepare(build_config(section(aggregation={"kind": "median"}, root={})))
    split = prepare(build_config(section()))
    assert whole.root is None
    assert whole.test is not None
    assert split.test is not None
    assert split.root is not None
    assert len(split.root.train) == round(0.3 * len(whole.test))
    assert len(split.root.train) + len(split.test) == len(whole.test)
    assert set(split.root.train.y) == set(range(10))
    assert split.digest == whole.digest
    both = {x.tobytes() for x in split.root.train.x} & {x.tobytes() for x in split.test.x}
    assert len(both) < 5  # equal images of different people


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"root": {}}, "root.share: aggregation.kind 'fltrust' compares updates with the driver's own"),
        ({"root": {"share": 0.3}}, "set it to true to say that its records are public"),
        ({"root": {"public": True}}, "there is no root set without share"),
        ({"aggregation": {"kind": "median"}}, "makes no use of a root set"),
        ({"algorithm": {"kind": "scaffold"}}, "keep vectors between their turns"),
        ({"privacy": {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-3}}, "needs each client's update before its noise"),
        ({"secure": {"kind": "secagg"}}, "nobody sees more than their sum"),
    ],
)
def test_what_would_do_nothing_or_claim_too_much_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_only(build_config(section(**more)))


def test_under_record_level_privacy_it_is_trained_on_without_noise() -> None:
    training = {"steps": 3, "sampling_rate": 0.05, "expected_batch": 14.0, "engine": "ghost"}
    private = {"regime": "record", "noise_multiplier": 50.0, "delta": 1e-5}
    prepared = prepare(build_config(section(training=training, privacy=private, compression={"kind": "topk", "share": 0.01})))
    assert prepared.root is not None
    assert prepared.model is not None
    host = RootHost(prepared.config, prepared.root, prepared.model.facts, 5, {})
    host.ready()
    globals_ = prepared.model.weights.take()
    found = host.update(0, globals_)
    assert 0 < np.linalg.norm(found) < 2  # the noise alone would be ten times as long
    assert (found != 0).mean() > 0.5
    np.testing.assert_array_equal(host.update(0, globals_), found)


def test_silos_that_read_their_own_records_have_one_of_the_drivers_test_set(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for name, rows in (("a", 20), ("b", 30), ("public", 40)):
        table = np.column_stack([draws.standard_normal((rows, 2)).round(3), np.arange(rows) % 2])
        np.savetxt(tmp_path / f"{name}.csv", table, delimiter=",", header="u,v,y", comments="", fmt="%g")
    data = {"source": f"csv:{tmp_path}", "label": "y", "classes": 2, "test": f"{tmp_path}/public.csv"}
    prepared = prepare(build_config(section(data=data, clients={"placement": "dedicated"}, root={"share": 0.25, "public": True})))
    assert prepared.federation is None
    assert prepared.test is not None
    assert prepared.root is not None
    assert (len(prepared.root.train), len(prepared.test), prepared.root.classes) == (10, 30, 2)


def test_without_held_out_records_there_is_nothing_to_take_it_from() -> None:
    with pytest.raises(ConfigError, match="the driver holds no test records"):
        prepare(build_config(section(data={**section()["data"], "holdout": {"fraction": 0.0}})))
    with pytest.raises(ConfigError, match="less than one"):
        prepare(build_config(section(root={"share": 1e-4, "public": True})))
