"""Noise streams against their matrices: rows, covariance, sensitivity by brute force, and what they are good for.

Statistics fail for correct code with probability below 1e-6 each.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import linalg, special, stats

from fedray.errors import ClaimVoid
from fedray.privacy.csprng import Csprng, InsecureSeeded
from fedray.privacy.mechanisms.streams import Banded, Independent, TreeNoise, band_coefficients, banded_event_noise, max_column_norm

ALPHA = 1e-6


class Given:
    """A source whose normals are given: row t of ``draws`` is the t-th call's."""

    def __init__(self, draws: np.ndarray) -> None:
        self._rows = iter(draws)

    def normal(self, n: int) -> np.ndarray:
        row = next(self._rows)
        assert len(row) == n
        return row.copy()


def matrix_of(stream, steps: int) -> np.ndarray:
    """Rows: rounds; columns: normals drawn. What the stream does to unit vectors."""
    source = Given(np.eye(steps))
    return np.array([stream.next(source) for _ in range(steps)])


def tree_prefixes(steps: int) -> np.ndarray:
    """Row t: the nodes that prefix t sums. Node t is the interval that ends in t and is as long as t's lowest binary one."""
    rows = np.zeros((steps, steps))
    for t in range(1, steps + 1):
        rest = t
        while rest:
            rows[t - 1, rest - 1] = 1
            rest -= rest & -rest
    return rows


def tree_nodes(steps: int) -> np.ndarray:
    """Row t: the rounds under node t."""
    rows = np.zeros((steps, steps))
    for t in range(1, steps + 1):
        rows[t - 1, t - (t & -t) : t] = 1
    return rows


def band_matrix(steps: int, band: int) -> np.ndarray:
    """C by definition, from the central binomials."""
    j = np.arange(min(band, steps))
    column = np.zeros(steps)
    column[: len(j)] = special.binom(2 * j, j) / 4.0**j
    matrix = linalg.toeplitz(column, np.zeros(steps))
    return matrix / np.linalg.norm(matrix, axis=0).max()


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 13, 64])
def test_tree_noise_adds_up_to_the_nodes_of_each_prefix(steps) -> None:
    rows = matrix_of(TreeNoise(steps, steps), steps)
    assert np.array_equal(np.cumsum(rows, axis=0), tree_prefixes(steps))
    # The nodes that a prefix sums tile the prefix.
    assert np.array_equal(tree_prefixes(steps) @ tree_nodes(steps), np.tri(steps))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 13, 64, 100])
def test_a_round_is_in_as_many_nodes_as_the_tree_event_charges(steps) -> None:
    assert tree_nodes(steps).sum(axis=0).max() <= math.ceil(math.log2(steps + 1))


@pytest.mark.parametrize(("steps", "band"), [(1, 1), (5, 1), (6, 2), (9, 4), (7, 7), (4, 20)])
def test_banded_noise_is_the_inverse_of_the_square_root_times_normals(steps, band) -> None:
    matrix = band_matrix(steps, band)
    assert np.allclose(matrix_of(Banded(steps, steps, band), steps), np.linalg.inv(matrix), atol=1e-12)
    if band >= steps:
        norm = np.linalg.norm(special.binom(2 * np.arange(steps), np.arange(steps)) / 4.0 ** np.arange(steps))
        assert np.allclose(matrix @ matrix * norm**2, np.tri(steps))


def test_one_band_is_independent_noise() -> None:
    draws = np.random.default_rng(0).normal(size=(6, 3))
    assert np.allclose([Banded(3, 6, 1).next(Given(draws[:1])) for _ in range(1)], draws[:1])
    assert np.array_equal(Independent(3).next(Given(draws)), draws[0])


@pytest.mark.parametrize("make", [lambda size, steps: TreeNoise(size, steps), lambda size, steps: Banded(size, steps, 3)])
def test_the_covariance_of_what_comes_out_is_that_of_its_matrix(make) -> None:
    steps, size = 7, 60_000
    rows = matrix_of(make(steps, steps), steps)
    stream, source = make(size, steps), InsecureSeeded(5, 0, "driver")
    noise = np.array([stream.next(source) for _ in range(steps)])
    white = np.linalg.solve(rows, noise)  # independent standard normals, if the covariance is rows @ rows.T
    pairs = steps * (steps - 1) // 2
    low, high = stats.chi2.ppf([ALPHA / steps / 2, 1 - ALPHA / steps / 2], size) / size
    second = white @ white.T / size
    assert (np.diag(second) > low).all()
    assert (np.diag(second) < high).all()
    bound = stats.norm.isf(ALPHA / pairs / 2) / math.sqrt(size)
    assert np.abs(second[np.triu_indices(steps, 1)]).max() < bound
    assert np.allclose(noise @ noise.T / size, rows @ rows.T, atol=20 * np.abs(rows @ rows.T).max() / math.sqrt(size))


@pytest.mark.parametrize(("steps", "band"), [(8, 1), (9, 2), (10, 3), (10, 5), (8, 8)])
def test_sensitivity_over_all_participation_patterns_is_the_root_of_their_number(steps, band) -> None:
    matrix = linalg.toeplitz(np.r_[band_coefficients(steps, band), np.zeros(max(steps - band, 0))], np.zeros(steps))
    worst: dict[int, float] = {}
    for pattern in itertools.product((0, 1), repeat=steps):
        rounds = np.flatnonzero(pattern)
        if len(rounds) == 0 or (len(rounds) > 1 and np.diff(rounds).min() < band):
            continue
        # A unit's vectors may point anywhere: the norm of sum_i C[:, i] u_i^T is the largest where all Gram entries count.
        gram = np.abs(matrix[:, rounds].T @ matrix[:, rounds])
        worst[len(rounds)] = max(worst.get(len(rounds), 0.0), math.sqrt(gram.sum()))
    for participations, sensitivity in worst.items():
        assert sensitivity <= math.sqrt(participations) * (1 + 1e-15)
        assert banded_event_noise(2.0, participations) == pytest.approx(2.0 / math.sqrt(participations))
    assert worst[1] > 1 - 1e-12


def test_closer_participations_would_cost_more() -> None:
    matrix = band_matrix(10, 4)
    assert np.linalg.norm(matrix[:, 0] + matrix[:, 1]) > math.sqrt(2) * 1.2


@pytest.mark.parametrize("steps", [1, 2, 3, 17, 300, 5000])
@pytest.mark.parametrize("band", [1, 2, 3, 16, 300])
def test_no_column_is_longer_than_one(steps, band) -> None:
    assert 1 - 1e-12 < max_column_norm(band_coefficients(steps, band)) <= 1.0


def test_prefix_sums_carry_less_noise_than_independent_noise_of_the_same_charge() -> None:
    steps = 128

    def rmse(rows: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.sum(np.cumsum(rows, axis=0) ** 2, axis=1))))

    independent = rmse(np.eye(steps))
    # One participation: the tree's event costs as much as a Gaussian of z / sqrt(levels).
    tree = rmse(matrix_of(TreeNoise(steps, steps), steps)) * math.sqrt(math.ceil(math.log2(steps + 1)))
    full = rmse(matrix_of(Banded(steps, steps, steps), steps))
    assert full < tree < independent
    assert full < independent / 3
    # Eight participations of 16 rounds' distance, both charged sqrt(8).
    assert rmse(matrix_of(Banded(steps, steps, 16), steps)) < independent / 1.7


@pytest.mark.parametrize("make", [lambda: TreeNoise(2, 3), lambda: Banded(2, 3, 2)])
def test_a_stream_ends_with_its_rounds(make) -> None:
    stream, source = make(), Csprng()
    for _ in range(3):
        stream.next(source)
    with pytest.raises(ClaimVoid, match="the noise of 3 rounds is used up"):
        stream.next(source)


@pytest.mark.parametrize("make", [lambda: Independent(3), lambda: TreeNoise(3, 9), lambda: Banded(3, 9, 4)])
def test_what_the_caller_does_to_the_noise_does_not_reach_the_stream(make) -> None:
    spoiled, clean = make(), make()
    first, second = InsecureSeeded(1, 0, "driver"), InsecureSeeded(1, 0, "driver")
    for _ in range(9):
        noise = spoiled.next(first)
        assert noise.dtype == np.float64
        assert np.array_equal(noise, clean.next(second))
        noise *= 1e9
