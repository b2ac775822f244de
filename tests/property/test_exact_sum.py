"""The exact sum: a total does not depend on who added what when."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedray.aggregation.exact import BLOCK, FULL, MAX_COORDINATE, ExactSum, grid_bits
from fedray.errors import FedrayError, UpdateRejected

SIZE = 7
updates = st.lists(
    st.tuples(
        hnp.arrays(np.float32, SIZE, elements=st.floats(-MAX_COORDINATE, MAX_COORDINATE, width=32)),
        st.integers(0, 10_000),
    ),
    min_size=1,
    max_size=12,
)


def total_of(parts: list[list[tuple[np.ndarray, int]]], capacity: float) -> ExactSum:
    total = ExactSum.zero(SIZE, capacity)
    for part in parts:
        partial = ExactSum.zero(SIZE, capacity)
        for update, weight in part:
            partial.add(update, weight)
        total.merge(partial)
    return total


@given(updates, st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=150)
def test_any_order_and_any_tree_give_the_same_bytes(items, random, actors):
    capacity = 1.0 + sum(w for _, w in items)
    straight = total_of([items], capacity)
    shuffled = list(items)
    random.shuffle(shuffled)
    parts: list[list] = [[] for _ in range(actors)]
    for item in shuffled:
        parts[random.randrange(actors)].append(item)
    scattered = total_of(parts, capacity)
    assert scattered.values.tobytes() == straight.values.tobytes()
    assert (scattered.weight, scattered.count) == (straight.weight, straight.count)


@given(updates, st.sets(st.integers(0, 11)), st.sampled_from([np.nan, np.inf, -1e30]), st.sampled_from([1.0, 1e12]))
@settings(max_examples=150)
def test_many_at_once_are_added_as_one_by_one(items, spoilt, bad, room):
    rows = np.stack([u for u, _ in items])
    for n in spoilt:
        if n < len(rows):
            rows[n, n % SIZE] = bad
    weights, capacity = [w for _, w in items], room + sum(w for _, w in items)
    single, together = ExactSum.zero(SIZE, capacity), ExactSum.zero(SIZE, capacity)
    expected = []
    for row, weight in zip(rows, weights, strict=True):
        try:
            single.add(row, weight)
        except UpdateRejected as error:
            expected.append(str(error))
        else:
            expected.append(None)
    assert [None if why is None else str(why) for why in together.add_many(rows, weights)] == expected
    assert together.values.tobytes() == single.values.tobytes()
    assert (together.weight, together.count) == (single.weight, single.count)


def test_many_small_updates_of_a_large_model_are_added_as_one_by_one():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.01, (64, 70_001)).astype(np.float32)
    single, together = ExactSum.zero(70_001, 1e4), ExactSum.zero(70_001, 1e4)
    for row in rows:
        single.add(row, 20.0)
    assert together.add_many(rows, [20.0] * 64) == [None] * 64
    assert together.values.tobytes() == single.values.tobytes()


def test_many_at_once_keep_to_the_capacity():
    total = ExactSum.zero(SIZE, 10.0)
    with pytest.raises(FedrayError, match="laid out for"):
        total.add_many(np.ones((3, SIZE), dtype=np.float32), [4.0, 4.0, 4.0])
    assert total.count == 0
    assert not total.values.any()


@given(updates)
@settings(max_examples=150)
def test_the_mean_is_within_the_grid_of_the_true_mean(items):
    weight = sum(w for _, w in items)
    if weight == 0:
        return
    total = total_of([items], float(weight))
    true = sum(u.astype(np.float64) * w for u, w in items) / weight
    grid = 2.0 ** -(total.bits + 1) * len(items) / weight
    assert np.all(np.abs(total.mean() - true) <= grid + np.abs(true) * 2.0**-23 + 1e-30)


@given(st.floats(1e-3, 1e14))
def test_a_full_sum_cannot_overflow(capacity):
    try:
        bits = grid_bits(capacity)
    except FedrayError:
        assert capacity > 2**40
        return
    assert capacity * MAX_COORDINATE * 2.0**bits < 2.0**63


def test_the_largest_sum_is_exact_at_the_edge():
    total = ExactSum.zero(2, 1_000.0)
    extreme = np.array([MAX_COORDINATE, -MAX_COORDINATE], dtype=np.float32)
    for _ in range(1000):
        total.add(extreme)
    assert total.mean().tolist() == extreme.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2 * MAX_COORDINATE])
def test_an_update_that_is_bad_at_its_end_is_taken_back(bad):
    size = 2 * BLOCK + 5
    total = ExactSum.zero(size, 10.0)
    total.add(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    before = total.values.copy()
    update = np.random.default_rng(1).standard_normal(size, dtype=np.float32) * np.float32(1000)
    update[-2] = bad
    with pytest.raises(UpdateRejected, match="1 of 262149 values|more than 4096"):
        total.add(update, 3.0)
    assert (total.weight, total.count) == (1.0, 1)
    assert total.values.tobytes() == before.tobytes()

    def torn():
        yield 0, update[:BLOCK]
        raise OSError("the device is gone")

    with pytest.raises(OSError):
        total.add_blocks(torn)
    assert total.values.tobytes() == before.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_bad_update_is_rejected_and_leaves_the_sum_alone(bad):
    total = ExactSum.zero(3, 10.0)
    total.add(np.ones(3, np.float32), 2.0)
    before = total.values.copy()
    with pytest.raises(UpdateRejected):
        total.add(np.array([0, bad, 0], np.float32))
    assert (total.values == before).all()
    assert (total.weight, total.count) == (2.0, 1)


def test_more_weight_than_laid_out_for_is_refused_before_it_can_overflow():
    total = ExactSum.zero(3, 5.0)
    total.add(np.ones(3, np.float32), 4.0)
    with pytest.raises(FedrayError, match="laid out for 5"):
        total.add(np.ones(3, np.float32), 2.0)
    other = ExactSum.zero(3, 5.0)
    other.add(np.ones(3, np.float32), 4.0)
    with pytest.raises(FedrayError, match="laid out for 5"):
        total.merge(other)
    assert total.weight == 4.0


def test_sums_of_different_grids_do_not_mix():
    with pytest.raises(FedrayError, match="different grids"):
        ExactSum.zero(3, 5.0).merge(ExactSum.zero(3, 5e6))
    with pytest.raises(UpdateRejected, match="shape"):
        ExactSum.zero(3, 5.0).add(np.ones(4, np.float32))


@given(
    hnp.arrays(np.float32, SIZE, elements=st.floats(-MAX_COORDINATE, MAX_COORDINATE, width=32)),
    st.one_of(st.integers(1, 2**20).map(float), st.integers(1, 2**12).map(lambda n: n / 16)),
    st.integers(0, 40),
)
@settings(max_examples=300)
def test_values_are_rounded_half_to_even_whatever_their_size(update, weight, bits):
    total = ExactSum(np.zeros(SIZE, dtype=np.int64), 0.0, 0, bits, 2.0**20)
    if np.abs(update).max() * weight * 2.0**bits >= 2.0**62:
        return
    total.add(update, weight)
    expected = [round(Fraction(float(value)) * Fraction(weight) * 2**bits) for value in update]  # half to even, too
    products = update.astype(np.float64) * np.ldexp(weight, bits)
    exact = [Fraction(float(p)) == Fraction(float(u)) * Fraction(weight) * 2**bits for p, u in zip(products, update, strict=True)]
    assert [v for v, sure in zip(total.values.tolist(), exact, strict=True) if sure] == [
        v for v, sure in zip(expected, exact, strict=True) if sure
    ]
    assert (total.values == np.rint(products).astype(np.int64)).all()


@given(updates, st.data())
@settings(max_examples=100)
def test_factors_are_exact_and_leave_the_weight(items, data):
    factors = data.draw(st.lists(st.integers(1, FULL), min_size=len(items), max_size=len(items)))
    capacity = 1.0 + sum(w for _, w in items)
    single, together, exact = ExactSum.zero(SIZE, capacity), ExactSum.zero(SIZE, capacity), [Fraction(0)] * SIZE
    for (update, weight), factor in zip(items, factors, strict=True):
        single.add(update, weight, factor)
        for n, value in enumerate(update.tolist()):
            exact[n] += Fraction(round(Fraction(value) * weight * factor / FULL * 2**single.bits), 2**single.bits)
    together.add_many(np.stack([u for u, _ in items]), [w for _, w in items], factors)
    assert together.values.tobytes() == single.values.tobytes()
    assert [Fraction(v, 2**single.bits) for v in single.values.tolist()] == exact
    assert together.weight == single.weight == sum(w for _, w in items)


@given(updates, st.integers(1, FULL))
@settings(max_examples=100)
def test_a_discounted_sum_is_rounded_once(items, factor):
    total = total_of([items], 1.0 + sum(w for _, w in items))
    less = total.discounted(factor)
    expected = [(Fraction(v * factor, FULL) + Fraction(1, 2)).__floor__() for v in total.values.tolist()]
    assert less.values.tolist() == expected
    assert (less.weight, less.count, less.bits) == (total.weight, total.count, total.bits)


def test_a_full_sum_can_be_discounted():
    total = ExactSum(np.array([2**62 - 1, -(2**62)]), 1.0, 1, 8, 1.0)
    assert total.discounted(255).values.tolist() == [((2**62 - 1) * 255 + 128) // 256, -(2**62) // 256 * 255]
