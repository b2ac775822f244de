"""What an audit found: checks that pass or fail, and attacks with a lower bound and an estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.audit.bounds import CONFIDENCE

#: Probability with which one statistical check fails although the mechanism is right.
FALSE_ALARM = 1e-6
#: An estimate this many times the proven epsilon, by this many standard errors, is worth a look; noise halved shows as two.
SUSPICIOUS, ERRORS = 1.5, 3.0


@dataclass(frozen=True)
class Check:
    """A property that the mechanism has or lacks.

    Attributes:
        name: what was checked.
        passed: whether it holds.
        found: what was measured, one sentence.
        false_alarm: probability of a failure where the property holds; 0 for deterministic checks.
    """

    name: str
    passed: bool
    found: str
    false_alarm: float = 0.0

    @property
    def verdict(self) -> str:
        """One word."""
        return "holds" if self.passed else "FAILED"

    def row(self) -> dict[str, Any]:
        """As JSON data."""
        return {"what": self.name, "passed": self.passed, "found": self.found, "false_alarm": self.false_alarm, "verdict": self.verdict}


@dataclass(frozen=True)
class Attack:
    """What one adversary achieved.

    Attributes:
        name: which.
        lower: lower bound on epsilon at 95 % confidence; None where the attack gives none.
        estimate: estimate of epsilon; None where it gives none.
        epsilon: proven upper bound for what was attacked; None where nothing is proven.
        facts: further figures, JSON data.
        curves: arrays for the pictures, by name.
        private: computed from the run's private records, so that it must not be published beside a privacy claim.
        at_least: the estimate less three standard errors, by which it is judged.
    """

    name: str
    lower: float | None
    estimate: float | None
    epsilon: float | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    private: bool = False
    at_least: float = 0.0

    @property
    def violated(self) -> bool:
        """The lower bound is above what was proven."""
        return self.lower is not None and self.epsilon is not None and self.lower > self.epsilon

    @property
    def verdict(self) -> str:
        """A word, or a few."""
        if self.violated:
            return "VIOLATED"
        if self.lower is None and self.estimate is None:
            return "demonstration"
        if self.epsilon is None:
            return "nothing proven"
        if self.at_least > SUSPICIOUS * self.epsilon:
            return "estimate suspicious"
        return "consistent"

    def row(self) -> dict[str, Any]:
        """As JSON data; infinity as a string."""
        return {
            "what": self.name,
            "lower": _json(self.lower),
            "confidence": CONFIDENCE,
            "estimate": _json(self.estimate),
            "epsilon": _json(self.epsilon),
            "verdict": self.verdict,
            "private": self.private,
            **{k: _json(v) for k, v in self.facts.items()},
        }


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "infinity" if value > 0 else "none"
    return value
