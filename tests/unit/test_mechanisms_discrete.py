"""The integer path: rotation, rounding, noise, ring, and the constants that make them private.

Statistics fail for correct code with probability below 1e-6 each.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import linalg, stats

from fedray.errors import ConfigError
from fedray.privacy.csprng import Csprng, InsecureSeeded
from fedray.privacy.mechanisms.discrete import BETA, Grid, decode, encode, round_within
from fedray.updates.rotation import padded_dimension, rotate, unrotate, walsh_hadamard

ALPHA = 1e-6
GRID = Grid(dimension=50, clip=1.0, scale=1000.0, bits=20, rotate=False, shares=4, max_clients=10, noise_multiplier=1.0)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_walsh_hadamard_is_its_matrix_and_twice_is_n(n) -> None:
    whole = np.random.default_rng(n).integers(-1000, 1000, n).astype(np.float64)
    values = whole.copy()
    walsh_hadamard(values)
    assert np.array_equal(values, linalg.hadamard(n) @ whole)
    walsh_hadamard(values)
    assert np.array_equal(values, n * whole)


@pytest.mark.parametrize("d", [1, 2, 3, 64, 65, 5000])
def test_a_rotation_is_undone_and_keeps_the_norm(d) -> None:
    vector = np.random.default_rng(d).normal(size=d)
    rotated = rotate(vector, 11)
    assert len(rotated) == padded_dimension(d) >= d
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(vector), rel=1e-12)
    assert np.allclose(unrotate(rotated, d, 11), vector, rtol=0, atol=1e-14 * np.linalg.norm(vector))


def test_a_rotation_spreads_and_depends_on_its_seed() -> None:
    vector = np.zeros(4096)
    vector[:4] = 1.0
    # The bound is 6 deviations for each of 4096 coordinates: exceeded with probability 4096 * 2 exp(-18) < 2e-4 if signs were random;
    # the seed is fixed, so this cannot fail now and then.
    assert np.abs(rotate(vector, 1)).max() < 6 * 2 / 64
    assert not np.allclose(rotate(vector, 1), rotate(vector, 2))
    assert np.array_equal(rotate(vector, 1), rotate(vector, 1))


# clip in grid units, dimension, clients, noise multiplier: L2, L1 and each client's sigma of google-research's accounting
REFERENCE = [
    (16384.0, 2097152, 10, 1.0, 16400.513774798153, 23750480.906451266, 5181.075718419873),
    (16384.0, 2097152, 10, 4.0, 16400.513774798153, 23750480.906451266, 20724.30287367949),
    (256.0, 65536, 50, 2.0, 286.8867372326577, 73443.00473156037, 72.40773439350247),
    (100.0, 1024, 5, 1.0, 101.84301645179212, 3258.976526457348, 44.72135954999579),
]


@pytest.mark.parametrize(("clip", "dimension", "clients", "z", "l2", "l1", "sigma"), REFERENCE)
def test_sensitivities_and_noise_are_the_published_ones(clip, dimension, clients, z, l2, l1, sigma) -> None:
    grid = Grid(dimension, 0.5, 2 * clip, 32, False, clients, clients, z)
    assert grid.l2 == pytest.approx(l2, rel=1e-14)
    assert grid.l1 == pytest.approx(l1, rel=1e-14)
    assert grid.sigma == pytest.approx(sigma, rel=1e-14)
    assert grid.variance == pytest.approx((z * clip) ** 2)


@pytest.mark.parametrize("kind", ["ddg", "skellam"])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_sum_comes_back_with_the_planned_noise(kind, rotated) -> None:
    clients = 6
    grid = replace(GRID, dimension=3000, rotate=rotated, scale=4000.0, max_clients=clients)
    draw = np.random.default_rng(1)
    updates = [(draw.normal(size=3000) * size).astype(np.float32) for size in (0.001, 0.01, 0.018, 0.1, 1.0, 30.0)]
    total = np.zeros(grid.padded, dtype=np.int64)
    truth = np.zeros(3000)
    for k, update in enumerate(updates):
        encoded = encode(update, grid, 7, InsecureSeeded(1, 0, k), kind)
        assert encoded.dtype == np.int64
        assert encoded.min() >= 0
        assert encoded.max() < 1 << grid.bits
        total += encoded
        truth += update * min(1.0, 1 / float(np.linalg.norm(update.astype(np.float64))))
    error = decode(total, grid, 7) - truth
    # Noise of all six clients, and of rounding: at most 1/4 each in grid units.
    std = math.sqrt(clients / grid.shares)
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 3000) / 3000
    assert low * std**2 < float(np.mean(error**2)) < high * (std**2 + clients / 4 / grid.scale**2)
    assert stats.kstest(error / std, "norm").pvalue > ALPHA


def test_rounding_alone_is_unbiased_and_within_a_unit() -> None:
    grid = replace(GRID, noise_multiplier=0.0, scale=10.0)
    update = (np.random.default_rng(0).normal(size=50) * 0.02).astype(np.float32)
    n, source = 20_000, InsecureSeeded(2, 0, "a")
    draws = np.array([decode(encode(update, grid, 0, source, "ddg"), grid, 0) for _ in range(n)])
    assert np.abs(draws - update).max() < 1 / grid.scale
    # One value is 0 or 1 grid units: its mean over n is within this many deviations of at most half a unit.
    assert np.abs(draws.mean(axis=0) - update).max() < stats.norm.isf(ALPHA / 100) * 0.5 / grid.scale / math.sqrt(n)


class Counting:
    """Counts how often uniforms are drawn."""

    def __init__(self) -> None:
        self.calls, self._source = 0, Csprng()

    def uniform(self, n: int) -> np.ndarray:
        self.calls += 1
        return self._source.uniform(n)


@pytest.mark.parametrize(("dimension", "scale"), [(1, 5.5), (1000, 100.5), (1000, 5.0), (4096, 32.0)])
def test_roundings_are_within_the_bound_and_seldom_need_another_attempt(dimension, scale) -> None:
    grid = replace(GRID, dimension=dimension, scale=scale, noise_multiplier=0.0)
    values = np.full(dimension, scale / math.sqrt(dimension))
    source, n = Counting(), 300
    for _ in range(n):
        rounded = round_within(values, grid.l2, source)
        assert math.sqrt(int(rounded @ rounded)) <= grid.l2
    # Attempts beyond the first are failures of probability at most BETA each.
    assert source.calls - n <= stats.nbinom.isf(ALPHA, n, 1 - BETA)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_sends_noise_alone(bad) -> None:
    update = np.full(50, bad, np.float32)
    zeros = encode(np.zeros(50, np.float32), GRID, 0, InsecureSeeded(1, 0, "a"), "skellam")
    assert np.array_equal(encode(update, GRID, 0, InsecureSeeded(1, 0, "a"), "skellam"), zeros)


def suggested(error: ConfigError, what: str) -> float:
    found = re.search(rf"{what} of at (?:most|least) ([0-9.e+-]+\d)", str(error))
    assert found is not None, str(error)
    return float(found[1])


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("scale", [1e4, 3e5])
def test_a_ring_that_is_too_small_is_refused_with_what_would_fit(rotated, scale) -> None:
    constants = {"dimension": 100_000, "clip": 0.7, "rotate": rotated, "shares": 80, "max_clients": 200, "noise_multiplier": 1.0}
    with pytest.raises(ConfigError, match="a ring of 14 bits") as refused:
        Grid(scale=scale, bits=14, **constants)
    bits = int(suggested(refused.value, "bits"))
    assert Grid(scale=scale, bits=bits, **constants).bits == bits
    with pytest.raises(ConfigError):
        Grid(scale=scale, bits=bits - 1, **constants)
    fitting = suggested(refused.value, "a scale")
    Grid(scale=fitting, bits=14, **constants)
    with pytest.raises(ConfigError):
        Grid(scale=fitting * 1.02, bits=14, **constants)


def test_a_ring_that_no_scale_fits_asks_for_more_bits_only() -> None:
    with pytest.raises(ConfigError, match=r"use bits of at least \d+\.$"):
        replace(GRID, bits=4)


def test_noise_beyond_the_tables_is_refused_with_the_scale_that_fits() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.mechanism\.scale") as refused:
        replace(GRID, scale=1e6, bits=32)
    replace(GRID, scale=suggested(refused.value, "a scale"), bits=32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimension": 0},
        {"clip": 0.0},
        {"clip": math.nan},
        {"scale": -1.0},
        {"scale": math.inf},
        {"bits": 33},
        {"bits": 1},
        {"shares": 0},
        {"shares": 11},
        {"noise_multiplier": -1.0},
    ],
)
def test_constants_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.mechanism"):
        replace(GRID, **wrong)
