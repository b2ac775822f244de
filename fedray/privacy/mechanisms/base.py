"""The interface of a mechanism that protects whole clients.

A mechanism has a part at the clients (a linear :class:`fedray.updates.stage.Stage`, which an update passes before it leaves the client), a
part at the driver (:class:`DriverStep`, applied to the sum before the model is updated), and rules of charging (:class:`Charging`). Its
constants are public and do not depend on any client's data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedray.privacy.accounting.events import Adjacency, Event
from fedray.updates.stage import Source, Stage

Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]
Sampling = Literal["poisson", "fixed", "all", "cyclic"]


@dataclass(frozen=True)
class Facts:
    """Public constants of a run, from which mechanisms compute charges and scales.

    Attributes:
        clients: size N of the population.
        sampling: kind of cohort sampling.
        rate: largest probability of any group with which a client joins a round, for Poisson cohorts; else None.
        cohort: expected size of a cohort; a whole number except for Poisson cohorts.
        cap: largest size of a Poisson cohort; None if there is no cap.
        rounds: number of planned rounds.
        max_participations: number of rounds in which one client may take part; None if there is no limit.
        min_clients: number of updates that a round needs to count.
        dimension: number of values of an update; 0 if it is unknown and no mechanism may charge by it.
        clip: clip norm C of an update; the first one if it adapts.
        grid: number of fraction bits of the exact sum.
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
        """Largest increase of a norm by rounding to the sum's grid."""
        return math.sqrt(self.dimension + 1) * math.ldexp(1.0, -(self.grid + 1))


@dataclass(frozen=True)
class Charging:
    """How rounds are charged.

    Attributes:
        whom: ``everyone``: one entry for the whole population, because the event includes secret sampling or all clients take part;
            ``participants``: one entry for each client of the cohort.
        span: number of rounds that one charge covers.
        separation: least difference of the numbers of two rounds in which a client takes part.
        most: largest number of participations of a client that one charge covers.
        adjacency: neighbouring relation of the event.
    """

    whom: Literal["everyone", "participants"]
    adjacency: Adjacency = "zero_out"
    span: int = 1
    separation: int = 1
    most: int = 1


class DriverStep(Protocol):
    """A mechanism's part at the driver for the rounds of one charge."""

    def release(self, values: npt.NDArray[np.int64], bits: int, std: float | Floats, source: Source) -> Floats:
        """The noised sum in units of the update.

        Args:
            values: sum of the clients' messages, int64 ``[n]``, in units of ``2**-bits`` or of the ring.
            bits: number of fraction bits; 0 for a ring.
            std: standard deviation of the driver's noise in units of the update, for all values or float64 ``[n]``.
            source: source of the noise.

        Returns:
            float64 ``[n]``, or float64 ``[dimension]`` if the clients sent more values than the update has.
        """
        ...


class Mechanism(ABC):
    """A mechanism that protects whole clients; subclasses are dataclasses of the arguments in the config."""

    regime: ClassVar[str]
    statement: ClassVar[str]
    trust: ClassVar[str]

    def check(self, facts: Facts) -> None:  # noqa: B027  (most mechanisms have nothing to refuse)
        """Refuse arguments that do not fit the run.

        Raises:
            ConfigError: arguments and facts do not go together.
        """

    @abstractmethod
    def charging(self, facts: Facts) -> Charging:
        """The rules of charging."""

    @abstractmethod
    def event(self, noise_multiplier: float, facts: Facts) -> Event:
        """The event of one charge."""

    @abstractmethod
    def client(self, noise_multiplier: float, clip: float, facts: Facts, bit: bool, round_: int) -> Stage:
        """The part at the clients in a round: a linear stage, which weighs the update by its share.

        Args:
            noise_multiplier: noise multiplier of the plan.
            clip: this round's clip norm.
            facts: public constants of the run.
            bit: whether clients send, as an additional value, whether their update was within the clip norm.
            round_: public number of the round.
        """

    @abstractmethod
    def driver(self, noise_multiplier: float, facts: Facts, size: int, round_: int) -> DriverStep:
        """The part at the driver for the rounds of one charge, of which ``round_`` is the first; each client sends ``size`` values."""
