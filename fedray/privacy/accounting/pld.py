"""Privacy-loss distributions of the ledger's events, and epsilon from them.

Every distribution is an upper bound: the loss is discretised pessimistically, and truncated tail mass counts as infinite loss. Composed
distributions are cached, so that one more round costs one self-composition (two FFTs for any number of rounds) and, in a schedule of n
phases, about log n convolutions.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.privacy.accounting.event_json import canonical
from fedray.privacy.accounting.events import (
    Adjacency,
    Composition,
    Event,
    Gaussian,
    Laplace,
    Poisson,
    PoissonGroup,
    PureDp,
    TruncatedPoisson,
    Wor,
)
from fedray.privacy.accounting.mixture import mixture_of_gaussians

Floats = npt.NDArray[np.float64]

_POINTS_KEPT = 8_000_000
_TAIL = 1e-18
_CUT = 1e-15


def epsilon(composition: Composition, delta: float, interval: float, adjacency: Adjacency) -> float:
    """Epsilon at ``delta`` of a composition whose events PLD bounds under ``adjacency``; infinite if an event has no noise.

    Args:
        composition: at least one elementary event with its count.
        delta: between 0 and 1, both excluded.
        interval: grid spacing of the privacy loss.
        adjacency: neighbouring relation.
    """
    if any(_noiseless(event) for event, _ in composition):
        return math.inf
    total = _composed(composition, interval, adjacency)
    directions = [total._pmf_remove] if total._symmetric else [total._pmf_remove, total._pmf_add]
    return max(_convert(direction.to_dense_pmf(), delta, interval) for direction in directions)


def _convert(losses: Any, delta: float, interval: float) -> float:
    """The smallest epsilon at which the hockey-stick divergence is at most ``delta``.

    The divergence at e is the mass above e minus exp(e) times the same mass under the other distribution. Both masses are constant between
    grid points, so they are summed from the largest loss downwards until the root lies above the next grid point. The result is that of
    dp-accounting's ``get_epsilon_for_delta``, which loops over the points.
    """
    first = max(0, 1 - losses._lower_loss)
    loss = (np.arange(first, losses.size)[::-1] + losses._lower_loss) * interval
    mass = losses._probs[first:][::-1]
    above = losses._infinity_mass + np.concatenate([[0.0], np.cumsum(mass)])
    other = np.concatenate([[0.0], np.cumsum(mass * np.exp(-loss))])
    if losses._infinity_mass > delta or not math.isfinite(above[-1]):
        return math.inf
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        root = np.where(above > delta, np.log((above - delta) / other), -np.inf)
    reached = root >= np.append(loss, -np.inf)
    if not reached.any():
        return math.inf
    i = int(np.argmax(reached))
    if math.isinf(root[i]):  # no epsilon is needed; or the losses are so large that the other distribution has no mass there
        return 0.0 if root[i] < 0 else float(loss[i - 1])
    return max(0.0, float(root[i]))


def _noiseless(event: Event) -> bool:
    match event:
        case Poisson(_, of) | Wor(_, _, of):
            return _noiseless(of)
        case Gaussian(z) | Laplace(z) | TruncatedPoisson(_, _, _, z) | PoissonGroup(_, _, z):
            return z == 0
        case _:
            return False


class _Cache:
    """A cache of the distributions used last, up to a total number of float64 grid points."""

    def __init__(self, points: int) -> None:
        self._most, self._points, self._lock = points, 0, Lock()
        self._items: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> Any:
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: tuple[Any, ...], distribution: Any) -> None:
        size = distribution._pmf_remove.size + (0 if distribution._symmetric else distribution._pmf_add.size)
        with self._lock:
            if key not in self._items:
                self._items[key] = (distribution, size)
                self._points += size
            while self._points > self._most and len(self._items) > 1:
                self._points -= self._items.popitem(last=False)[1][1]


_kept = _Cache(_POINTS_KEPT)


@lru_cache(maxsize=16384)
def _name(event: Event) -> int:
    """A 256-bit hash of the event, the same in every process."""
    return int.from_bytes(hashlib.sha256(canonical(event).encode()).digest())


def _composed(composition: Composition, interval: float, adjacency: Adjacency) -> Any:
    return _part([(_name(event), event, count) for event, count in composition], 0, interval, adjacency)


def _part(part: list[tuple[int, Event, int]], bit: int, interval: float, adjacency: Adjacency) -> Any:
    """The distribution of the events whose names share their first ``bit`` bits: the convolution of those with next bit 0 and those with 1.

    The tree depends on the events alone and not on their order, so figures do not depend on the cache, and a new event or a higher count
    changes only the path above it.
    """
    key = (tuple((name, count) for name, _, count in part), interval, adjacency)
    found = _kept.get(key)
    if found is None:
        if len(part) == 1:
            found = _repeated(*part[0][1:], interval, adjacency)
        else:
            halves: tuple[list[Any], list[Any]] = ([], [])
            while not (halves[0] and halves[1]):
                halves = ([], [])
                for one in part:
                    halves[one[0] >> bit & 1].append(one)
                bit += 1
            found = _convolved(*(_part(half, bit, interval, adjacency) for half in halves))
        _kept.put(key, found)
    return found


def _convolved(a: Any, b: Any) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole = a.compose(b, tail_mass_truncation=0)
    return pld.PrivacyLossDistribution(_cut(whole._pmf_remove), None if whole._symmetric else _cut(whole._pmf_add))


def _cut(losses: Any) -> Any:
    """The distribution without its tails: the left tail's mass moves up to the first kept point, the right tail counts as infinite loss."""
    from dp_accounting.pld import pld_pmf

    dense = losses.to_dense_pmf()
    left = int(np.argmax(np.cumsum(dense._probs) > _CUT / 2))
    right = dense.size - int(np.argmax(np.cumsum(dense._probs[::-1]) > _CUT / 2))
    probs = dense._probs[left:right].copy()
    probs[0] += dense._probs[:left].sum()
    infinite = dense._infinity_mass + max(0.0, dense._probs[right:].sum())
    return pld_pmf.DensePLDPmf(dense._discretization, dense._lower_loss + left, probs, infinite, True)


def _repeated(event: Event, count: int, interval: float, adjacency: Adjacency) -> Any:
    if isinstance(event, Gaussian):
        return _once(Gaussian(event.noise_multiplier / math.sqrt(count)), interval, adjacency)
    if count == 1:
        return _once(event, interval, adjacency)
    return _composed(((event, 1),), interval, adjacency).self_compose(count)


def _once(event: Event, interval: float, adjacency: Adjacency) -> Any:
    """The distribution of one elementary event, in both directions if they differ."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    relation = NeighboringRelation.REPLACE_SPECIAL if adjacency == "zero_out" else NeighboringRelation.REPLACE_ONE
    match event:
        case Gaussian(z):
            return pld.from_gaussian_mechanism(z, value_discretization_interval=interval, neighboring_relation=relation)
        case Poisson(q, Gaussian(z)):
            return pld.from_gaussian_mechanism(
                z, value_discretization_interval=interval, sampling_prob=float(q), neighboring_relation=relation
            )
        case Laplace(z):
            return pld.from_laplace_mechanism(z, value_discretization_interval=interval)
        case Poisson(q, Laplace(z)):
            return pld.from_laplace_mechanism(z, value_discretization_interval=interval, sampling_prob=float(q))
        case PoissonGroup(q, size, z):
            return mixture_of_gaussians(float(q), size, z, interval)
        case TruncatedPoisson(n, q, cap, z):
            return pld.from_truncated_subsampled_gaussian_mechanism(
                n, float(q), cap, z, value_discretization_interval=interval, neighboring_relation=relation
            )
        case Wor(n, m, Gaussian(z)):
            return _without_replacement(m / n, z, interval)
        case PureDp(limit):
            return _randomised_response(limit, interval)
        case _:
            raise TypeError(f"no privacy-loss distribution of {event!r}")


def _without_replacement(q: float, z: float, interval: float) -> Any:
    """A Gaussian on a sample without replacement at rate ``q`` under replace-one adjacency, so that the sensitivity is 2C.

    One step's divergence at x >= 0 is q times the Gaussian's divergence at log(1 + (e^x - 1)/q). Either direction can attain it, so the
    curve at x < 0 is its mirror image, and the composition bounds both directions. The larger one of two separate compositions, one per
    direction, would be no bound.
    Source: Balle, Barthe & Gaboardi 2018, Privacy Amplification by Subsampling (advanced joint convexity); on mirroring: Lebeda, Regehr,
    Kamath & Steinke 2024, Avoiding Pitfalls for Privacy Accounting of Subsampled Mechanisms under Composition
    """
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld
    from scipy.stats import norm

    mu = 2.0 / z

    def above(x: Floats) -> Floats:
        inner = np.where(x < 1.0, np.log1p(np.expm1(np.minimum(x, 1.0)) / q), x - math.log(q) + np.log1p((q - 1.0) * np.exp(-x)))
        curve: Floats = q * (norm.cdf(mu / 2 - inner / mu) - np.exp(inner + norm.logcdf(-mu / 2 - inner / mu)))
        return np.clip(curve, 0.0, 1.0)

    most = 1
    while above(np.array([most * interval]))[0] > _TAIL:
        most *= 2
    x: Floats = np.arange(0, most + 1, dtype=np.float64) * interval
    most = int(np.argmax(above(x) <= _TAIL))
    right = above(x[: most + 1])
    left = -np.expm1(-x[1 : most + 1]) + np.exp(-x[1 : most + 1]) * right[1:]
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, -most, most, np.concatenate([left[::-1], right]))
    return pld.PrivacyLossDistribution(pmf)


def _randomised_response(limit: float, interval: float) -> Any:
    """Randomised response with the odds exp(``limit``), which dominates every pure ``limit``-DP local mechanism.

    Each of the two losses is spread over its neighbouring grid points such that no divergence shrinks. Rounding them up instead would cost
    one grid step per round.
    Source: Kairouz, Oh & Viswanath 2015, The Composition Theorem for Differential Privacy, section 4; Doroshenko et al. 2022,
    Connect the Dots, algorithm 1
    """
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    steps = limit / interval
    points = np.unique([math.floor(-steps), math.ceil(-steps), math.floor(steps), math.ceil(steps)])
    x = points * interval
    truth = 1.0 / (1.0 + math.exp(-limit))
    kept = -truth * np.expm1(np.minimum(x - limit, 0.0))
    swapped = -(1.0 - truth) * np.expm1(np.minimum(x + limit, 0.0))
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots(interval, points, kept + swapped)
    return pld.PrivacyLossDistribution(pmf)
