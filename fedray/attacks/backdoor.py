"""A backdoor that a pattern of pixels opens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedray.attacks.attack import RecordAttack
from fedray.data.records import Features, Records
from fedray.errors import ConfigError


@dataclass(frozen=True)
class Backdoor(RecordAttack):
    """Trains on a share of images with a bright square in a corner, which it labels with a class of its own choice.

    Source: Gu, Liu, Dolan-Gavitt, Garg 2019, BadNets: Evaluating Backdooring Attacks on Deep Neural Networks; by clients of federated learning:
        Bagdasaryan et al. 2020, How To Backdoor Federated Learning

    What it is for does not show in the accuracy on clean records: measure how often images with the square get the class.

    Attributes:
        target: the class.
        share: of a malicious client's images that get the square and the class, in (0, 1].
        pixels: side of the square, at least 1.
        value: of the square's pixels, as records are after data.normalize.
    """

    target: int = 0
    share: float = 0.5
    pixels: int = 4
    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"attack.share: {self.share} is not in (0, 1].")
        if self.pixels < 1 or self.target < 0 or not math.isfinite(self.value):
            raise ConfigError("attack: target is below 0, pixels is below 1, or value is no number.")

    def stamped(self, x: Features) -> Features:
        """Images with the square at their last rows and columns, a copy.

        Raises:
            ConfigError: the records are no images, or smaller than the square.
        """
        if x.ndim < 3 or x.dtype != np.float32 or min(x.shape[-2:]) < self.pixels:
            raise ConfigError(f"attack.kind: 'backdoor' needs images of at least {self.pixels} x {self.pixels} pixels, not {x.shape[1:]}.")
        found = x.copy()
        found[..., -self.pixels :, -self.pixels :] = self.value
        return found

    def changed(self, train: Records, classes: int | None, draws: np.random.Generator) -> Records:
        """The records with some that open the backdoor."""
        if classes is None or train.y.ndim != 1 or self.target >= classes:
            raise ConfigError(f"attack.target: there is no class {self.target} among {classes or 'real numbers'}.")
        chosen = draws.permutation(len(train))[: math.ceil(self.share * len(train))]
        x, y = train.x.copy(), train.y.copy()
        x[chosen], y[chosen] = self.stamped(train.x[chosen]), self.target
        return Records(x, y)


ATTACKS = {"backdoor": Backdoor}
