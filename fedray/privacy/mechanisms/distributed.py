"""Distributed noise: each client adds a share of integer noise, and only the sum of many clients should be seen.

The integers add up in a ring of 2**bits, as secure aggregation requires. The shares of the fewest clients with which a round counts sum to
the whole noise; a round with fewer clients is given up. Without secure aggregation the sum is an ordinary integer sum, and the driver could
read a single update, which one share of the noise hardly protects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.privacy.accounting.events import DistributedGaussian, Event, Skellam
from fedray.privacy.mechanisms.base import Charging, DriverStep, Facts, Floats, Mechanism
from fedray.privacy.mechanisms.discrete import Grid, decode, encode
from fedray.privacy.mechanisms.integernoise import Kind, table_error
from fedray.updates.norm import clip_update
from fedray.updates.stage import At, Passed, Place, Source, Stage

TRUST = (
    "the driver and the actors are trusted with single updates, which they add up in the clear and which carry only a share of the noise: "
    "this run makes no secure sum (secure.kind), so it only simulates the protocol"
)
#: Standard deviation of a share, in grid units, for an automatic scale: rounding costs a tenth of a percent, and tables are made quickly.
_SIGMA = 2.0**13
#: An automatic scale, relative to the largest scale that the ring and the noise tables allow.
_SCALE_MARGIN = 0.98
#: Largest relative increase of delta by sampling noise from tables; it is so small that accounting ignores it.
_TABLES = 1e-6
_LEAST_DELTA = 1e-12


@dataclass(frozen=True)
class RingStep(Stage):
    """Clip, round to the grid, add this client's share of integer noise, reduce to the ring."""

    grid: Grid
    kind: Kind
    rotation_seed: int
    place: ClassVar[Place] = "linear"
    integer: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    def size(self, dimension: int) -> int:
        """The length of the update, or with a rotation the next power of two."""
        return self.grid.padded

    def out(self, x: Vector, at: At) -> Passed:
        """int64 ``[padded]`` in [0, 2**bits)."""
        if at.share != 1.0:
            x = clip_update(x, self.grid.clip)[0] * np.float32(at.share)
        return Passed(encode(x, self.grid, self.rotation_seed, at.source, self.kind))

    def sent(self, size: int, before: int) -> int:
        """All values with as many bits as the ring has."""
        return -(-self.grid.padded * self.grid.bits // 8)

    def terms(self) -> dict[str, Any]:
        """Clip norm, grid, ring and share of the noise."""
        return {"clip": self.grid.clip, "scale": self.grid.scale, "bits": self.grid.bits, "noise_std_in_grid_units": self.grid.sigma}


class Unscaled:
    """The part at the driver: decode the sum and undo scale and rotation."""

    def __init__(self, grid: Grid, rotation_seed: int) -> None:
        self._grid, self._seed = grid, rotation_seed

    def release(self, values: npt.NDArray[np.int64], bits: int, std: float | Floats, source: Source) -> Floats:
        """See :class:`fedray.privacy.mechanisms.base.DriverStep`; float64 ``[dimension]``. The noise is in the sum already."""
        return decode(values, self._grid, self._seed)


@dataclass(frozen=True)
class _Distributed(Mechanism):
    """The common parts of this module's mechanisms.

    Attributes:
        bits: number of bits of the ring.
        scale: grid units per unit of an update; None for the finest scale that rounding needs and the ring holds.
        rotate: whether to apply a random rotation first, which small rings need.
        colluding: number of clients of a cohort whose shares of the noise the adversary may know.
    """

    bits: int = 32
    scale: float | None = None
    rotate: bool = False
    colluding: int = 0
    regime: ClassVar[str] = "distributed"
    trust: ClassVar[str] = TRUST
    kind: ClassVar[Kind]

    def charging(self, facts: Facts) -> Charging:
        """Each participation is charged to the client, because the driver knows the cohort."""
        return Charging("participants")

    def check(self, facts: Facts) -> None:
        """Refuse more colluding clients than a round can have."""
        if facts.min_clients - self.colluding < 1:
            raise ConfigError(
                f"privacy.mechanism.colluding: of cohort.min_clients={facts.min_clients} shares of noise {self.colluding} may be known; "
                "raise min_clients."
            )

    def grid(self, noise_multiplier: float, facts: Facts) -> Grid:
        """The public constants of the integer arithmetic."""
        shares, most = facts.min_clients - self.colluding, _largest_cohort(facts)
        scale = self.scale if self.scale is not None else self._finest(noise_multiplier, facts, shares, most)
        return Grid(max(1, facts.dimension), facts.clip, scale, self.bits, self.rotate, shares, max(most, shares), noise_multiplier)

    def _finest(self, noise_multiplier: float, facts: Facts, shares: int, most: int) -> float:
        spread = min(1.0, 6.0 / math.sqrt(max(1, facts.dimension))) if self.rotate else 1.0
        reach = facts.clip * (most * spread + 6.0 * noise_multiplier * math.sqrt(most / shares))
        by_ring = (2.0 ** (self.bits - 1) - most) / reach
        by_tables = _SIGMA * math.sqrt(shares) / (max(noise_multiplier, 1e-9) * facts.clip)
        return max(_SCALE_MARGIN * min(by_ring, by_tables), 1e-300)

    def client(self, noise_multiplier: float, clip: float, facts: Facts, bit: bool, round_: int) -> Stage:
        """Clip, round, add noise, and reduce to the ring."""
        return RingStep(self.grid(noise_multiplier, facts), self.kind, round_)

    def driver(self, noise_multiplier: float, facts: Facts, size: int, round_: int) -> DriverStep:
        """Decode the sum."""
        grid = self.grid(noise_multiplier, facts)
        draws = float(grid.padded) * grid.max_clients * facts.rounds
        if table_error(self.kind, grid.sigma) * draws > _TABLES * _LEAST_DELTA:
            raise ConfigError("privacy.mechanism.scale: sampling this noise from tables is not exact enough for so many draws; lower it.")
        return Unscaled(grid, round_)


@dataclass(frozen=True)
class DistributedDiscreteGaussian(_Distributed):
    """Each client adds discrete Gaussian noise; the sum is nearly discrete Gaussian.

    Source: Kairouz, Liu & Steinke 2021, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation

    Unit: one client. Sensitivity of the sum of rounded updates: Delta_2, Delta_1 of the conditional rounding (zero-out).
    Event: DistributedGaussian(shares, sigma, Delta_2, Delta_1, d) for each participation.
    """

    kind: ClassVar[Kind] = "ddg"
    statement: ClassVar[str] = (
        "each client's update clipped, rounded to a grid and noised by a share of discrete Gaussian noise, summed in a ring"
    )

    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one participation."""
        grid = self.grid(noise_multiplier, facts)
        return DistributedGaussian(grid.shares, grid.sigma, grid.l2, grid.l1, grid.padded)


@dataclass(frozen=True)
class SkellamMechanism(_Distributed):
    """Each client adds Skellam noise (a difference of two Poisson variables); the sum is Skellam exactly.

    Source: Agarwal, Kairouz & Liu 2021, The Skellam Mechanism for Differentially Private Federated Learning

    Unit: one client. Sensitivity: as for ddg. Event: Skellam(variance, Delta_2, Delta_1) for each participation.
    """

    kind: ClassVar[Kind] = "skellam"
    statement: ClassVar[str] = "each client's update clipped, rounded to a grid and noised by a share of Skellam noise, summed in a ring"

    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one participation."""
        grid = self.grid(noise_multiplier, facts)
        return Skellam(grid.variance, grid.l2, grid.l1)


def _largest_cohort(facts: Facts) -> int:
    """Largest number of clients of a round; for Poisson cohorts the mean plus six standard deviations."""
    if facts.rate is None:
        return int(facts.cohort)
    q = float(facts.rate)
    return min(facts.cap or facts.clients, facts.clients, math.ceil(facts.cohort + 6 * math.sqrt(facts.cohort * (1 - q)) + 1))


MECHANISMS = {"ddg": DistributedDiscreteGaussian, "skellam": SkellamMechanism}
