"""Adaptive clipping against its formulas, and the clip's edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedray.errors import ConfigError
from fedray.privacy.mechanisms.clipping import next_clip, split_noise
from fedray.updates.norm import clip_update, l2_norm


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_all_zeros_and_not_within_the_clip(bad) -> None:
    clipped, within = clip_update(np.array([0.1, bad, 0.2], np.float32), 1.0)
    assert clipped.tolist() == [0, 0, 0]
    assert clipped.dtype == np.float32
    assert not within


def test_an_update_below_the_clip_is_copied_bit_for_bit() -> None:
    update = np.array([0.3, -0.4], np.float32)
    clipped, within = clip_update(update, 1.0)
    assert clipped.tobytes() == update.tobytes()
    assert clipped is not update
    assert within


def test_the_bit_speaks_of_the_clip_norm_and_not_of_the_slack() -> None:
    update = np.array([0.95], np.float32)
    clipped, within = clip_update(update, 1.0, 0.1)
    assert within
    assert clipped[0] == pytest.approx(0.9)
    assert not clip_update(np.array([1.1], np.float32), 1.0, 0.1)[1]


def test_the_largest_floats_are_scaled_and_not_lost() -> None:
    update = np.full(100_000, np.finfo(np.float32).max)
    clipped, within = clip_update(update, 2.0)
    assert not within
    assert 2.0 * (1 - 2**-23) < l2_norm(clipped) <= 2.0


def test_a_norm_that_float32_would_lose_is_seen() -> None:
    update = np.full(1 << 22, 1e-4, np.float32)  # norm 0.2048, each square below float32's resolution of their sum
    update[0] = 1.0
    clipped, _ = clip_update(update, 1.0)
    assert l2_norm(clipped) <= 1.0
    assert clipped[0] < 0.99


def test_no_values_are_within_every_clip() -> None:
    assert clip_update(np.zeros(0, np.float32), 1.0)[1]


@pytest.mark.parametrize(("clip", "slack"), [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (0.1, 0.1), (1.0, -0.5)])
def test_a_clip_that_is_none_is_refused(clip, slack) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.clip"):
        clip_update(np.ones(2, np.float32), clip, slack)


def test_the_split_is_the_published_one() -> None:
    assert split_noise(1.0, 5.0) == pytest.approx(1.005037815259212, rel=1e-14)
    # Raw bits of 0 and 1 would need more: (z**-2 - bit_noise**-2)**-1/2.
    assert split_noise(1.0, 2.5) == pytest.approx(1.0206207261596576, rel=1e-14)


def test_updates_and_bits_together_cost_what_was_charged() -> None:
    for z, bit_noise in ((0.5, 0.3), (1.0, 5.0), (3.0, 1.6)):
        z_delta = split_noise(z, bit_noise)
        assert z_delta > z
        assert z_delta**-2 + (2 * bit_noise) ** -2 == pytest.approx(z**-2)
    assert split_noise(0.0, 1.0) == 0.0


@pytest.mark.parametrize("bit_noise", [0.5, 0.1, 0.0])
def test_bits_that_cost_the_whole_budget_are_refused(bit_noise) -> None:
    with pytest.raises(ConfigError, match="bit_noise: should be above half the noise multiplier"):
        split_noise(1.0, bit_noise)


def test_the_clip_norm_finds_the_quantile_of_the_norms() -> None:
    norms = np.random.default_rng(0).lognormal(1.0, 0.5, 1000)
    for quantile in (0.2, 0.5, 0.9):
        clip = 0.1
        for _ in range(400):
            clip = next_clip(clip, float(np.sum((norms <= clip) - 0.5)), len(norms), quantile, 0.2)
        assert clip == pytest.approx(np.quantile(norms, quantile), rel=0.02)
