"""What a privacy ledger charges: mechanisms, as plain hashable values with a JSON form of their own.

The tree maps one to one to dp-accounting's events, but its JSON names no Python modules, and
sampling rates are exact rationals, so that equal charges are equal keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, get_args

from fedray.errors import LedgerError

#: What a unit is compared with: its contribution replaced by nothing with all counts public, or by any other one's.
#: Source: Kairouz et al. 2021, Practical and Private (Deep) Learning without Sampling or Shuffling, definition 1.1
Adjacency = Literal["zero_out", "replace_one"]


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise of standard deviation ``noise_multiplier`` x sensitivity."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        _real("gaussian", self.noise_multiplier, 0.0)


@dataclass(frozen=True)
class Laplace:
    """Laplace noise of scale ``noise_multiplier`` x sensitivity."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        _real("laplace", self.noise_multiplier, 0.0)


@dataclass(frozen=True)
class ZCdp:
    """(xi, rho)-zero-concentrated DP: RDP of order a is at most xi + rho a."""

    rho: float
    xi: float = 0.0

    def __post_init__(self) -> None:
        _real("zcdp.rho", self.rho, 0.0)
        _real("zcdp.xi", self.xi, 0.0)


@dataclass(frozen=True)
class Tree:
    """Binary-tree aggregation over ``steps`` steps, each unit taking part at most once."""

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _real("tree.noise_multiplier", self.noise_multiplier, 0.0)
        _whole("tree.steps", self.steps, 1)


@dataclass(frozen=True)
class PureDp:
    """A local randomiser that is pure ``epsilon``-DP when a client's input is replaced by any other, such as PrivUnit.

    Every such mechanism is post-processing of randomised response with the odds exp(epsilon).
    Source: Kairouz, Oh & Viswanath 2015, The Composition Theorem for Differential Privacy, section 4
    """

    epsilon: float

    def __post_init__(self) -> None:
        _real("pure_dp", self.epsilon, 0.0)


@dataclass(frozen=True)
class DistributedGaussian:
    """A sum of integers to which each of ``clients`` adds discrete Gaussian noise of its own.

    ``clients`` counts the noise shares that are sure to be in the sum (the abort threshold, honest ones), ``sigma`` is one
    share's standard deviation, ``l2`` and ``l1`` bound one client's rounded vector of ``dimension`` numbers, all in grid units.
    Source: Kairouz, Liu & Steinke 2021, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation
    """

    clients: int
    sigma: float
    l2: float
    l1: float
    dimension: int

    def __post_init__(self) -> None:
        _whole("distributed_gaussian.clients", self.clients, 1)
        _real("distributed_gaussian.sigma", self.sigma, 0.0)
        _real("distributed_gaussian.l2", self.l2, 0.0)
        _real("distributed_gaussian.l1", self.l1, 0.0)
        _whole("distributed_gaussian.dimension", self.dimension, 1)


@dataclass(frozen=True)
class Skellam:
    """A sum of integers under Skellam noise of ``variance`` in all; ``l2`` and ``l1`` bound one client's rounded vector, in grid units.

    Source: Agarwal, Kairouz & Liu 2021, The Skellam Mechanism for Differentially Private Federated Learning
    """

    variance: float
    l2: float
    l1: float

    def __post_init__(self) -> None:
        _real("skellam.variance", self.variance, 0.0)
        _real("skellam.l2", self.l2, 0.0)
        _real("skellam.l1", self.l1, 0.0)


@dataclass(frozen=True)
class Poisson:
    """``of`` on a sample that each unit joins independently with probability ``q``."""

    q: Fraction
    of: Event

    def __post_init__(self) -> None:
        _rate("poisson.q", self.q)
        _event("poisson.of", self.of)


@dataclass(frozen=True)
class TruncatedPoisson:
    """A Gaussian on a Poisson sample of ``n`` units that is cut at ``cap`` units.

    Source: arXiv 2508.15089
    """

    n: int
    q: Fraction
    cap: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        _whole("truncated_poisson.n", self.n, 1)
        _rate("truncated_poisson.q", self.q)
        _whole("truncated_poisson.cap", self.cap, 1)
        _real("truncated_poisson.noise_multiplier", self.noise_multiplier, 0.0)


@dataclass(frozen=True)
class Wor:
    """``of`` on ``m`` of ``n`` units drawn without replacement; its noise multiplier is in units of the clip norm C."""

    n: int
    m: int
    of: Gaussian

    def __post_init__(self) -> None:
        _whole("wor.n", self.n, 1)
        _whole("wor.m", self.m, 1)
        if self.m > self.n:
            raise LedgerError(f"event wor: {self.m} of {self.n} units cannot be drawn without replacement; m is at most n.")
        if not isinstance(self.of, Gaussian):
            raise LedgerError(f"event wor.of: must be a gaussian, but is {self.of!r}.")


@dataclass(frozen=True)
class SelfComposed:
    """``of`` done ``count`` times with independent randomness."""

    count: int
    of: Event

    def __post_init__(self) -> None:
        _whole("self.count", self.count, 1)
        _event("self.of", self.of)


@dataclass(frozen=True)
class Composed:
    """All of ``of``, one after the other."""

    of: tuple[Event, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.of, tuple):
            raise LedgerError("event composed: must hold a tuple of events.")
        for event in self.of:
            _event("composed", event)


@dataclass(frozen=True)
class Unsupported:
    """A release that no accountant bounds: epsilon is infinite from here on."""

    what: str

    def __post_init__(self) -> None:
        if not isinstance(self.what, str):
            raise LedgerError(f"event unsupported: must say what it is in words, but is {self.what!r}.")


Event = (
    Gaussian
    | Laplace
    | ZCdp
    | Tree
    | PureDp
    | DistributedGaussian
    | Skellam
    | Poisson
    | TruncatedPoisson
    | Wor
    | SelfComposed
    | Composed
    | Unsupported
)
_KINDS = get_args(Event)
#: Elementary mechanisms with how often each ran, in a fixed order.
Composition = tuple[tuple[Event, int], ...]


def rate(value: float | str | Fraction) -> Fraction:
    """A sampling rate as the exact rational that its decimal writing means: 0.05 is 1/20."""
    return value if isinstance(value, Fraction) else Fraction(str(value))


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON data; :func:`from_json` gives an equal event back."""
    match event:
        case Gaussian(z):
            return {"gaussian": z}
        case Laplace(z):
            return {"laplace": z}
        case ZCdp(rho, xi):
            return {"zcdp": {"rho": rho, "xi": xi}}
        case Tree(z, steps):
            return {"tree": {"noise_multiplier": z, "steps": steps}}
        case PureDp(epsilon):
            return {"pure_dp": epsilon}
        case DistributedGaussian(clients, sigma, l2, l1, dimension):
            return {"distributed_gaussian": {"clients": clients, "sigma": sigma, "l2": l2, "l1": l1, "dimension": dimension}}
        case Skellam(variance, l2, l1):
            return {"skellam": {"variance": variance, "l2": l2, "l1": l1}}
        case Poisson(q, of):
            return {"poisson": {"q": [q.numerator, q.denominator], "of": to_json(of)}}
        case TruncatedPoisson(n, q, cap, z):
            return {"truncated_poisson": {"n": n, "q": [q.numerator, q.denominator], "cap": cap, "noise_multiplier": z}}
        case Wor(n, m, gaussian):
            return {"wor": {"n": n, "m": m, "of": to_json(gaussian)}}
        case SelfComposed(count, of):
            return {"self": {"count": count, "of": to_json(of)}}
        case Composed(events):
            return {"composed": [to_json(e) for e in events]}
        case Unsupported(what):
            return {"unsupported": what}


def from_json(data: Any) -> Event:
    """An event from JSON data.

    Raises:
        LedgerError: not an event of this schema; the sentence says what is wrong.
    """
    if not isinstance(data, dict) or len(data) != 1:
        raise LedgerError(f"event {data!r}: should be an object with exactly one key that names the mechanism.")
    ((kind, body),) = data.items()
    reader = _READERS.get(kind)
    if reader is None:
        raise LedgerError(f"event '{kind}': is not known to this version; it reads {', '.join(_READERS)}.")
    return reader(body)


def canonical(event: Event) -> str:
    """The one JSON text of an event: sorted keys, no blanks."""
    return json.dumps(to_json(event), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@lru_cache(maxsize=4096)
def from_canonical(text: str) -> Event:
    """The event of a canonical text; equal texts share one object."""
    return from_json(json.loads(text))


def to_dp_event(event: Event) -> Any:
    """The dp-accounting event of the same meaning; an unsupported one where it has none (sums under distributed integer noise).

    Noise multipliers are passed as they stand; what an accountant makes of them under which
    adjacency is the business of :mod:`fedray.privacy.accounting.accountant`.
    """
    import dp_accounting as dp

    match event:
        case Gaussian(z):
            return dp.GaussianDpEvent(z)
        case Laplace(z):
            return dp.LaplaceDpEvent(z)
        case ZCdp(rho, xi):
            return dp.ZCDpEvent(rho=rho, xi=xi)
        case Tree(z, steps):
            return dp.SingleEpochTreeAggregationDpEvent(z, steps)
        case PureDp(epsilon):
            return dp.RandomizedResponseDpEvent(2.0 * math.exp(-epsilon) / (1.0 + math.exp(-epsilon)), 2)
        case DistributedGaussian() | Skellam():
            return dp.UnsupportedDpEvent()
        case Poisson(q, of):
            return dp.PoissonSampledDpEvent(float(q), to_dp_event(of))
        case TruncatedPoisson(n, q, cap, z):
            return dp.TruncatedSubsampledGaussianDpEvent(n, float(q), cap, z)
        case Wor(n, m, gaussian):
            return dp.SampledWithoutReplacementDpEvent(n, m, to_dp_event(gaussian))
        case SelfComposed(count, of):
            return dp.SelfComposedDpEvent(to_dp_event(of), count)
        case Composed(events):
            return dp.ComposedDpEvent([to_dp_event(e) for e in events])
        case Unsupported():
            return dp.NonPrivateDpEvent()


def _fields(kind: str, body: Any, *names: str) -> list[Any]:
    if not isinstance(body, dict) or set(body) != set(names):
        raise LedgerError(f"event {kind}: should hold exactly {', '.join(names)}, but is {body!r}.")
    return [body[name] for name in names]


def _pair(kind: str, value: Any) -> Fraction:
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value) and value[1] > 0):
        raise LedgerError(f"event {kind}.q: should be a pair of whole numbers [numerator, denominator], but is {value!r}.")
    return Fraction(value[0], value[1])


def _number(kind: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise LedgerError(f"event {kind}: should be a number, but is {value!r}.")
    return float(value)


def _read_gaussian(body: Any) -> Gaussian:
    return Gaussian(_number("gaussian", body))


def _read_poisson(body: Any) -> Poisson:
    q, of = _fields("poisson", body, "q", "of")
    return Poisson(_pair("poisson", q), from_json(of))


def _read_truncated(body: Any) -> TruncatedPoisson:
    n, q, cap, z = _fields("truncated_poisson", body, "n", "q", "cap", "noise_multiplier")
    return TruncatedPoisson(n, _pair("truncated_poisson", q), cap, _number("truncated_poisson.noise_multiplier", z))


def _read_wor(body: Any) -> Wor:
    n, m, of = _fields("wor", body, "n", "m", "of")
    inner = from_json(of)
    if not isinstance(inner, Gaussian):
        raise LedgerError(f"event wor.of: must be a gaussian, but is {of!r}.")
    return Wor(n, m, inner)


def _read_tree(body: Any) -> Tree:
    z, steps = _fields("tree", body, "noise_multiplier", "steps")
    return Tree(_number("tree.noise_multiplier", z), steps)


def _read_zcdp(body: Any) -> ZCdp:
    rho, xi = _fields("zcdp", body, "rho", "xi")
    return ZCdp(_number("zcdp.rho", rho), _number("zcdp.xi", xi))


def _read_distributed(body: Any) -> DistributedGaussian:
    kind = "distributed_gaussian"
    clients, sigma, l2, l1, dimension = _fields(kind, body, "clients", "sigma", "l2", "l1", "dimension")
    return DistributedGaussian(clients, _number(f"{kind}.sigma", sigma), _number(f"{kind}.l2", l2), _number(f"{kind}.l1", l1), dimension)


def _read_skellam(body: Any) -> Skellam:
    variance, l2, l1 = _fields("skellam", body, "variance", "l2", "l1")
    return Skellam(_number("skellam.variance", variance), _number("skellam.l2", l2), _number("skellam.l1", l1))


def _read_self(body: Any) -> SelfComposed:
    count, of = _fields("self", body, "count", "of")
    return SelfComposed(count, from_json(of))


def _read_composed(body: Any) -> Composed:
    if not isinstance(body, list):
        raise LedgerError(f"event composed: should be a list of events, but is {body!r}.")
    return Composed(tuple(from_json(e) for e in body))


_READERS: dict[str, Callable[[Any], Event]] = {
    "gaussian": _read_gaussian,
    "poisson": _read_poisson,
    "self": _read_self,
    "composed": _read_composed,
    "truncated_poisson": _read_truncated,
    "wor": _read_wor,
    "tree": _read_tree,
    "zcdp": _read_zcdp,
    "distributed_gaussian": _read_distributed,
    "skellam": _read_skellam,
    "pure_dp": lambda body: PureDp(_number("pure_dp", body)),
    "laplace": lambda body: Laplace(_number("laplace", body)),
    "unsupported": Unsupported,
}


def _real(what: str, value: Any, least: float) -> None:
    if type(value) is not float or not math.isfinite(value) or value < least:
        raise LedgerError(f"event {what}: must be a finite float of at least {least:g}, but is {value!r}.")


def _whole(what: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise LedgerError(f"event {what}: must be a whole number of at least {least}, but is {value!r}.")


def _rate(what: str, value: Any) -> None:
    if not isinstance(value, Fraction) or not 0 < value <= 1:
        raise LedgerError(f"event {what}: must be a rational above 0 and at most 1, but is {value!r}.")


def _event(what: str, value: Any) -> None:
    if not isinstance(value, _KINDS):
        raise LedgerError(f"event {what}: must be an event, but is {value!r}.")
