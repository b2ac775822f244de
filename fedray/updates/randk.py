"""Random-k sparsification with a mask that all clients of a round share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedray import rng
from fedray.parameters import Vector
from fedray.updates.feedback import with_feedback
from fedray.updates.share import check_share, number_of
from fedray.updates.stage import At, Passed, Place, Stage, Support


@dataclass(frozen=True)
class RandK(Stage):
    """Send the values of a random set that is drawn for each round and is the same for all clients.

    Source: Konecny et al. 2016, Federated Learning: Strategies for Improving Communication Efficiency, section 3 (subsampling); Stich,
        Cordonnier & Jaggi 2018, Sparsified SGD with Memory (random-k with memory)

    The papers draw a mask for each client. With one mask for all, sums are as sparse as updates, and the choice says nothing of a client.

    Attributes:
        share: share of the values that is sent, in (0, 1]; rounded down to a whole number of values, at least one.
        feedback: clients keep what was not sent (error feedback), and values are sent as they are. Without it nothing is kept, and values
            are multiplied by the inverse of the share: unbiased, of a larger variance.
    """

    share: float
    feedback: bool = False
    place: ClassVar[Place] = "lossy"
    support: ClassVar[Support] = "public"

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def state(self) -> bool:
        """Whether clients keep what was not sent."""
        return self.feedback

    def number(self, size: int) -> int:
        """Number of values that are sent of ``size``."""
        return number_of(self.share, size)

    def positions(self, size: int, seed: int, round_: int) -> npt.NDArray[np.int64]:
        """Positions of the values that are sent in a round of a run of this seed, int64, in no order."""
        return rng.generator(seed, "randk", round_).choice(size, self.number(size), replace=False, shuffle=False)

    def out(self, x: Vector, at: At) -> Passed:
        """The values of the round's mask, the rest zero; what is not finite as it came."""
        kept = self.positions(len(x), at.seed, at.round)
        factor = np.float32(1.0 if self.feedback else len(x) / len(kept))

        def sparse(wanted: Vector) -> Vector:
            values = np.zeros_like(wanted)
            values[kept] = wanted[kept] * factor
            return values

        return with_feedback(x, at, self.feedback, sparse)

    def sent(self, size: int, before: int) -> int:
        """The values alone: their positions follow from the run's seed and the round."""
        return 4 * self.number(size)


COMPRESSIONS = {"randk": RandK}
