"""The built-in lossy stages: what their papers promise, what they draw, and what they refuse.

Bounds on means of N draws are Hoeffding's for values within a range, for all values at once, with the probability ALPHA of a false alarm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rehearsed import Rehearsed, config_of, label_skewed

from fedray.errors import ConfigError, UpdateRejected
from fedray.parameters import Vector
from fedray.planning.combinations import check_only
from fedray.privacy.csprng import InsecureSeeded
from fedray.updates.drive import Drive
from fedray.updates.half import HalfPrecision
from fedray.updates.qsgd import Qsgd
from fedray.updates.randk import RandK
from fedray.updates.sign import Sign
from fedray.updates.stage import At, Stage

ALPHA = 1e-6
SIZE = 1000
UPDATE: Vector = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
UPDATE[::50] *= 20


def at(round_: int = 0, client: int = 0, seed: int = 0) -> At:
    return At(round_, 0, client, InsecureSeeded(seed, round_, client), seed=seed)


def mean_of(stage: Stage, x: Vector, draws: int) -> npt.NDArray[np.float64]:
    total = np.zeros(len(x))
    for round_ in range(draws):
        total += stage.out(x, at(round_)).values
    return total / draws


def hoeffding(ranges: npt.NDArray[np.float64], draws: int) -> npt.NDArray[np.float64]:
    return ranges * math.sqrt(math.log(2 * len(ranges) / ALPHA) / (2 * draws))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stochastic_levels_are_unbiased(bits: int) -> None:
    stage, draws = Qsgd(bits, block=64), 2000
    largest = np.maximum.reduceat(np.abs(UPDATE), np.arange(0, SIZE, 64)).repeat(64)[:SIZE].astype(np.float64)
    assert (np.abs(mean_of(stage, UPDATE, draws) - UPDATE) <= hoeffding(largest / stage.levels, draws) + 1e-6 * largest).all()


def test_a_scaled_random_set_is_unbiased() -> None:
    draws = 4000
    inverse = SIZE / RandK(0.2).number(SIZE)
    assert (np.abs(mean_of(RandK(0.2), UPDATE, draws) - UPDATE) <= hoeffding(np.abs(UPDATE) * inverse, draws) + 1e-6).all()


def test_levels_are_multiples_of_a_blocks_scale_and_no_farther_than_one() -> None:
    stage = Qsgd(4, block=64)
    values = stage.out(UPDATE, at()).values
    for start in range(0, SIZE, 64):
        x, rounded = UPDATE[start : start + 64], values[start : start + 64]
        step = float(np.abs(x).max()) / 7
        assert np.abs(rounded / step - np.rint(rounded / step)).max() < 1e-5
        assert np.abs(rounded - x).max() < step * (1 + 1e-6)
    assert not stage.out(np.zeros(SIZE, dtype=np.float32), at()).values.any()


def test_what_a_rotation_sends_has_the_updates_own_length_along_it() -> None:
    """DRIVE, section 4: the scale makes the inner product of what arrives and what was sent the squared norm, for every rotation."""
    for round_ in range(20):
        values = Drive(block=256).out(UPDATE, at(round_)).values.astype(np.float64)
        for start in range(0, SIZE, 256):
            x = UPDATE[start : start + 256].astype(np.float64)
            assert np.dot(values[start : start + 256], x) == pytest.approx(np.dot(x, x), rel=1e-6)


def test_the_error_of_a_rotated_sign_is_that_of_the_paper_and_has_mean_zero() -> None:
    """DRIVE, section 4: pi/2 - 1 of the squared norm for one client, and 1/N of that for the mean of N clients with rotations of their own."""
    clients, x = 400, np.random.default_rng(1).lognormal(size=4096).astype(np.float32)
    errors = [Drive().out(x, at(client=client)).values - x.astype(np.float64) for client in range(clients)]
    square = float(np.dot(x.astype(np.float64), x))
    assert np.mean([np.dot(error, error) for error in errors]) / square == pytest.approx(math.pi / 2 - 1, rel=0.02)
    mean = np.mean(errors, axis=0)
    # The squared norm of a mean of independent errors of mean zero: about chi-squared of 4096 degrees, of standard deviation 2.2 %.
    assert np.dot(mean, mean) / square == pytest.approx((math.pi / 2 - 1) / clients, rel=0.15)


def test_signs_have_the_mean_magnitude() -> None:
    x = np.array([3, -1, 0, -4], dtype=np.float32)
    first = Sign().out(x, at())
    assert first.values.tolist() == [2, -2, 2, -2]  # zero counts as positive
    assert first.state is not None and first.state["error"].tolist() == [1, 1, -2, -2]
    assert Sign(feedback=False).out(x, at()).state is None
    assert not Sign().out(np.zeros(4, dtype=np.float32), at()).values.any()


def test_half_precision_rounds_to_the_nearest() -> None:
    x = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, -0.1, 65504, 1e-9], dtype=np.float32)
    assert HalfPrecision().out(x, at()).values.tolist() == x.astype(np.float16).astype(np.float32).tolist()
    assert HalfPrecision("bfloat16").out(np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1e30]), at()).values[:2].tolist() == [1, 1 + 2.0**-6]
    with pytest.raises(
        UpdateRejected, match=r"magnitude 65520, above the largest number of float16, 65504; use compression.format=bfloat16"
    ):
        HalfPrecision().out(np.full(3, 65520, dtype=np.float32), at())


def test_a_round_has_one_mask_that_follows_from_the_seed() -> None:
    stage = RandK(0.05)
    masks = {key: np.flatnonzero(stage.out(UPDATE, at(*key)).values).tolist() for key in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]}
    assert masks[0, 0, 0] == masks[0, 1, 0] == sorted(stage.positions(SIZE, 0, 0).tolist())
    assert masks[0, 0, 0] != masks[1, 0, 0] and masks[0, 0, 0] != masks[0, 0, 1]
    assert all(len(mask) == 50 for mask in masks.values())


def test_a_run_moves_the_values_of_its_seeds_mask_alone() -> None:
    federation, _ = label_skewed()
    for seed in (1, 2):
        run = Rehearsed(config_of({"kind": "fedavg"}, seed=seed, compression={"kind": "randk", "share": 0.1}), federation)
        before = run.globals.copy()
        run.train([[0, 1], [2]])
        moved, allowed = np.flatnonzero(run.globals != before), RandK(0.1).positions(run.exchange.up_size, seed, 0)
        assert 0 < len(moved) <= len(allowed) and np.isin(moved, allowed).all()


def test_draws_do_not_depend_on_other_clients_and_attempts() -> None:
    for stage in (Qsgd(), Drive(), RandK(0.1)):
        again = stage.out(UPDATE, At(3, 1, 4, InsecureSeeded(0, 3, 4))).values
        assert again.tobytes() == stage.out(UPDATE, at(3, 4)).values.tobytes()
    assert Drive().out(UPDATE, at(3, 4)).values.tobytes() != Drive().out(UPDATE, at(3, 5)).values.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("stage", [RandK(1.0), Sign(), Qsgd(), Drive(), HalfPrecision(), HalfPrecision("bfloat16")], ids=str)
def test_what_is_not_finite_stays_so(stage: Stage, bad: float) -> None:
    passed = stage.out(np.array([1, bad, 3], dtype=np.float32), at())
    assert not np.isfinite(passed.values).all() and passed.state is None


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "randk"}, r"^compression.share: RandK needs it"),
        ({"kind": "randk", "share": 1.1}, r"^compression.share: should be above 0 and at most 1, but is 1.1\."),
        ({"kind": "sign", "share": 0.1}, r"^compression.share: unknown argument of Sign"),
        ({"kind": "qsgd", "bits": 1}, r"^compression.bits: should be from 2 to 8, but is 1; for 16 bits use compression.kind=half\."),
        ({"kind": "qsgd", "bits": 9}, r"^compression.bits: should be from 2 to 8"),
        ({"kind": "qsgd", "block": 0}, r"^compression.block: should be at least 1, but is 0\."),
        ({"kind": "drive", "block": 1000}, r"^compression.block: should be a power of two, but is 1000\."),
        ({"kind": "drive", "block": 0}, r"^compression.block: should be a power of two, but is 0\."),
        ({"kind": "half", "format": "float8"}, r"^compression.format: input should be 'float16' or 'bfloat16', got 'float8'\."),
    ],
)
def test_arguments_that_cannot_work_are_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_only(config_of({"kind": "fedavg"}, compression=section))


def test_bytes_of_one_update() -> None:
    sizes = {stage: stage.sent(199_210, 4 * 199_210) for stage in (RandK(0.01), Sign(), Qsgd(), Drive(), HalfPrecision())}
    assert list(sizes.values()) == [4 * 1992, 24_902 + 4, 99_605 + 4 * 390, 49 * (512 + 4), 2 * 199_210]
