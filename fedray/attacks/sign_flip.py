"""Sign flipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedray.attacks.attack import UpdateAttack
from fedray.errors import ConfigError
from fedray.parameters import Vector


@dataclass(frozen=True)
class SignFlip(UpdateAttack):
    """Sends the opposite of the update, some times as long.

    Source: Li, Xu, Chen, Giannakis, Ling 2019, RSA: Byzantine-Robust Stochastic Aggregation Methods, section 5.2 (sign-flipping)

    Attributes:
        times: how often as long, above 0.
    """

    times: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.times < math.inf:
            raise ConfigError(f"attack.times: {self.times} is not above 0.")

    def sent(self, update: Vector, draws: np.random.Generator) -> Vector:
        """The opposite."""
        return update * np.float32(-self.times)


ATTACKS = {"sign_flip": SignFlip}
