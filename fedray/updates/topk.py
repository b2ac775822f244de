"""Top-k sparsification with error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.parameters import Vector
from fedray.updates.feedback import with_feedback
from fedray.updates.share import check_share, number_of
from fedray.updates.stage import At, Passed, Place, Stage, Support

_BYTES = 8  # a position (uint32) and a value (float32)


@dataclass(frozen=True)
class TopK(Stage):
    """Send the values of largest magnitude only, and with feedback add what was not sent to the client's next update.

    Source: Stich, Cordonnier & Jaggi 2018, Sparsified SGD with Memory; Karimireddy et al. 2019, Error Feedback Fixes SignSGD and other
        Gradient Compression Schemes, algorithm 2

    Of equal magnitudes the first are sent, so that the result does not depend on the processor.

    Attributes:
        share: share of the values that is sent, in (0, 1]; rounded down to a whole number of values, at least one.
        feedback: clients keep what was not sent (error feedback), without which most of the small values are lost.
    """

    share: float
    feedback: bool = True
    place: ClassVar[Place] = "lossy"
    support: ClassVar[Support] = "own"

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def state(self) -> bool:
        """Whether clients keep what was not sent."""
        return self.feedback

    def number(self, size: int) -> int:
        """Number of values that are sent of ``size``."""
        return number_of(self.share, size)

    def out(self, x: Vector, at: At) -> Passed:
        """The largest values of the update and of what was not sent before, the rest zero; what is not finite as it came."""
        return with_feedback(x, at, self.feedback, self._sparse)

    def _sparse(self, wanted: Vector) -> Vector:
        kept = largest(wanted, self.number(len(wanted)))
        values = np.zeros_like(wanted)
        values[kept] = wanted[kept]
        return values

    def sent(self, size: int, before: int) -> int:
        """Position and value of each number that is sent, unless all of them take less."""
        return min(before, _BYTES * self.number(size))


def largest(values: Vector, number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ascending positions of the ``number`` values of largest magnitude, int64; of equal ones the first."""
    if number >= len(values):
        return np.arange(len(values))
    magnitudes = np.abs(values)
    least = np.partition(magnitudes, len(values) - number)[len(values) - number]
    above, equal = np.flatnonzero(magnitudes > least), np.flatnonzero(magnitudes == least)
    return np.sort(np.concatenate([above, equal[: number - len(above)]]))


COMPRESSIONS = {"topk": TopK}
