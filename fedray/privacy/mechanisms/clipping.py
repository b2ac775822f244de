"""A clip norm of whole updates that adapts to a quantile of the updates' norms."""

from __future__ import annotations

import math

from fedray.errors import ConfigError


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
