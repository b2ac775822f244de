"""One bit for each value, with error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.parameters import Vector
from fedray.updates.feedback import with_feedback
from fedray.updates.stage import At, Passed, Place, Stage


@dataclass(frozen=True)
class Sign(Stage):
    """Send each value's sign, times the mean magnitude, and with feedback add what was lost to the client's next update.

    Source: Karimireddy, Rebjock, Stich & Jaggi 2019, Error Feedback Fixes SignSGD and Other Gradient Compression Schemes, algorithm 1;
        Seide, Fu, Droppo, Li & Yu 2014, 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of
        Speech DNNs

    Zero has the sign of positive values, because one bit has no third state.

    Attributes:
        feedback: clients keep what was lost (error feedback), without which all values of an update have one magnitude.
    """

    feedback: bool = True
    place: ClassVar[Place] = "lossy"

    @property
    def state(self) -> bool:
        """Whether clients keep what was lost."""
        return self.feedback

    def out(self, x: Vector, at: At) -> Passed:
        """The mean magnitude with each value's sign, of the update and of what was lost before; what is not finite as it came."""
        return with_feedback(x, at, self.feedback, scaled_signs)

    def sent(self, size: int, before: int) -> int:
        """A bit for each value, and the magnitude."""
        return -(-size // 8) + 4


def scaled_signs(values: Vector) -> Vector:
    """The mean magnitude of all values with the sign of each, float32."""
    scale = np.float32(np.abs(values).mean(dtype=np.float64))
    return np.where(values < 0, -scale, scale)


COMPRESSIONS = {"sign": Sign}
