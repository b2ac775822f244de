"""What a mechanism that protects whole clients is made of.

A mechanism has a client's half (:class:`ClientStep`: what is done to an update before it leaves) and a driver's
half (:class:`DriverStep`: what is done to the sum before the model sees it), and says what it costs
(:class:`Charging`). Its constants are public; nothing in here depends on a client's data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedray.privacy.accounting.events import Adjacency, Event

Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]
Sampling = Literal["poisson", "fixed", "all", "cyclic"]


class Source(Protocol):
    """Draws for privacy; :mod:`fedray.privacy.csprng` has the two that there are."""

    def uniform(self, n: int) -> Floats:
        """``n`` values in [0, 1)."""
        ...

    def normal(self, n: int) -> Floats:
        """``n`` standard normal values."""
        ...

    def u64(self, n: int) -> npt.NDArray[np.uint64]:
        """``n`` uniform 64-bit words."""
        ...


@dataclass(frozen=True)
class Facts:
    """Public facts of a run that mechanisms charge and scale by.

    Attributes:
        clients: size N of the population.
        sampling: how cohorts come about.
        rate: probability with which a client joins a round (Poisson), the largest of all groups; None otherwise.
        cohort: clients that a round is expected to have; a whole number but for Poisson.
        cap: most clients that a Poisson cohort may have, or None.
        rounds: planned rounds.
        max_participations: rounds in which one client may take part, or None.
        min_clients: updates that a round needs.
        dimension: values of an update; 0 where it is not known yet (then no mechanism may charge by it).
        clip: clip norm C of an update (the first, where it adapts).
        grid: fraction bits of the exact sum.
    """

    clients: int
    sampling: Sampling
    rate: Fraction | None
    cohort: float
    cap: int | None
    rounds: int
    max_participations: int | None
    min_clients: int
    dimension: int
    clip: float
    grid: int

    @property
    def slack(self) -> float:
        """How much rounding to the sum's grid can add to a norm."""
        return math.sqrt(self.dimension + 1) * math.ldexp(1.0, -(self.grid + 1))


@dataclass(frozen=True)
class Charging:
    """How rounds are charged.

    Attributes:
        whom: ``everyone``: one entry for the whole population, because secret sampling is part of the event, or all take part;
            ``participants``: one entry for each client of the cohort.
        span: rounds that one charge covers.
        separation: rounds that must lie between two participations of a client for the event to hold, counted from one to the other.
        most: participations that one charge covers.
        adjacency: of the event.
    """

    whom: Literal["everyone", "participants"]
    adjacency: Adjacency = "zero_out"
    span: int = 1
    separation: int = 1
    most: int = 1


class ClientStep(Protocol):
    """What a client does to its update before it leaves; travels to the actors with each round."""

    @property
    def integer(self) -> bool:
        """Whether whole numbers of a ring leave, not floats."""
        ...

    @property
    def weight_cap(self) -> int | None:
        """See ``privacy.weight_cap``."""
        ...

    def size(self, dimension: int) -> int:
        """Values that leave for an update of ``dimension`` values."""
        ...

    def encode(self, update: Vector, weight: float, source: Source) -> npt.NDArray[Any]:
        """The update as it may leave: float32 or, where ``integer``, int64."""
        ...

    def terms(self) -> dict[str, Any]:
        """What the receipt says of this step."""
        ...


class DriverStep(Protocol):
    """What the driver does to the sums of the rounds that one charge covers."""

    def release(self, values: npt.NDArray[np.int64], bits: int, std: float | Floats, source: Source) -> Floats:
        """From the integer sum to the noised sum in real units.

        Args:
            values: int64 ``[n]``, in units of ``2**-bits`` or of the ring.
            bits: fraction bits; 0 for a ring.
            std: of the noise that the driver adds, in real units, one for all values or one for each.
            source: of the noise.

        Returns:
            float64; ``[n]``, or of the update's dimension where the clients sent more values than that.
        """
        ...


class Mechanism(ABC):
    """A way to protect whole clients, as the config names it; subclasses are dataclasses of its arguments."""

    regime: ClassVar[str]
    statement: ClassVar[str]
    trust: ClassVar[str]

    def check(self, facts: Facts) -> None:  # noqa: B027  (most have nothing to refuse)
        """Refuse what the mechanism cannot do.

        Raises:
            ConfigError: arguments or facts that do not go together.
        """

    @abstractmethod
    def charging(self, facts: Facts) -> Charging:
        """Who is charged, how often, under which adjacency."""

    @abstractmethod
    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """What one charge costs."""

    @abstractmethod
    def client(self, noise_multiplier: float, clip: float, facts: Facts, weight_cap: int | None, bit: bool, round_: int) -> ClientStep:
        """The client's half in a round.

        Args:
            noise_multiplier: of the plan.
            clip: this round's clip norm.
            facts: of the run.
            weight_cap: see ``privacy.weight_cap``.
            bit: whether to send, as one more value, whether the update was within the clip norm.
            round_: number of the round, public.
        """

    @abstractmethod
    def driver(self, noise_multiplier: float, facts: Facts, size: int, round_: int) -> DriverStep:
        """The driver's half for the rounds of one charge, the first of which is ``round_``; ``size`` values are summed."""
