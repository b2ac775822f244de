"""What an update goes through between the client and the sum: the interface of a stage.

An update is the whole float32 vector that leaves a client, with all fields of the algorithm. Stages come in the order *lossy* (compression),
*bound* (a limit on the update's norm), *linear* (what is added up: clipped, noised, encoded). Only under local privacy the noise comes before a
lossy stage, which then works on what is private already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedray.parameters import Vector

Place = Literal["lossy", "bound", "linear"]
Support = Literal["all", "public", "own"]


class Source(Protocol):
    """A source of random draws; :mod:`fedray.privacy.csprng` has the two implementations."""

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        """``n`` values in [0, 1), float64."""
        ...

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        """``n`` standard normal values, float64."""
        ...

    def u64(self, n: int) -> npt.NDArray[np.uint64]:
        """``n`` uniform 64-bit words, uint64."""
        ...


@dataclass(frozen=True)
class At:
    """Where in a run an update passes a stage.

    Attributes:
        round: number of the round, from 0.
        attempt: how often the client was tried before in this round.
        client: index of the client.
        source: source of random draws: secret under privacy, else the same for every attempt, so that a run can be repeated.
        share: in (0, 1], what a stage that weighs multiplies the update by; see ``privacy.weight_cap``.
        state: what this stage has kept for the client, by name; empty if nothing yet. Not to be changed.
        seed: the run's, which everyone may know: for draws that the receiver repeats, keyed by :mod:`fedray.rng`, such as a mask that all
            clients of a round share.
    """

    round: int
    attempt: int
    client: int
    source: Source
    share: float = 1.0
    state: Mapping[str, Vector] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Passed:
    """What a stage has made of an update.

    Attributes:
        values: what is added up, float32 ``[size]``, or int64 ``[size]`` from a stage of integers; of a lossy stage what the receiver
            reconstructs from the message.
        state: what the stage keeps for the client's next turn, float32 vectors by name; it counts only if the update does. None: as before.
    """

    values: npt.NDArray[Any]
    state: Mapping[str, Vector] | None = None


class Stage(ABC):
    """A stage; subclasses are dataclasses of the arguments in the config. Privacy rules refuse by what a stage declares, never by its name.

    Attributes:
        place: of the stage in the order. A lossy stage and a bound keep the number of values.
        support: which values of an update may differ from zero afterwards: ``all``, a set that everyone knows (``public``), or a set
            that follows from the update (``own``). If not all, sums of few updates are sent as positions and values.
        integer: the values are integers of a ring.
        weighs: the values are multiplied by ``At.share``, and the update is added with weight 1.
    """

    place: ClassVar[Place]
    support: ClassVar[Support] = "all"
    integer: ClassVar[bool] = False
    weighs: ClassVar[bool] = False

    @property
    def state(self) -> bool:
        """Whether clients keep something for this stage between their turns."""
        return False

    @abstractmethod
    def out(self, x: Vector, at: At) -> Passed:
        """Let one update through.

        An update with values that are not finite should stay so: the sum refuses it, or a clip makes zeros of it.

        Args:
            x: the update, float32; not to be changed, but it may be returned.
            at: where in the run.

        Raises:
            UpdateRejected: the update cannot be used.
        """

    def size(self, size: int) -> int:
        """Number of values that a client sends for an update of ``size`` values."""
        return size

    def sent(self, size: int, before: int) -> int:
        """Bytes that one update takes on a wire after this stage; a constant of the run.

        Args:
            size: number of values that come in.
            before: bytes that they take.
        """
        return before

    def terms(self) -> dict[str, Any]:
        """The stage's constants for the receipt, as JSON data."""
        return {type(self).__name__: dict(vars(self))}
