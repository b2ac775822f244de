"""Distributed DP: clients round their clipped updates to a grid and add integer noise, and only the sum in a ring is used.

A client scales its update to grid units, rotates it at random (optional, for small rings), rounds it stochastically until the norm is
within a public bound, adds exact integer noise, and reduces the result modulo 2**bits. The noise of ``shares`` clients together has the
standard deviation noise multiplier x clip; more clients add more noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedray.errors import ConfigError
from fedray.privacy.mechanisms.base import Floats, Vector
from fedray.privacy.mechanisms.integernoise import MAX_SIGMA, Integers, Kind, integer_noise
from fedray.rounding import three_digits
from fedray.updates.norm import clip_update
from fedray.updates.rotation import padded_dimension, rotate, unrotate
from fedray.updates.stage import Source

#: A rounding has a norm of at most ``Grid.l2`` with probability at least 1 - BETA.
BETA = math.exp(-0.5)
_MAX_BITS = 32
_DEVIATIONS = 6.0


@dataclass(frozen=True)
class Grid:
    """Public constants of the integer arithmetic, equal for all clients and the driver.

    Attributes:
        dimension: values of an update.
        clip: L2 norm C that updates are clipped to.
        scale: grid units per unit of the update: a coordinate x becomes about ``scale`` * x.
        bits: the ring is the integers modulo 2**bits, at most 32.
        rotate: whether updates are first spread by a random rotation, which rings of 16 bits or less need.
        shares: number of clients whose noise is guaranteed in the sum: the fewest clients of a round, without those that may collude.
        max_clients: largest number of clients whose encodings are added.
        noise_multiplier: standard deviation of the noise of ``shares`` clients together, over ``clip``.

    Raises:
        ConfigError: a constant is out of range, the noise is too large for the tables, or the ring is too small for the sum.
    """

    dimension: int
    clip: float
    scale: float
    bits: int
    rotate: bool
    shares: int
    max_clients: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name, value, good in (
            ("dimension", self.dimension, self.dimension >= 1),
            ("clip", self.clip, 0 < self.clip < math.inf),
            ("scale", self.scale, 0 < self.scale < math.inf),
            ("bits", self.bits, 2 <= self.bits <= _MAX_BITS),
            ("shares", self.shares, 1 <= self.shares <= self.max_clients),
            ("noise_multiplier", self.noise_multiplier, 0 <= self.noise_multiplier < math.inf),
        ):
            if not good:
                raise ConfigError(f"privacy.mechanism: the integer path cannot have {name} {value:g}.")
        if self.sigma > MAX_SIGMA:
            raise ConfigError(
                f"privacy.mechanism.scale: at {self.scale:g} grid units per unit each client's noise is {self.sigma:g} grid units, above "
                f"{MAX_SIGMA:g}; use a scale of at most {three_digits(self.scale * MAX_SIGMA / self.sigma):g}."
            )
        if self.range >= self.half_ring:
            raise ConfigError(self._too_small())

    @property
    def padded(self) -> int:
        """Number of values that a client sends: ``dimension``, or with a rotation the next power of two."""
        return padded_dimension(self.dimension) if self.rotate else self.dimension

    @property
    def l2(self) -> float:
        """Largest L2 norm of a rounded update, in grid units.

        Source: Kairouz, Liu & Steinke 2021, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation
            (conditional rounding, beta = exp(-1/2))
        """
        norm, d = self.clip * self.scale, self.padded
        likely = norm**2 + d / 4 + math.sqrt(2 * math.log(1 / BETA)) * (norm + math.sqrt(d) / 2)
        return math.sqrt(min(likely, (norm + math.sqrt(d)) ** 2))

    @property
    def l1(self) -> float:
        """Largest L1 norm of a rounded update, in grid units; the L2 bound applies because an integer is at most its square."""
        return self.l2 * min(math.sqrt(self.padded), self.l2)

    @property
    def sigma(self) -> float:
        """Standard deviation of one client's noise, in grid units."""
        return self.noise_multiplier * self.clip * self.scale / math.sqrt(self.shares)

    @property
    def variance(self) -> float:
        """Variance of the noise that is guaranteed in the sum, in squared grid units."""
        return self.shares * self.sigma**2

    @property
    def half_ring(self) -> int:
        """Half the size of the ring; sums in [-half_ring, half_ring) are decoded exactly."""
        return 1 << (self.bits - 1)

    @property
    def range(self) -> float:
        """Magnitude that a coordinate of the sum reaches with negligible probability, in grid units.

        It counts ``max_clients`` full updates in one direction, one unit of rounding for each, and 6 standard deviations of all clients' noise
        (probability 2e-9 per coordinate). With a rotation, a coordinate of the updates' sum is subgaussian over the random signs, and 6 of its
        standard deviations are counted (3e-8 per coordinate). A coordinate that wraps is wrong by 2**bits units, which does not affect privacy.
        """
        return self.max_clients + self.scale * self._range_per_scale()

    def _range_per_scale(self) -> float:
        spread = min(1.0, _DEVIATIONS / math.sqrt(self.padded)) if self.rotate else 1.0
        noise = _DEVIATIONS * self.noise_multiplier * math.sqrt(self.max_clients / self.shares)
        return self.clip * (self.max_clients * spread + noise)

    def _too_small(self) -> str:
        ways = []
        needed = math.floor(math.log2(self.range)) + 2
        if needed <= _MAX_BITS:
            ways.append(f"bits of at least {needed}")
        room = self.half_ring - self.max_clients
        if room > 0:
            ways.append(f"a scale of at most {three_digits(room / self._range_per_scale()):g}")
        return (
            f"privacy.mechanism.bits: a ring of {self.bits} bits holds sums up to {self.half_ring}, but {self.max_clients} clients of clip norm "
            f"{self.clip:g} at {self.scale:g} grid units per unit, with their noise, reach {self.range:.4g}; use {' or '.join(ways or ['fewer clients'])}."
        )


def encode(update: Vector, grid: Grid, rotation_seed: int, source: Source, kind: Kind) -> Integers:
    """One client's message: its update clipped, rounded, and with its share of the noise, in the ring.

    Args:
        update: float32 ``[dimension]``; an update that is not finite counts as zeros.
        grid: public constants.
        rotation_seed: public seed of the round; unused without a rotation.
        source: source of the rounding and of the noise.
        kind: ``ddg`` for the discrete Gaussian, or ``skellam``.

    Returns:
        int64 ``[padded]`` in [0, 2**bits).

    Source: Kairouz, Liu & Steinke 2021, algorithm 1; Agarwal, Kairouz & Liu 2021, The Skellam Mechanism for Differentially
        Private Federated Learning
    """
    rounded = round_within(_on_grid(update, grid, rotation_seed), grid.l2, source)
    rounded += integer_noise(kind, grid.sigma, grid.padded, source)
    rounded &= (1 << grid.bits) - 1
    return rounded


def decode(total: Integers, grid: Grid, rotation_seed: int) -> Floats:
    """The sum of the updates and of their noise.

    Args:
        total: int64 ``[padded]``, the sum of encodings, reduced modulo 2**bits or not.
        grid: public constants, as for the encodings.
        rotation_seed: seed of the encodings.

    Returns:
        float64 ``[dimension]``, in units of the updates.
    """
    centred = (total + grid.half_ring) & ((1 << grid.bits) - 1)
    centred -= grid.half_ring
    values = centred.astype(np.float64)
    values /= grid.scale
    return unrotate(values, grid.dimension, rotation_seed) if grid.rotate else values


def round_within(values: Floats, l2: float, source: Source) -> Integers:
    """Round each value up or down without bias, and repeat this until the L2 norm of all values is at most ``l2``.

    Args:
        values: float64 ``[n]`` in grid units; for a norm of at most C * scale one attempt succeeds with probability 1 - BETA at least.
        l2: bound, see :attr:`Grid.l2`; it holds exactly.
        source: source of the coins.

    Source: Kairouz, Liu & Steinke 2021 (conditional randomised rounding)
    """
    limit = math.floor(Fraction(l2) ** 2)
    down = np.floor(values)
    share = values - down
    floor = down.astype(np.int64)
    while True:
        rounded = floor + (source.uniform(len(values)) < share)
        if int(np.dot(rounded, rounded)) <= limit:
            return rounded


def _on_grid(update: Vector, grid: Grid, rotation_seed: int) -> Floats:
    clipped, _ = clip_update(update, grid.clip)
    values = clipped.astype(np.float64)
    values *= grid.scale
    return rotate(values, rotation_seed) if grid.rotate else values
