"""Persons as the unit of record-level privacy: how much of a person takes part in a turn, what that costs, and how it is called.

With ``bounded`` at most k records of a person take part in a turn. Each of them joins each step by a coin of its own and moves the sum by at
most the clip norm, so a person moves it by as many clip norms as it has records among those drawn, which is Binomial(k, q). With ``clipped``
the coins are the persons': all records of a drawn person join, and the mean of their gradients is clipped as one.

Sources: Ganesh 2024, Tight Group-Level DP Guarantees for DP-SGD with Sampling via Mixture of Gaussians Mechanisms; Charles et al. 2024,
Fine-Tuning Large Language Models with User-Level Differential Privacy (bounded is their example-level sampling, clipped their user-level one)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from fedray.privacy.accounting.events import Event, Gaussian, Poisson, PoissonGroup


@dataclass(frozen=True)
class Person:
    """How persons are protected.

    Attributes:
        kind: ``bounded`` or ``clipped``; see the module's text.
        records: largest number of one person's records in a turn; None if clipped.
    """

    kind: Literal["bounded", "clipped"]
    records: int | None = None

    @property
    def clipped(self) -> bool:
        """Whether a person's gradients are clipped as one."""
        return self.kind == "clipped"

    def event(self, q: Fraction, noise_multiplier: float) -> Event:
        """The event of one step."""
        return Poisson(q, Gaussian(noise_multiplier)) if self.records is None else PoissonGroup(q, self.records, noise_multiplier)

    def terms(self) -> dict[str, Any]:
        """As JSON data."""
        return {"kind": self.kind, "records": self.records}

    @classmethod
    def of(cls, terms: Mapping[str, Any] | None) -> Person | None:
        """The person of :meth:`terms`; None of None."""
        return None if terms is None else cls(terms["kind"], terms["records"])

    def __str__(self) -> str:
        """Of how many records the guarantee for a person is, as a clause."""
        if self.records is None:
            return "all of whose records in a step are clipped as one"
        return f"of whose records at most {self.records} take{'s' if self.records == 1 else ''} part in a turn"

    def __format__(self, how: str) -> str:
        """``short``: the unit with its number of records, as in "epsilon for one ..."; else as :meth:`__str__`."""
        if how != "short":
            return str(self)
        return "person (records clipped as one)" if self.records is None else f"person (at most {self.records} records a turn)"


def unit_in_words(unit: str, person: Person | None = None) -> str:
    """A protected unit in words, with the number of records of a person that it assumes."""
    if unit == "client":
        return "one client with all its records"
    return "one record of one client" if person is None else f"one person with all its records in one client, {person}"
