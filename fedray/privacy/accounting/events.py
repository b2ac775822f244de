"""What a privacy ledger charges: mechanisms, as frozen and hashable values.

The tree of a composed mechanism maps one to one to dp-accounting's events. Sampling rates are exact rationals, so that equal charges
are equal keys. The JSON form is in :mod:`fedray.privacy.accounting.event_json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from fedray.errors import LedgerError

#: The neighbouring relation: one unit's contribution is replaced by nothing while all counts stay public, or by any other contribution.
#: Source: Kairouz et al. 2021, Practical and Private (Deep) Learning without Sampling or Shuffling, definition 1.1
Adjacency = Literal["zero_out", "replace_one"]


@dataclass(frozen=True)
class _Checked:
    """Refuses values that are not of a field's type or not in its range, because a wrong event would make a wrong epsilon.

    Attributes:
        kind: name of the mechanism in JSON.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field, where, type_ in field_types(self.kind):
            _check(where, getattr(self, field), type_)


@lru_cache
def field_types(kind: str) -> tuple[tuple[str, str, Any], ...]:
    """Of each field of a kind of event: its name, its name in error messages, and its type."""
    event = KINDS[kind]
    hints, names = get_type_hints(event), [field.name for field in fields(event)]
    return tuple((name, kind if len(names) == 1 else f"{kind}.{name}", hints[name]) for name in names)


@dataclass(frozen=True)
class Gaussian(_Checked):
    """Gaussian noise of standard deviation ``noise_multiplier`` x sensitivity."""

    noise_multiplier: float
    kind: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class Laplace(_Checked):
    """Laplace noise of scale ``noise_multiplier`` x sensitivity."""

    noise_multiplier: float
    kind: ClassVar[str] = "laplace"


@dataclass(frozen=True)
class ZCdp(_Checked):
    """(xi, rho)-zero-concentrated DP: the Renyi divergence of order a is at most xi + rho a."""

    rho: float
    xi: float = 0.0
    kind: ClassVar[str] = "zcdp"


@dataclass(frozen=True)
class Tree(_Checked):
    """Binary-tree aggregation over ``steps`` steps, in which each unit takes part at most once."""

    noise_multiplier: float
    steps: int
    kind: ClassVar[str] = "tree"


@dataclass(frozen=True)
class PureDp(_Checked):
    """A local randomiser that is pure ``epsilon``-DP when a client's input is replaced by any other, such as PrivUnit.

    Every such mechanism is post-processing of randomised response with the odds exp(epsilon).
    Source: Kairouz, Oh & Viswanath 2015, The Composition Theorem for Differential Privacy, section 4
    """

    epsilon: float
    kind: ClassVar[str] = "pure_dp"


@dataclass(frozen=True)
class DistributedGaussian(_Checked):
    """A sum of integers to which each of ``clients`` adds independent discrete Gaussian noise.

    Source: Kairouz, Liu & Steinke 2021, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation

    Attributes:
        clients: noise shares that are sure to be in the sum (the abort threshold, less the clients that may collude).
        sigma: standard deviation of one share, in grid units.
        l2, l1: bounds of one client's rounded vector, in grid units.
        dimension: length of that vector.
    """

    clients: int
    sigma: float
    l2: float
    l1: float
    dimension: int
    kind: ClassVar[str] = "distributed_gaussian"


@dataclass(frozen=True)
class Skellam(_Checked):
    """A sum of integers under Skellam noise of total ``variance``; ``l2`` and ``l1`` bound one client's rounded vector, in grid units.

    Source: Agarwal, Kairouz & Liu 2021, The Skellam Mechanism for Differentially Private Federated Learning
    """

    variance: float
    l2: float
    l1: float
    kind: ClassVar[str] = "skellam"


@dataclass(frozen=True)
class Poisson(_Checked):
    """``of`` on a sample that each unit joins independently with probability ``q``."""

    q: Fraction
    of: Event
    kind: ClassVar[str] = "poisson"


@dataclass(frozen=True)
class PoissonGroup(_Checked):
    """Gaussian noise on the sum of a sample that each of up to ``size`` records of one person joins independently with probability ``q``.

    Each record that joins moves the sum by at most the sensitivity, so the number of those that do, which is binomial, is the person's.
    Source: Ganesh 2024, Tight Group-Level DP Guarantees for DP-SGD with Sampling via Mixture of Gaussians Mechanisms, theorem 3.1
    """

    q: Fraction
    size: int
    noise_multiplier: float
    kind: ClassVar[str] = "poisson_group"


@dataclass(frozen=True)
class TruncatedPoisson(_Checked):
    """A Gaussian on a Poisson sample of ``n`` units that is cut at ``cap`` units.

    Source: arXiv 2508.15089
    """

    n: int
    q: Fraction
    cap: int
    noise_multiplier: float
    kind: ClassVar[str] = "truncated_poisson"


@dataclass(frozen=True)
class Wor(_Checked):
    """``of`` on ``m`` of ``n`` units drawn without replacement; its noise multiplier is in units of the clip norm C."""

    n: int
    m: int
    of: Gaussian
    kind: ClassVar[str] = "wor"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m > self.n:
            raise LedgerError(f"event wor: {self.m} of {self.n} units cannot be drawn without replacement; m is at most n.")


@dataclass(frozen=True)
class SelfComposed(_Checked):
    """``of`` done ``count`` times with independent randomness."""

    count: int
    of: Event
    kind: ClassVar[str] = "self"


@dataclass(frozen=True)
class Composed(_Checked):
    """All events of ``of``, one after the other."""

    of: tuple[Event, ...]
    kind: ClassVar[str] = "composed"


@dataclass(frozen=True)
class RepeatAndSelect(_Checked):
    """One of ``of`` done a random number of times with independent randomness, of which only the best output is released.

    Each time the mechanism is drawn from ``of`` without a look at the data, by any fixed probabilities. The number of times follows the
    truncated negative binomial distribution of this ``mean`` and ``shape`` (0 is the logarithmic, 1 the geometric distribution).
    Source: Papernot & Steinke 2022, Hyperparameter Tuning with Renyi Differential Privacy, theorem 2
    """

    mean: float
    shape: float
    of: tuple[Event, ...]
    kind: ClassVar[str] = "repeat_and_select"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean < 1 or not self.of:
            raise LedgerError(
                f"event repeat_and_select: needs a mean of at least 1 and one mechanism or more, but has {self.mean} and {len(self.of)}."
            )


@dataclass(frozen=True)
class Unsupported(_Checked):
    """A release that no accountant bounds: epsilon is infinite from here on. ``what`` says in words what was released."""

    what: str
    kind: ClassVar[str] = "unsupported"


Event = (
    Gaussian
    | Laplace
    | ZCdp
    | Tree
    | PureDp
    | DistributedGaussian
    | Skellam
    | Poisson
    | PoissonGroup
    | TruncatedPoisson
    | Wor
    | SelfComposed
    | Composed
    | RepeatAndSelect
    | Unsupported
)
#: Name in JSON of each kind of event to its class.
KINDS: dict[str, type[Event]] = {event.kind: event for event in get_args(Event)}
#: Elementary mechanisms and how often each ran, in a fixed order.
Composition = tuple[tuple[Event, int], ...]


def rate(value: float | str | Fraction) -> Fraction:
    """A sampling rate as the exact rational that its decimal writing means: 0.05 is 1/20."""
    return value if isinstance(value, Fraction) else Fraction(str(value))


def _check(where: str, value: Any, type_: Any) -> None:
    if type_ is float:
        good, wanted = type(value) is float and math.isfinite(value) and value >= 0, "a finite float of at least 0"
    elif type_ is int:
        good, wanted = type(value) is int and value >= 1, "a whole number of at least 1"
    elif type_ is Fraction:
        good, wanted = isinstance(value, Fraction) and 0 < value <= 1, "a rational above 0 and at most 1"
    elif type_ == tuple[Event, ...]:
        good, wanted = isinstance(value, tuple) and all(isinstance(each, Event) for each in value), "a tuple of events"
    else:
        good, wanted = isinstance(value, type_), {str: "a text", Gaussian: "a gaussian"}.get(type_, "an event")
    if not good:
        raise LedgerError(f"event {where}: must be {wanted}, but is {value!r}.")
