"""Gaussian noise in the place of updates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedray.attacks.attack import UpdateAttack
from fedray.errors import ConfigError
from fedray.parameters import Vector


@dataclass(frozen=True)
class GaussianNoise(UpdateAttack):
    """Sends Gaussian noise instead of the update.

    Source: Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, section 6 (Gaussian)

    Attributes:
        deviation: standard deviation of each value, above 0.
    """

    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.deviation < math.inf:
            raise ConfigError(f"attack.deviation: {self.deviation} is not above 0.")

    def sent(self, update: Vector, draws: np.random.Generator) -> Vector:
        """The noise."""
        return draws.standard_normal(len(update), dtype=np.float32) * np.float32(self.deviation)


ATTACKS = {"gaussian": GaussianNoise}
