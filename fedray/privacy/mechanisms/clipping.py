"""The L2 clip of a whole update, and a clip norm that adapts to a quantile of the updates' norms."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError

Vector = npt.NDArray[np.float32]

_BLOCK = 1 << 16  # float64 scratch of 512 KiB: stays in cache
#: Bound on the relative rounding error of a norm: squares of float32 are exact in float64 and are added pairwise within blocks.
_MARGIN = 2.0**-44


def clip_update(update: Vector, clip: float, slack: float = 0.0) -> tuple[Vector, bool]:
    """Scale a whole update down to L2 norm ``clip - slack``, jointly over all its values.

    The bound holds for the returned float32 values in exact arithmetic: norms are float64, and scaled values are rounded towards zero. An
    update whose norm is within a relative 2**-44 of the bound counts as above it.

    Args:
        update: float32 ``[d]``; unchanged.
        clip: clip norm C.
        slack: margin below the clip norm for later rounding, in the same units.

    Returns:
        A new array, float32 ``[d]``, of zeros if ``update`` has a value that is not finite; and the bit of adaptive clipping: whether the norm
        of ``update`` is at most ``clip`` (False if it is not finite).

    Raises:
        ConfigError: ``clip`` is not a positive number, or not larger than ``slack``.

    Source: McMahan, Ramage, Talwar & Zhang 2018, Learning Differentially Private Recurrent Language Models, section 2 (flat clipping)
    """
    if not (math.isfinite(clip) and 0.0 <= slack < clip):
        raise ConfigError(f"privacy.clip: should be a positive number above the sum's rounding of {slack:g}, but is {clip:g}.")
    norm = l2_norm(update)
    if not math.isfinite(norm):
        return np.zeros_like(update), False
    target = clip - slack
    if norm * (1.0 + _MARGIN) <= target:
        return update.copy(), norm <= clip
    factor = target / norm * (1.0 - 2.0 * _MARGIN)
    clipped = np.empty_like(update)
    for start in range(0, len(update), _BLOCK):
        part = slice(start, start + _BLOCK)
        exact = update[part].astype(np.float64)
        exact *= factor
        rounded = exact.astype(np.float32)
        too_far = np.abs(rounded) > np.abs(exact)
        np.nextafter(rounded, np.float32(0), out=rounded, where=too_far)
        clipped[part] = rounded
    return clipped, norm <= clip


def l2_norm(vector: npt.NDArray[np.float32] | npt.NDArray[np.float64]) -> float:
    """The L2 norm with sums in float64; NaN if a value is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = [
            float(np.square(vector[start : start + _BLOCK], dtype=np.float64).sum(dtype=np.float64))
            for start in range(0, len(vector), _BLOCK)
        ]
    if not all(map(math.isfinite, blocks)):
        return math.nan
    return math.sqrt(math.fsum(blocks))


def next_clip(clip: float, noisy_bits_sum: float, denominator: float, quantile: float, rate: float) -> float:
    """The clip norm of the next round.

    Args:
        clip: C of this round.
        noisy_bits_sum: sum over the cohort of (bit - 1/2), plus noise of standard deviation ``bit_noise``.
        denominator: expected size of a cohort, a public constant.
        quantile: target quantile of the updates' norms, in [0, 1].
        rate: learning rate of the logarithm of C.

    Source: Andrew, Thakkar, McMahan & Ramaswamy 2021, Differentially Private Learning with Adaptive Clipping, algorithm 1
    """
    below = noisy_bits_sum / denominator + 0.5
    return clip * math.exp(-rate * (below - quantile))


def split_noise(noise_multiplier: float, bit_noise: float) -> float:
    """The noise multiplier z_delta of the updates at which updates and bits together cost as much as ``noise_multiplier`` alone.

    Bits are sent as +-1/2, so one client changes their sum by 1/2, and their noise multiplier is 2 ``bit_noise``:
    z**-2 = z_delta**-2 + (2 bit_noise)**-2.

    Args:
        noise_multiplier: charged noise multiplier z.
        bit_noise: standard deviation of the noise on the sum of (bit - 1/2).

    Raises:
        ConfigError: the bits alone cost as much as z allows.

    Source: Andrew, Thakkar, McMahan & Ramaswamy 2021, theorem 1
    """
    z = noise_multiplier
    if z >= 2.0 * bit_noise:
        raise ConfigError(
            f"privacy.adaptive_clip.bit_noise: should be above half the noise multiplier ({z / 2:g}), but is {bit_noise:g}: the bits alone "
            "would cost the whole budget; raise bit_noise (its default is a twentieth of the expected cohort) or use a fixed clip norm."
        )
    return z / math.sqrt(1.0 - (z / (2.0 * bit_noise)) ** 2)
