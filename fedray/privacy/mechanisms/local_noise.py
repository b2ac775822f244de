"""Noise at each client, for a driver that is not trusted.

The message of a client is private by itself: adjacency is replace-one (any two updates of the client), every participation is charged to
that client, and no amplification by sampling is claimed. The mean of many messages is post-processing, as is any aggregation rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedray.parameters import Vector
from fedray.privacy.accounting.events import Event, Gaussian, PureDp
from fedray.privacy.mechanisms.base import Charging, DriverStep, Facts, Floats, Mechanism
from fedray.privacy.mechanisms.privunit import PrivUnit
from fedray.updates.norm import clip_update
from fedray.updates.stage import At, Passed, Place, Source, Stage

TRUST = "only the client itself is trusted: the guarantee holds against the driver, the other clients and everyone who sees the models"


@dataclass(frozen=True)
class _Noising(Stage):
    """The common parts of this module's stages: the client sends its whole update as floats, none of which is zero."""

    clip: float
    place: ClassVar[Place] = "linear"
    weighs: ClassVar[bool] = True

    def sent(self, size: int, before: int) -> int:
        """All values as float32."""
        return 4 * size


@dataclass(frozen=True)
class GaussianStep(_Noising):
    """Clip the whole update and add Gaussian noise of standard deviation ``std`` to each value."""

    std: float

    def out(self, x: Vector, at: At) -> Passed:
        """The noised update, float32 ``[dimension]``."""
        clipped, _ = clip_update(x, self.clip)
        return Passed((clipped * at.share + at.source.normal(len(x)) * self.std).astype(np.float32))

    def terms(self) -> dict[str, Any]:
        """Clip norm and noise."""
        return {"clip": self.clip, "noise_std": self.std}


@dataclass(frozen=True)
class PrivUnitStep(_Noising):
    """Clip the whole update and send PrivUnit's unbiased, epsilon-private estimate of it."""

    epsilon: float

    def out(self, x: Vector, at: At) -> Passed:
        """The randomised update, float32 ``[dimension]``."""
        clipped, _ = clip_update(x, self.clip)
        mechanism = _privunit(len(x), self.clip, self.epsilon)
        return Passed(mechanism.encode(clipped * np.float32(at.share), at.source).astype(np.float32))

    def terms(self) -> dict[str, Any]:
        """Clip norm and epsilon of one update."""
        return {"clip": self.clip, "epsilon_of_one_update": self.epsilon}


@lru_cache(maxsize=4)
def _privunit(dimension: int, clip: float, epsilon: float) -> PrivUnit:
    return PrivUnit(dimension, clip, epsilon)


class Summed:
    """The part at the driver: the sum without further noise."""

    def release(self, values: npt.NDArray[np.int64], bits: int, std: float | Floats, source: Source) -> Floats:
        """See :class:`fedray.privacy.mechanisms.base.DriverStep`."""
        return np.ldexp(values.astype(np.float64), -bits)


@dataclass(frozen=True)
class _Local(Mechanism):
    """The common parts of this module's mechanisms."""

    regime: ClassVar[str] = "local"
    trust: ClassVar[str] = TRUST

    def charging(self, facts: Facts) -> Charging:
        """Each participation is charged to the client that takes part."""
        return Charging("participants", "replace_one")

    def driver(self, noise_multiplier: float, facts: Facts, size: int, round_: int) -> DriverStep:
        """The sum without further noise."""
        return Summed()


@dataclass(frozen=True)
class LocalGaussian(_Local):
    """Gaussian noise of standard deviation z C on each client's clipped update.

    Source: Dwork & Roth 2014, The Algorithmic Foundations of Differential Privacy, appendix A; Balle & Wang 2018 (its exact figure)

    Unit: one client, all of it replaced (sensitivity 2C). Event: Gaussian(z) under replace-one for each participation.
    """

    statement: ClassVar[str] = "each client clips its whole update and adds Gaussian noise to it before it leaves"

    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one participation."""
        return Gaussian(float(noise_multiplier))

    def client(self, noise_multiplier: float, clip: float, facts: Facts, bit: bool, round_: int) -> Stage:
        """Clip the update and add noise."""
        return GaussianStep(clip, noise_multiplier * clip)


@dataclass(frozen=True)
class PrivUnitMechanism(_Local):
    """PrivUnit: a random vector of fixed length near the update's direction, unbiased, pure epsilon-LDP; the noise multiplier is 1 / epsilon of one update.

    Source: Bhowmick, Duchi, Freudiger, Kapoor & Rogers 2018, Protection Against Reconstruction and Its Applications in Private Federated Learning, algorithm 1

    Unit: one client, all of it replaced. Event: PureDp(1 / z) for each participation.
    """

    statement: ClassVar[str] = "each client clips its whole update and sends PrivUnit's randomised estimate of it"

    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one participation."""
        return PureDp(1.0 / noise_multiplier)

    def client(self, noise_multiplier: float, clip: float, facts: Facts, bit: bool, round_: int) -> Stage:
        """Clip and randomise the update."""
        return PrivUnitStep(clip, 1.0 / noise_multiplier)


MECHANISMS = {"local_gaussian": LocalGaussian, "privunit": PrivUnitMechanism}
