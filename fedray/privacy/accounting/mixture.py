"""The privacy-loss distribution of a Gaussian on a sample that several records of one person may join."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.privacy.accounting.events import Composition, Event, Gaussian, Poisson, PoissonGroup

Floats = npt.NDArray[np.float64]

#: Mass of a tail beyond which nothing is looked at, and points at which the privacy loss is computed to be inverted.
_TAIL, _POINTS = 1e-18, 1 << 16
#: Newton steps from the interpolated inverse; two suffice for the last bits.
_STEPS = 4


def mixture_of_gaussians(q: float, size: int, z: float, interval: float) -> Any:
    """The distribution of a sum with noise N(0, z^2) to which a person adds Binomial(``size``, ``q``) or nothing, in both directions.

    The privacy loss L(x) = log sum_i w_i exp((2 i x - i^2) / (2 z^2)) with binomial weights w_i grows with x, so the sets on which the
    hockey-stick divergence is attained are half-lines, and both divergences have a closed form at each grid point. They are connected
    pessimistically. dp-accounting computes the same (``from_mixture_gaussian_mechanism``), by a search for each point, which takes half a
    minute on a fine grid where this takes less than a second.

    Args:
        q: probability with which each record joins, above 0 and below 1.
        size: number of the person's records, at least 2.
        z: noise multiplier, above 0.
        interval: grid spacing of the privacy loss.

    Source: Ganesh 2024, Tight Group-Level DP Guarantees for DP-SGD with Sampling via Mixture of Gaussians Mechanisms, theorem 3.1;
    Doroshenko et al. 2022, Connect the Dots, algorithm 1
    """
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld
    from scipy.stats import binom, norm

    counts = np.arange(size + 1, dtype=np.float64)
    weights = binom.logpmf(counts, size, q)
    reach = float(norm.isf(_TAIL)) * z
    x = np.linspace(-reach - size, size + reach, _POINTS)
    losses, _ = _loss(x, counts, weights, z)

    def where(loss: Floats) -> Floats:
        """The x at which the privacy loss is ``loss``; minus infinity where it is larger everywhere."""
        found = np.interp(loss, losses, x)
        inside = (loss > losses[0]) & (loss < losses[-1])
        at = found[inside]
        for _ in range(_STEPS):
            value, slope = _loss(at, counts, weights, z)
            at = np.clip(at - (value - loss[inside]) / slope, x[0], x[-1])
        found[inside] = at
        found[loss <= losses[0]] = -np.inf
        return found

    def removed(loss: Floats) -> Floats:
        """P(X > x) - exp(loss) Q(X > x): P is the mixture, Q the noise alone."""
        at = where(loss)
        mixed = np.sum([np.exp(weights[i] + norm.logsf((at - i) / z)) for i in range(size + 1)], axis=0)
        found: Floats = np.clip(mixed - np.exp(loss + norm.logsf(at / z)), 0.0, 1.0)
        return found

    def added(loss: Floats) -> Floats:
        """Q(X < x) - exp(loss) P(X < x)."""
        at = where(-loss)
        mixed = np.sum([np.exp(loss + weights[i] + norm.logcdf((at - i) / z)) for i in range(size + 1)], axis=0)
        found: Floats = np.clip(norm.cdf(at / z) - mixed, 0.0, 1.0)
        return found

    low, high = math.floor(losses[0] / interval) - 1, math.ceil(losses[-1] / interval) + 1
    grid = np.arange(low, high + 1)
    both = [(low, high, removed(grid * interval)), (-high, -low, added(np.arange(-high, -low + 1) * interval))]
    return pld.PrivacyLossDistribution(
        *(pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, first, last, curve) for first, last, curve in both)
    )


def largest_group(composition: Composition) -> int:
    """The largest number of one person's records that an event counts on; 0 if there is no such event."""
    return max((event.size for event, _ in composition if isinstance(event, PoissonGroup)), default=0)


def largest_counts(clients: Mapping[Composition, int], silos: int) -> dict[Event, int]:
    """Of each event the sum of the ``silos`` largest counts of any clients, which covers the charges of any ``silos`` of them together.

    Args:
        clients: compositions, each with the number of clients that were charged it.
        silos: how many clients are taken together.
    """
    counts: dict[Event, list[int]] = {}
    for composition, number in clients.items():
        for event, count in composition:
            counts.setdefault(event, []).extend([count] * min(number, silos))
    return {event: sum(sorted(each)[-silos:]) for event, each in counts.items()}


def single_records(composition: Composition) -> Counter[Event]:
    """The composition as if each person had one record, which costs less: where a search begins, and no bound."""
    total: Counter[Event] = Counter()
    for event, count in composition:
        total[Poisson(event.q, Gaussian(event.noise_multiplier)) if isinstance(event, PoissonGroup) else event] += count
    return total


def _loss(x: Floats, counts: Floats, weights: Floats, z: float) -> tuple[Floats, Floats]:
    """The privacy loss at ``x`` and its slope."""
    terms = weights + (2.0 * counts * x[:, None] - counts**2) / (2.0 * z * z)
    largest = terms.max(axis=1, keepdims=True)
    parts = np.exp(terms - largest)
    total = parts.sum(axis=1)
    return largest[:, 0] + np.log(total), (parts @ counts) / total / (z * z)
