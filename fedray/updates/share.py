"""The share of an update's values that a sparse stage sends."""

from __future__ import annotations

import math

from fedray.errors import ConfigError


def check_share(share: float) -> None:
    """Refuse a share of values that is not in (0, 1].

    Raises:
        ConfigError: it is not.
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"compression.share: should be above 0 and at most 1, but is {share:g}.")


def number_of(share: float, size: int) -> int:
    """Number of values that are sent of ``size``: rounded down, at least one."""
    return max(1, math.floor(share * size))
