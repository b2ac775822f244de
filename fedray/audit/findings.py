"""Findings of an audit: checks that pass or fail, and attacks with a lower bound and an estimate of epsilon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.audit.bounds import CONFIDENCE

#: Probability with which a statistical check fails for a correct mechanism.
FALSE_ALARM = 1e-6
#: An estimate is suspicious if it exceeds this multiple of the proven epsilon by so many standard errors; halved noise gives about two.
SUSPICIOUS, ERRORS = 1.5, 3.0


@dataclass(frozen=True)
class Check:
    """The result of checking one property of the mechanism.

    Attributes:
        name: the checked property.
        passed: whether the property holds.
        found: the measurement, as one sentence.
        false_alarm: probability that the check fails although the property holds; 0 for deterministic checks.
    """

    name: str
    passed: bool
    found: str
    false_alarm: float = 0.0

    @property
    def verdict(self) -> str:
        """The result in one word."""
        return "holds" if self.passed else "FAILED"

    def row(self) -> dict[str, Any]:
        """The check as JSON data."""
        return {"what": self.name, "passed": self.passed, "found": self.found, "false_alarm": self.false_alarm, "verdict": self.verdict}


@dataclass(frozen=True)
class Attack:
    """The result of one attack.

    Attributes:
        name: name of the attack.
        lower: lower bound on epsilon at 95 % confidence; None if the attack gives none.
        estimate: estimate of epsilon; None if the attack gives none.
        epsilon: proven upper bound on epsilon; None if nothing is proven.
        facts: further figures, JSON data.
        curves: arrays for the plots, by name.
        private: whether the figures come from the run's private records, so that a run with a privacy claim must not publish them.
        at_least: the estimate minus three standard errors, which decides whether the estimate is suspicious.
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
        """Whether the lower bound is above the proven epsilon."""
        return self.lower is not None and self.epsilon is not None and self.lower > self.epsilon

    @property
    def verdict(self) -> str:
        """The result in a few words."""
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
        """The attack as JSON data; infinity is written as a string."""
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
