"""Rules that compare updates, and mixing: what their papers claim, on small vectors where each claim can be checked directly."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedray.aggregation import each
from fedray.aggregation.assumed import assumed
from fedray.aggregation.each import Each, Rows, RowsAt, squared_distances
from fedray.aggregation.krum import scores
from fedray.aggregation.mixing import Mixed
from fedray.aggregation.rule import combined, make_rule
from fedray.choices import Choice

Updates = npt.NDArray[np.float32]


def got_from(updates: Updates, weights: list[float] | None = None) -> Each:
    rows = Rows(updates.shape[1])
    rows.add_many(updates, weights or [1.0] * len(updates))
    return Each(rows.size).joined(RowsAt.here(range(len(updates)), rows))


def result(section: dict[str, Any], updates: Updates, weights: list[float] | None = None, rounds: int = 1) -> Updates:
    """What a rule makes of the same updates in the last of some rounds."""
    rule = make_rule(Choice(**section))
    kept = rule.begin(len(updates), updates.shape[1])
    for _ in range(rounds):
        vector, kept = combined(rule, got_from(updates, weights), kept, updates.shape[1])
    return vector


@st.composite
def attacked(draw: st.DrawFn) -> tuple[Updates, int]:
    """Honest updates near a common point, and after them f attackers' far away, with 2 f + 2 < n: apart, or all at one point."""
    n = draw(st.integers(5, 15))
    f = draw(st.integers(1, (n - 3) // 2))
    draws = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(1, 30))
    honest = draws.normal(draws.normal(0, 10, size), 1.0, (n - f, size))
    far = draws.normal(0, draw(st.sampled_from([30.0, 1000.0])), (1 if draw(st.booleans()) else f, size)) + np.zeros((f, size))
    return np.concatenate([honest, far]).astype(np.float32).clip(-4000, 4000), f


def krum_by_hand(updates: Updates, f: int) -> list[float]:
    exact, n = updates.astype(np.float64), len(updates)
    return [sum(sorted(float(((exact[i] - exact[j]) ** 2).sum()) for j in range(n) if j != i)[: n - f - 2]) for i in range(n)]


@given(made=attacked())
def test_krum_gives_one_of_the_updates_with_the_least_score(made: tuple[Updates, int]) -> None:
    """Blanchard et al. 2017, section 4: far attackers are never chosen where 2 f + 2 < n."""
    updates, f = made
    by_hand = krum_by_hand(updates, f)
    np.testing.assert_allclose(scores(got_from(updates).products, f), by_hand, rtol=1e-6)
    chosen = result({"kind": "krum", "attackers": f}, updates)
    (place,) = [k for k in range(len(updates)) if updates[k].tobytes() == chosen.tobytes()][:1]
    assert by_hand[place] == pytest.approx(min(by_hand), rel=1e-6)
    honest = updates[:-f]
    gap = np.linalg.norm(updates[-f:, None] - honest, axis=2).min()
    assume(gap > np.sqrt(len(updates)) * np.linalg.norm(honest[:, None] - honest, axis=2).max())
    assert place < len(updates) - f


@given(made=attacked())
def test_multi_krum_is_between_krum_and_the_mean(made: tuple[Updates, int]) -> None:
    updates, f = made
    order = np.argsort(krum_by_hand(updates, f), kind="stable")
    best = updates[order[: len(updates) - f]].mean(axis=0)
    for section, expected in (
        ({"selected": 1}, result({"kind": "krum", "attackers": f}, updates)),
        ({"selected": 100}, updates.mean(axis=0)),
        ({}, best),
    ):
        found = result({"kind": "multi_krum", "attackers": f, **section}, updates)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_krum_of_few_updates_assumes_as_many_attackers_as_it_withstands() -> None:
    one = np.array([[1.0, 2.0]], dtype=np.float32)
    for n in range(1, 5):
        updates = np.repeat(one, n, axis=0)
        assert result({"kind": "krum", "attackers": 9}, updates).tolist() == [1.0, 2.0]
    assert [assumed(0.2, n, 100) for n in (1, 5, 6, 10)] == [1, 1, 2, 2]
    assert [assumed(a, 10, 3) for a in (0, 2, 4, 0.49)] == [0, 2, 3, 3]
    assert assumed(0.07, 100, 50) == 7  # in float64 0.07 * 100 is above 7


def distance_sum(point: npt.NDArray[Any], updates: Updates, weights: Any = 1.0) -> float:
    return float((weights * np.linalg.norm(updates.astype(np.float64) - point, axis=1)).sum())


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 6), st.booleans())
def test_the_geometric_median_has_the_least_sum_of_distances(seed: int, count: int, size: int, weighted: bool) -> None:
    """Pillutla et al. 2022, equation 4, against a general minimiser from several starts."""
    draws = np.random.default_rng(seed)
    updates = (draws.normal(0, 1, (count, size)) * draws.choice([1.0, 10.0], (count, 1))).astype(np.float32)
    weights = draws.uniform(0.5, 3.0, count)
    found = result({"kind": "geometric_median", "weighted": weighted, "iterations": 3000}, updates, weights.tolist())
    counted = weights if weighted else np.ones(count)
    starts = [updates.mean(axis=0), *updates]
    least = min(
        distance_sum(minimize(distance_sum, start, (updates, counted), method="Nelder-Mead").x, updates, counted)
        for start in (starts if size < 3 else starts[:1])
    )
    least = min(least, *(distance_sum(update, updates, counted) for update in updates))
    assert distance_sum(found, updates, counted) <= least * (1 + 1e-4) + 1e-5


@given(made=attacked(), far=st.sampled_from([10.0, 4000.0]))
def test_the_geometric_median_stays_with_the_majority(made: tuple[Updates, int], far: float) -> None:
    """It breaks down at one half only: Lopuhaä and Rousseeuw 1991, theorem 2.2, with its bound on the distance."""
    updates, f = made
    updates[-f:] = far
    honest = updates[:-f]
    radius, share = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max(), f / len(updates)
    moved = np.linalg.norm(result({"kind": "geometric_median", "iterations": 1000}, updates) - honest.mean(axis=0))
    assert moved <= radius * 2 * (1 - share) / (1 - 2 * share) * (1 + 1e-3)


def test_a_geometric_median_of_weights_needs_half_of_the_weight() -> None:
    updates = np.array([[0.0], [1.0], [9.0]], dtype=np.float32)
    for weighted, expected in ((False, 1.0), (True, 9.0)):
        found = result({"kind": "geometric_median", "weighted": weighted, "iterations": 1000}, updates, [1.0, 1.0, 5.0])
        assert found[0] == pytest.approx(expected, abs=1e-3)
    assert result({"kind": "geometric_median", "weighted": True}, updates, [0.0, 0.0, 0.0])[0] == pytest.approx(1.0, abs=1e-3)


def test_combinations_of_updates_are_those_of_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(each, "_STRIP_VALUES", 8)
    monkeypatch.setattr(each, "_STRIP_WIDTH", 2)
    draws = np.random.default_rng(0)
    updates, weights = draws.normal(0, 1, (5, 11)).astype(np.float32), [1.0, 2.0, 3.0, 4.0, 5.0]
    got, matrix = got_from(updates, weights), draws.normal(0, 1, (3, 5))
    mixed = Mixed(got.size, got.segments, updates=got, matrix=matrix)
    whole = matrix @ updates.astype(np.float64)
    assert (mixed.count, mixed.clients) == (3, [0, 1, 2])
    np.testing.assert_allclose(mixed.columns(3, 9), whole[:, 3:9], rtol=1e-6)
    np.testing.assert_allclose(mixed.products, whole @ whole.T, rtol=1e-12)
    np.testing.assert_allclose(mixed.weights, matrix @ weights)
    np.testing.assert_allclose(mixed.weighted_sum(np.array([1.0, 0.0, -2.0])), whole[0] - 2 * whole[2], rtol=1e-5)
    np.testing.assert_allclose(squared_distances(mixed.products), ((whole[:, None] - whole) ** 2).sum(axis=2), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 12), st.integers(2, 5), st.integers(0, 100))
def test_each_bucket_has_its_size_and_each_update_one_bucket(count: int, size: int, seed: int) -> None:
    """Karimireddy et al. 2022, algorithm 1: buckets are dealt anew each round, and the same after a resumed one."""
    updates = np.arange(count, dtype=np.float32)[:, None]
    rule = make_rule(Choice(kind="bucketing", rule={"kind": "median"}, size=size, seed=seed))
    kept, seen = rule.begin(count, 1), []
    for _ in range(4):
        matrix, kept = rule.mixed(got_from(updates), kept)  # type: ignore[attr-defined]
        members = matrix > 0
        assert members.sum(axis=0).tolist() == [1] * count
        assert members.sum(axis=1).tolist() == [size] * (count // size) + [count % size] * (count % size > 0)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
        seen.append(matrix.tobytes())
    assert count <= size + 2 or len(set(seen)) > 1


def test_bucketing_keeps_what_the_median_of_skewed_updates_drops() -> None:
    """Karimireddy et al. 2022, section 3: of updates of which a minority alone moves a coordinate, the median gives zero, their mean does not."""
    updates = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)  # each of four coordinates is moved by a quarter of the clients
    assert result({"kind": "median"}, updates).tolist() == [0.0] * 4
    rounds = [result({"kind": "bucketing", "size": 4, "rule": {"kind": "median"}}, updates, rounds=k) for k in range(1, 21)]
    assert np.mean(rounds) > 0.1


@given(made=attacked())
def test_mixing_brings_the_honest_updates_nearer_and_stays_with_them(made: tuple[Updates, int]) -> None:
    """Allouah et al. 2023, algorithm 2, written out; what the mixed updates lie around is still near the honest mean."""
    updates, f = made
    exact = updates.astype(np.float64)
    near = [exact[np.argsort(((exact - one) ** 2).sum(axis=1), kind="stable")[: len(exact) - f]].mean(axis=0) for one in exact]
    found = result({"kind": "nnm", "attackers": f, "rule": {"kind": "median"}}, updates)
    np.testing.assert_allclose(found, np.median(near, axis=0), rtol=1e-4, atol=1e-3)
    honest, mixed = exact[:-f], np.array(near[:-f])
    far_off = np.linalg.norm(honest[:, None] - exact[-f:], axis=2).min() > 3 * np.linalg.norm(honest[:, None] - honest, axis=2).max()
    if far_off:  # each honest update is mixed with all honest ones and no other
        np.testing.assert_allclose(mixed, np.repeat(honest.mean(axis=0)[None], len(honest), axis=0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("section", "needed"),
    [
        ({"kind": "krum", "attackers": 4}, 6),
        ({"kind": "multi_krum", "attackers": 4}, 5),
        ({"kind": "geometric_median"}, 6),
        ({"kind": "nnm", "attackers": 4, "rule": {"kind": "median"}}, 5),
        ({"kind": "nnm", "attackers": 4, "rule": {"kind": "krum", "attackers": 4}}, 5),
    ],
)
def test_how_many_attackers_a_rule_withstands(section: dict[str, Any], needed: int) -> None:
    """Of eleven clients: with fewer attackers than ``needed``, all at one far point, the result is near the honest ones', with as many not."""
    honest = np.random.default_rng(1).normal(0, 1, (11, 20)).astype(np.float32)
    for attackers, holds in itertools.chain(zip(range(needed), itertools.repeat(True)), [(needed, False)]):
        updates = honest.copy()
        updates[:attackers] = 2000.0
        assert (np.abs(result(section, updates)).max() < 30.0) == holds, attackers
