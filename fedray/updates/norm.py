"""Norm bounding, and the L2 clip of a whole update that it shares with the mechanisms of privacy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.updates.stage import At, Passed, Place, Stage

_BLOCK = 1 << 16  # float64 scratch of 512 KiB: stays in cache
#: Bound on the relative rounding error of a norm: squares of float32 are exact in float64 and are added pairwise within blocks.
_MARGIN = 2.0**-44


@dataclass(frozen=True)
class NormBound(Stage):
    """Scale an update whose L2 norm is larger down to a bound, so that no client moves the model further.

    Source: Sun, Kairouz, Suresh & McMahan 2019, Can You Really Backdoor Federated Learning?, section 4 (norm thresholding)

    Attributes:
        norm: largest L2 norm of an update over all its values, above 0.
    """

    norm: float
    place: ClassVar[Place] = "bound"

    def __post_init__(self) -> None:
        if not 0.0 < self.norm < math.inf:
            raise ConfigError(f"bound.norm: should be a positive number, but is {self.norm:g}.")

    def out(self, x: Vector, at: At) -> Passed:
        """The update, with a norm of at most the bound in exact arithmetic; one that is not finite as it came."""
        if not math.isfinite(l2_norm(x)):  # the sum refuses it, or a clip makes zeros of it
            return Passed(x)
        return Passed(clip_update(x, self.norm)[0])


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


BOUNDS = {"norm": NormBound}
