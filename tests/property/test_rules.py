"""Aggregation rules: the same bytes whoever collected an update and whenever it came, their definitions, and how much memory they take."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedray import components
from fedray.aggregation import each
from fedray.aggregation.each import Each, PartLost, Rows, RowsAt, bounds, segments_for
from fedray.aggregation.exact import MAX_COORDINATE, ExactSum
from fedray.aggregation.rule import Rule, combined, make_rule
from fedray.aggregation.trimmed_mean import TrimmedMean
from fedray.choices import Choice
from fedray.errors import ConfigError, FedrayError, UpdateRejected

SIZE = 7
ARGUMENTS: dict[str, dict[str, Any]] = {
    "trimmed_mean": {"share": 0.2},
    "centered_clipping": {"radius": 1.5, "iterations": 2},
    "multi_krum": {"attackers": 1, "selected": 2},
    "geometric_median": {"weighted": True},
    "bucketing": {"rule": {"kind": "centered_clipping", "radius": 1.5}},
    "nnm": {"rule": {"kind": "krum"}},
}
KINDS = sorted(components.AGGREGATORS.parts())

Updates = npt.NDArray[np.float32]


class Ramp:
    """A root set whose update grows from value to value, and to which each update is worth its first value."""

    def __init__(self, size: int) -> None:
        self._size = size

    def update(self) -> npt.NDArray[np.float32]:
        return np.arange(1, self._size + 1, dtype=np.float32)

    def losses(self, got: Each) -> npt.NDArray[np.float64]:
        return np.abs(got.columns(0, 1)[:, 0]).astype(np.float64)


def rule_of(kind: str) -> Rule[Any]:
    return make_rule(Choice(kind=kind, **ARGUMENTS.get(kind, {})))


def got_from(rule: Rule[Any], updates: Updates, parts: list[list[int]], how: list[str], segments: int = 1) -> ExactSum | Each:
    """What arrives when these clients' updates were collected in these parts, each in one of three ways."""
    total, single = ExactSum.zero(SIZE, 100.0), Each(SIZE, segments, root=Ramp(SIZE))
    for clients, way in zip(parts, how, strict=True):
        part: Any = ExactSum.zero(SIZE, 100.0) if rule.wants == "sum" else Rows(SIZE)
        weights = [1.0 + i for i in clients]
        if way == "many":
            assert part.add_many(updates[clients], weights) == [None] * len(clients)
        for i, weight in zip(clients, weights, strict=True) if way != "many" else ():
            if way == "blocks":
                part.add_blocks(lambda i=i: ((k, updates[i, k : k + 3]) for k in range(0, SIZE, 3)), weight)
            else:
                part.add(updates[i], weight)
        assert (part.count, part.weight) == (len(clients), sum(weights))
        total, single = (
            (total, single.joined(RowsAt.here(clients, part, segments))) if isinstance(part, Rows) else (total.joined(part), single)
        )
    return total if rule.wants == "sum" else single


VALUES = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, -0.0, 1e-30, MAX_COORDINATE, -MAX_COORDINATE]))


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Updates, list[list[int]], list[str], int]:
    """Updates, the clients of each part in the order in which they were trained, how they were added, and the segments."""
    count = draw(st.integers(1, 9))
    updates = draw(arrays(np.float32, (count, SIZE), elements=VALUES))
    order, actors = draw(st.permutations(range(count))), draw(st.integers(1, 4))
    parts: list[list[int]] = [[] for _ in range(actors)]
    for i in order:
        parts[draw(st.integers(0, actors - 1))].append(i)
    parts = [part for part in parts if part]
    ways = draw(st.lists(st.sampled_from(["one", "many", "blocks"]), min_size=len(parts), max_size=len(parts)))
    return updates, parts, ways, draw(st.integers(1, SIZE))


@pytest.mark.parametrize("kind", KINDS)
@given(made=rounds())
def test_neither_split_nor_order_of_arrival_changes_a_bit(kind: str, made: tuple[Updates, list[list[int]], list[str], int]) -> None:
    updates, parts, ways, segments = made
    rule, everyone = rule_of(kind), list(range(len(updates)))
    one, other = rule.begin(20, SIZE), rule.begin(20, SIZE)
    for factor in np.float32([1.0, -0.5]):  # the second round goes on from what the first has left behind
        expected, one = combined(rule, got_from(rule, updates * factor, [everyone], ["many"], segments), one, SIZE)
        vector, other = combined(rule, got_from(rule, updates * factor, parts, ways, segments), other, SIZE)
        assert vector.dtype == expected.dtype == np.float32
        assert vector.tobytes() == expected.tobytes()
        assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}


def centre(updates: npt.NDArray[np.float64], radius: float, iterations: int, start: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centered clipping, as its paper writes it."""
    for _ in range(iterations):
        moved = updates - start
        norms = np.linalg.norm(moved, axis=1)
        start = start + np.mean([m if norm <= radius else m * radius / norm for m, norm in zip(moved, norms, strict=True)], axis=0)
    return start


@given(made=rounds())
def test_each_rule_is_what_its_paper_defines(made: tuple[Updates, list[list[int]], list[str], int]) -> None:
    updates, parts, ways, segments = made
    exact = updates.astype(np.float64)

    def given_by(rule: Rule[Any], kept: dict[str, Any]) -> npt.NDArray[np.float32]:
        return combined(rule, got_from(rule, updates, parts, ways, segments), kept, SIZE)[0]

    np.testing.assert_array_equal(given_by(rule_of("median"), {}), np.median(exact, axis=0).astype(np.float32))
    cut = min(-(-len(updates) // 5), (len(updates) - 1) // 2)
    inner = np.sort(exact, axis=0)[cut : len(updates) - cut]
    np.testing.assert_allclose(given_by(rule_of("trimmed_mean"), {}), inner.mean(axis=0), rtol=1e-6, atol=1e-12 * MAX_COORDINATE)
    for start in (np.zeros(SIZE), exact[0]):
        found = given_by(rule_of("centered_clipping"), {"previous": start.astype(np.float32)})
        np.testing.assert_allclose(found, centre(exact, 1.5, 2, start), rtol=1e-5, atol=1e-3 if np.abs(exact).max() > 3 else 1e-5)


def test_a_trimmed_share_is_rounded_up_to_whole_clients_and_leaves_one() -> None:
    assert [TrimmedMean(0.2).cut(n) for n in (1, 2, 3, 5, 6, 10)] == [0, 0, 1, 1, 2, 2]
    assert TrimmedMean(0.07).cut(100) == 7  # in float64 0.07 * 100 is above 7
    assert TrimmedMean(0.0).cut(10) == 0
    assert TrimmedMean(0.49).cut(4) == 1


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"kind": "trimmed_mean", "share": 0.5}, r"aggregation.share: 0.5 is not in \[0, 0.5\)"),
        ({"kind": "trimmed_mean", "share": float("nan")}, "aggregation.share"),
        ({"kind": "centered_clipping"}, "aggregation.radius: CenteredClipping needs it"),
        ({"kind": "centered_clipping", "radius": 0.0}, "aggregation.radius: 0.0 is not above 0"),
        ({"kind": "centered_clipping", "radius": 1.0, "iterations": 0}, "aggregation.iterations: 0 is below 1"),
        ({"kind": "median", "share": 0.1}, "aggregation.share: unknown argument"),
        ({"kind": "krum", "attackers": 0.5}, "aggregation.attackers: 0.5 is neither a share"),
        ({"kind": "multi_krum", "attackers": 1.5}, "aggregation.attackers: 1.5 is neither a share"),
        ({"kind": "multi_krum", "selected": 0}, "aggregation.selected: 0 is below 1"),
        ({"kind": "geometric_median", "smoothing": 0.0}, "aggregation.smoothing: 0.0 is not above 0"),
        ({"kind": "geometric_median", "iterations": 0}, "aggregation.iterations: 0 is below 1"),
        ({"kind": "bucketing"}, "aggregation.rule: Bucketing needs it"),
        ({"kind": "bucketing", "rule": {"kind": "median"}, "size": 1}, "aggregation.size: 1 is below 2"),
        ({"kind": "bucketing", "rule": {"kind": "mean"}}, "aggregation.rule.kind: 'mean' takes a sum"),
        ({"kind": "nnm", "rule": "median"}, "aggregation.rule: input should be a valid"),
        ({"kind": "nnm", "rule": {"share": 0.1}}, "aggregation.rule.kind: is missing"),
        ({"kind": "nnm", "rule": {"kind": "medain"}}, "aggregation.rule.kind: 'medain' is not known.*Did you mean 'median'"),
        ({"kind": "nnm", "rule": {"kind": "trimmed_mean", "share": 0.6}}, r"aggregation.rule.share: 0.6 is not in \[0, 0.5\)"),
        (
            {"kind": "nnm", "rule": {"kind": "bucketing", "rule": {"kind": "krum", "attackers": -1}}},
            "aggregation.rule.rule.attackers: -1.0 is neither",
        ),
    ],
)
def test_wrong_arguments_are_refused(part: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_rule(Choice(**part))


def test_rows_refuse_what_the_exact_sum_refuses() -> None:
    rows, good = Rows(3), np.array([1.0, 2.0, 3.0], dtype=np.float32)
    bad = {"NaN or infinite": [1.0, np.nan, 0.0], "diverged": [0.0, 0.0, 5000.0]}
    for words, values in bad.items():
        update = np.array(values, dtype=np.float32)
        for add in (rows.add, ExactSum.zero(3, 5.0).add):
            with pytest.raises(UpdateRejected, match=words):
                add(update, 1.0)
        refused = rows.add_many(np.stack([good, update]), [2.0, 3.0])
        assert [None if why is None else str(why) for why in refused] == [
            None if why is None else str(why) for why in ExactSum.zero(3, 9.0).add_many(np.stack([good, update]), [2.0, 3.0])
        ]
    for update in (good[:2], np.concatenate([good, good]), good[None]):
        with pytest.raises(UpdateRejected, match="for a model of 3 values"):
            rows.add(update)
    with pytest.raises(UpdateRejected, match="a weight of -1"):
        rows.add(good, -1.0)
    assert (rows.count, rows.weight) == (2, 4.0)
    good[:] = 0
    assert Each(3).joined(RowsAt.here([0, 1], rows)).columns(0, 3).tolist() == [[1.0, 2.0, 3.0]] * 2  # they are copies


def test_what_is_lost_is_left_out_and_the_others_are_combined() -> None:
    updates = np.arange(4, dtype=np.float32)[:, None] * np.ones(SIZE, dtype=np.float32)
    kept, lost = Rows(SIZE), RowsAt([1, 2], lambda segment: "its node is gone")
    kept.add_many(updates[[3, 0]], [2.0, 5.0])
    whole = Each(SIZE, 1, (lost, RowsAt.here([3, 0], kept)))
    assert whole.count == 4
    with pytest.raises(PartLost, match="its node is gone") as caught:
        whole.columns(0, 1)
    assert caught.value.part is lost
    left = whole.without(lost)
    assert (left.count, left.clients, left.weights.tolist()) == (2, [0, 3], [5.0, 2.0])
    assert combined(rule_of("median"), left, {}, SIZE)[0].tolist() == [1.5] * SIZE


def test_a_part_of_other_clients_is_refused() -> None:
    rows = Rows(SIZE)
    rows.add(np.zeros(SIZE, dtype=np.float32))
    with pytest.raises(FedrayError, match="1 updates of 7 values came for 2 clients"):
        Each(SIZE).joined(RowsAt.here([0, 1], rows)).columns(0, 1)


class Own(Rule[Each]):
    """Gives what it was made with."""

    def __init__(self, given: Callable[[Each, Any], Any]) -> None:
        self.given = given

    def combine(self, got: Each, kept: Any) -> Any:
        return self.given(got, kept)


def overwrites(got: Each, kept: Any) -> Any:
    kept["before"] += 1
    return np.zeros(got.size), kept


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (lambda got, kept: got.columns(0, got.size)[0], "combine gave a ndarray; give the vector and a dict"),
        (lambda got, kept: (got.columns(0, got.size)[0, 1:], {}), r"an array of shape \(6,\) for vectors of 7"),
        (lambda got, kept: (np.full(got.size, np.nan), {}), "NaN or infinite"),
        (lambda got, kept: (np.zeros(got.size), {"a": 3.0}), "would remember 'a' as float"),
        (lambda got, kept: (np.zeros(got.size), {"a": np.array(["x"])}), "would remember 'a' as <U1"),
    ],
)
def test_what_a_rule_gives_is_checked(gives: Callable[[Each, Any], Any], words: str) -> None:
    got = got_from(rule_of("median"), np.ones((2, SIZE), dtype=np.float32), [[0, 1]], ["many"])
    with pytest.raises(FedrayError, match=words):
        combined(Own(gives), got, {"before": np.zeros(1)}, SIZE)
    with pytest.raises(ValueError, match="read-only"):
        combined(Own(overwrites), got, {"before": np.zeros(1)}, SIZE)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if rule_of(kind).wants == "each"])
def test_a_thousand_clients_are_no_thousand_models_in_memory(kind: str, tmp_path: Path) -> None:
    """Parts lie in files, as in an object store; what the rule takes of the heap is a few blocks and vectors, and a few numbers for each pair
    of clients where it compares them: a fraction of all updates.
    """
    size, clients, parts = 20_000, 1_000, 10
    with patch.object(each, "SEGMENT_VALUES", 1 << 20):
        segments = segments_for(clients, size)
    stored = np.memmap(tmp_path / "updates", dtype=np.float32, mode="w+", shape=(clients, size))
    for block in np.split(stored, parts):
        block[:] = np.random.default_rng(0).standard_normal(block.shape, dtype=np.float32)

    def at(k: int) -> RowsAt:
        indices = list(range(k, clients, parts))

        def fetch(segment: int) -> Rows:
            start, stop = bounds(size, segments)[segment]
            return Rows(stop - start, [np.split(stored, parts)[k][:, start:stop]], [1.0] * len(indices))

        return RowsAt(indices, fetch)

    rule, got = rule_of(kind), Each(size, segments, tuple(at(k) for k in range(parts)), Ramp(size))
    tracemalloc.start()
    vector, _ = combined(rule, got, rule.begin(clients, size), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert vector.shape == (size,)
    few_blocks = 3 * 4 * (1 << 20)
    assert few_blocks < stored.nbytes / 6
    assert peak < few_blocks + rule.held(clients) < stored.nbytes * 0.6


@given(clients=st.integers(1, 10_000), size=st.integers(1, 10**9))
def test_segments_cover_all_columns_and_hold_a_bounded_number_of_values(clients: int, size: int) -> None:
    segments = segments_for(clients, size)
    assert 1 <= segments <= size
    some = {k: (k * size // segments, (k + 1) * size // segments) for k in (0, segments // 2, segments - 1)}
    assert all(start < stop and clients * (stop - start - 1) <= each.SEGMENT_VALUES for start, stop in some.values())
    assert bounds(97, 5) == [(0, 19), (19, 38), (38, 58), (58, 77), (77, 97)]
