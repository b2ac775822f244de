"""Noise at a trusted driver: DP-FedAvg with independent Gaussian noise, and DP-FTRL with correlated noise.

Each client clips its whole update to C. The driver adds noise of standard deviation z C to the sum and divides by a public constant.
Removing one client's contribution changes the sum by at most C (zero-out adjacency). The sum is an integer sum on a grid, and the noise is
rounded to that grid before it is added. The result is therefore a rounding of the real-valued mechanism's result and reveals no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.privacy.accounting.events import Event, Gaussian, Poisson, Tree, TruncatedPoisson, Wor
from fedray.privacy.mechanisms.base import Charging, DriverStep, Facts, Floats, Mechanism
from fedray.privacy.mechanisms.streams import Banded, Independent, NoiseStream, TreeNoise, banded_event_noise
from fedray.updates.norm import clip_update
from fedray.updates.stage import At, Passed, Place, Source, Stage

TRUST = "the driver and the actors are trusted; the guarantee holds against everyone who sees the models and the released metrics"


@dataclass(frozen=True)
class Clipped(Stage):
    """The part at the clients: clip the whole update and multiply it by its weight.

    Attributes:
        clip: L2 bound of the message, including the rounding to the sum's grid.
        slack: margin for that rounding.
        bit: whether to append 1/2 if the update was within the clip norm, else -1/2 (Andrew et al. 2021).
    """

    clip: float
    slack: float
    bit: bool
    place: ClassVar[Place] = "linear"
    weighs: ClassVar[bool] = True

    def size(self, dimension: int) -> int:
        """The length of the update, plus 1 for the bit."""
        return dimension + self.bit

    def out(self, x: Vector, at: At) -> Passed:
        """The clipped update times its share, float32 ``[size]``; an update that is not finite becomes zeros."""
        clipped, within = clip_update(x, self.clip, self.slack)
        if at.share != 1.0:
            clipped *= np.float32(at.share)
        return Passed(np.append(clipped, np.float32(0.5 if within else -0.5)) if self.bit else clipped)

    def sent(self, size: int, before: int) -> int:
        """What came in, and the bit as a value."""
        return before + 4 * self.bit

    def terms(self) -> dict[str, Any]:
        """The clip norm."""
        return {"clip": self.clip}


class Noised:
    """The part at the driver: noise of a stream on the sum."""

    def __init__(self, stream: NoiseStream) -> None:
        self._stream = stream

    def release(self, values: npt.NDArray[np.int64], bits: int, std: float | Floats, source: Source) -> Floats:
        """See :class:`fedray.privacy.mechanisms.base.DriverStep`."""
        noise = self._stream.next(source)
        noise *= np.ldexp(std, bits)
        return np.ldexp((values + np.rint(noise).astype(np.int64)).astype(np.float64), -bits)


@dataclass(frozen=True)
class _Central(Mechanism):
    """The common parts of this module's mechanisms."""

    regime: ClassVar[str] = "client"
    trust: ClassVar[str] = TRUST

    def client(self, noise_multiplier: float, clip: float, facts: Facts, bit: bool, round_: int) -> Stage:
        """Clip and weigh the update."""
        return Clipped(clip, facts.slack, bit)

    def driver(self, noise_multiplier: float, facts: Facts, size: int, round_: int) -> DriverStep:
        """Add noise to the sum."""
        if noise_multiplier * facts.clip * 2.0**facts.grid > 2.0**57:
            raise ConfigError(
                f"privacy.clip: noise of {noise_multiplier * facts.clip:g} does not fit the sum's grid of 2**-{facts.grid}; "
                "scale the model or its learning rate so that a smaller clip norm does."
            )
        return Noised(self._stream(facts, size))

    def _stream(self, facts: Facts, size: int) -> NoiseStream:
        raise NotImplementedError


@dataclass(frozen=True)
class CentralGaussian(_Central):
    """Independent Gaussian noise on every round's sum (DP-FedAvg, DP-FedSGD).

    Source: McMahan, Ramage, Talwar & Zhang 2018, Learning Differentially Private Recurrent Language Models, algorithm 1

    Unit: one client. Sensitivity of the sum: C under zero-out; 2C under replace-one, which fixed-size cohorts need.
    Events: Poisson cohorts Poisson(q, Gaussian(z)), with a cap its truncated form (arXiv 2508.15089); cohorts of fixed
    size Wor(N, m, Gaussian(z)); all clients or cyclic cohorts Gaussian(z) for each participation, without amplification.
    """

    statement: ClassVar[str] = "each client's update clipped jointly over all exchanged values, independent Gaussian noise on the sum"

    def charging(self, facts: Facts) -> Charging:
        """Participants are charged if cohorts are cyclic, else everyone."""
        if facts.sampling == "cyclic":
            return Charging("participants")
        return Charging("everyone", "replace_one" if facts.sampling == "fixed" else "zero_out")

    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one round."""
        gaussian = Gaussian(float(noise_multiplier))
        if facts.sampling == "fixed":
            return Wor(facts.clients, int(facts.cohort), gaussian)
        if facts.sampling == "poisson":
            assert facts.rate is not None
            if facts.cap is not None:
                return TruncatedPoisson(facts.clients, facts.rate, facts.cap, float(noise_multiplier))
            return Poisson(facts.rate, gaussian)
        return gaussian

    def _stream(self, facts: Facts, size: int) -> NoiseStream:
        return Independent(size)


@dataclass(frozen=True)
class TreeAggregation(_Central):
    """DP-FTRL by tree aggregation: prefix sums noised by a binary tree, no sampling of clients needed.

    Source: Kairouz, McMahan, Song, Thakkar, Thakurta & Xu 2021, Practical and Private (Deep) Learning without Sampling or Shuffling

    Unit: one client. Sensitivity of a node: C (zero-out); a client takes part at most once in a tree, which the driver
    enforces. Event: Tree(z, restart_every) for each tree, charged when the tree begins. A resumed run begins a new tree.
    Use it with server.kind sgd (momentum is fine): the model is then a function of the noised prefix sums.

    Attributes:
        restart_every: number of rounds of one tree; None for all rounds.
    """

    restart_every: int | None = None
    statement: ClassVar[str] = (
        "each client's update clipped jointly over all exchanged values, prefix sums noised by a binary tree of Gaussians"
    )

    def charging(self, facts: Facts) -> Charging:
        """One charge per tree, to everyone."""
        span = self._span(facts)
        return Charging("everyone", span=span, separation=span, most=1)

    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one tree."""
        return Tree(float(noise_multiplier), self._span(facts))

    def check(self, facts: Facts) -> None:
        """Refuse a number of rounds per tree outside the run."""
        _check_span("restart_every", self.restart_every, facts)

    def _span(self, facts: Facts) -> int:
        return self.restart_every or facts.rounds

    def _stream(self, facts: Facts, size: int) -> NoiseStream:
        return TreeNoise(size, self._span(facts))


@dataclass(frozen=True)
class BandedFactorization(_Central):
    """DP-FTRL by banded matrix factorization: correlated noise that partly cancels in the prefix sums, several participations.

    Source: Choquette-Choo et al. 2023, (Amplified) Banded Matrix Factorization; coefficients: Kalinin & Lampert 2024, Banded Square Root Matrix Factorization

    Unit: one client. A client takes part at most k times, at least ``band`` rounds apart (the driver enforces both), so
    its columns of the strategy matrix do not overlap and the sensitivity is sqrt(k) C (zero-out). Event: one
    Gaussian(z / sqrt(k)) for all rounds of a matrix, charged when it begins. A resumed run begins a new matrix.

    Attributes:
        band: number of bands of the strategy matrix, and least separation of two participations in rounds.
        restart_every: number of rounds of one matrix; None for all rounds.
    """

    band: int
    restart_every: int | None = None
    statement: ClassVar[str] = (
        "each client's update clipped jointly over all exchanged values, prefix sums noised by a banded matrix factorization"
    )

    def charging(self, facts: Facts) -> Charging:
        """One charge per matrix, to everyone."""
        span = self._span(facts)
        possible = math.ceil(span / self.band)
        return Charging("everyone", span=span, separation=self.band, most=min(facts.max_participations or possible, possible))

    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one matrix."""
        return Gaussian(banded_event_noise(noise_multiplier, self.charging(facts).most))

    def check(self, facts: Facts) -> None:
        """Refuse bands and rounds per matrix outside the run."""
        _check_span("restart_every", self.restart_every, facts)
        _check_span("band", self.band, facts)

    def _span(self, facts: Facts) -> int:
        return self.restart_every or facts.rounds

    def _stream(self, facts: Facts, size: int) -> NoiseStream:
        return Banded(size, self._span(facts), self.band)


def _check_span(name: str, value: int | None, facts: Facts) -> None:
    if value is not None and not 1 <= value <= facts.rounds:
        raise ConfigError(f"privacy.mechanism.{name}: should be between 1 and the {facts.rounds} rounds of the run, but is {value}.")


MECHANISMS = {"gaussian": CentralGaussian, "tree": TreeAggregation, "banded": BandedFactorization}
