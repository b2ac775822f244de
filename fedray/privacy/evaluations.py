"""How often a run evaluates at its clients under privacy, and what that is charged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedray.config import Config
from fedray.privacy.accounting.events import Composition, Event, Gaussian


@dataclass(frozen=True)
class Evaluations:
    """The charged evaluations of a run.

    Attributes:
        noise_multiplier: of the Gaussian that one evaluation is charged as.
        every: rounds from one evaluation to the next; 0: only at the end.
        rounds: that are planned.
    """

    noise_multiplier: float
    every: int
    rounds: int

    @classmethod
    def of(cls, config: Config) -> Evaluations | None:
        """Those of a run; None where clients are not charged for evaluations."""
        charged = config.evaluation.charged
        return None if charged is None else cls(charged.noise_multiplier, config.evaluation.every, config.rounds)

    @property
    def event(self) -> Event:
        """What one evaluation is charged. It is not amplified: every client that is there is asked."""
        return Gaussian(self.noise_multiplier)

    def count(self, rounds: int | None = None) -> int:
        """The largest number of evaluations in a run that ends after ``rounds`` rounds, by default the planned ones; the last round has one."""
        rounds = self.rounds if rounds is None else rounds
        return min(rounds, 1) if not self.every else math.ceil(rounds / self.every)

    def composition(self, rounds: int | None = None) -> Composition:
        """All charges of :meth:`count` evaluations."""
        number = self.count(rounds)
        return ((self.event, number),) if number else ()

    def terms(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_terms(cls, terms: Mapping[str, Any] | None) -> Evaluations | None:
        """Those of :meth:`terms`."""
        return None if terms is None else cls(**terms)
