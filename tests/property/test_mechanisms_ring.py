"""The ring's sum is the integers' sum, bit for bit; rounded norms never exceed their bound."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedray.privacy.csprng import InsecureSeeded
from fedray.privacy.mechanisms.discrete import Grid, decode, encode, round_within
from fedray.privacy.mechanisms.integernoise import integer_noise
from fedray.updates.norm import clip_update
from fedray.updates.rotation import rotate, unrotate

floats = st.one_of(st.floats(-10, 10, width=32), st.floats(width=32))
kinds = st.sampled_from(["ddg", "skellam"])
SIGMAS = [0.0, 0.7, 12.5]  # of each client, in grid units; few, because each has a table


@st.composite
def problems(draw, noise: bool = True) -> tuple[Grid, list[np.ndarray]]:
    clients = draw(st.integers(1, 6))
    dimension = draw(st.integers(1, 17))
    scale = draw(st.floats(0.5, 5000))
    clip = draw(st.floats(0.1, 5))
    z = draw(st.sampled_from(SIGMAS)) / (clip * scale) if noise else 0.0
    grid = Grid(dimension, clip, scale, 32, noise and draw(st.booleans()), 1, clients, z)
    fewest = int(grid.range).bit_length() + 1
    grid = replace(grid, bits=draw(st.integers(fewest, 32)))
    return grid, [draw(hnp.arrays(np.float32, dimension, elements=floats)) for _ in range(clients)]


def plain(update: np.ndarray, grid: Grid, seed: int, source: InsecureSeeded, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounded update and noise, as integers without a ring."""
    values = clip_update(update, grid.clip)[0].astype(np.float64) * grid.scale
    rounded = round_within(rotate(values, seed) if grid.rotate else values, grid.l2, source)
    return rounded, integer_noise(kind, grid.sigma, grid.padded, source)


@given(problems(), kinds, st.integers(0, 2**63))
@settings(max_examples=200)
def test_the_sum_in_the_ring_is_the_sum_of_integers_bit_for_bit(problem, kind, seed):
    grid, updates = problem
    ring = np.zeros(grid.padded, dtype=np.int64)
    whole = np.zeros(grid.padded, dtype=np.int64)
    for k, update in enumerate(updates):
        ring += encode(update, grid, seed, InsecureSeeded(1, 0, k), kind)
        rounded, noise = plain(update, grid, seed, InsecureSeeded(1, 0, k), kind)
        assert sum(int(x) ** 2 for x in rounded) <= Fraction(grid.l2) ** 2
        assert np.abs(rounded).sum() <= grid.l1 * (1 + 1e-12)
        whole += rounded + noise
    inside = (whole >= -grid.half_ring) & (whole < grid.half_ring)
    assert np.array_equal((ring - whole) % (1 << grid.bits), np.zeros(grid.padded))
    for total in (ring, ring & ((1 << grid.bits) - 1)):
        values = decode(total, grid, seed)
        assert values.shape == (grid.dimension,)
        if inside.all():
            exact = whole / grid.scale
            assert np.array_equal(values, unrotate(exact, grid.dimension, seed) if grid.rotate else exact)


@given(problems(noise=False), kinds)
@settings(max_examples=200)
def test_without_noise_or_rotation_nothing_wraps_and_each_client_adds_less_than_a_unit_of_error(problem, kind):
    grid, updates = problem
    total = sum(encode(update, grid, 0, InsecureSeeded(1, 0, k), kind) for k, update in enumerate(updates))
    truth = sum(clip_update(update, grid.clip)[0].astype(np.float64) for update in updates)
    assert np.all(np.abs(decode(total, grid, 0) - truth) <= len(updates) / grid.scale)


@given(st.integers(2, 20), st.integers(0, 1000))
def test_sums_wrap_beyond_the_stated_range_and_only_there(bits, beyond):
    grid = Grid(1, 1e-6, 1.0, bits, False, 1, 1, 0.0)
    half = grid.half_ring
    for whole in (half - 1, -half, 0, 1 - half):
        assert decode(np.array([whole]), grid, 0)[0] == whole
    assert decode(np.array([half + beyond % half]), grid, 0)[0] == beyond % half - half
    assert decode(np.array([-half - 1 - beyond % half]), grid, 0)[0] == half - 1 - beyond % half
