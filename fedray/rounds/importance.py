"""Importance sampling of clients, with the factors that keep the aggregate unbiased.

Source: Chen, Horvath, Richtarik 2022, Optimal Client Sampling for Federated Learning, section 2: independent coins whose chances are in proportion
to the norm of a client's weighted update, and the estimator that divides each update by its client's chance. Norms count as equal here, because
they are known only after training; then chances are in proportion to the clients' weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedray.aggregation.exact import FULL
from fedray.rounds.cohort import Coins, Indices, Population

#: How many times as likely as the least likely client the most likely one is at most, so that factors, whole numbers of 256, stay fine.
_SPREAD = 32.0


class Chances(NamedTuple):
    """With what chance each client is drawn, and how its update counts.

    Attributes:
        drawn: float64 ``[clients]`` in [0, 1]; about ``size`` in all, at most a ninth less.
        factors: of :data:`fedray.aggregation.exact.FULL` by which updates count, int64 ``[clients]``; ``drawn * factors`` is the same for all
            that can be drawn.
        share: that product over ``FULL``. The weighted sum of a cohort's updates, divided by ``share`` times the weight of all clients, has
            the weighted mean of all clients' updates as its expectation.
    """

    drawn: npt.NDArray[np.float64]
    factors: npt.NDArray[np.int64]
    share: float


def chances(weights: npt.NDArray[np.float64], size: int) -> Chances:
    """The chances of clients of these weights, of whom about ``size`` are drawn.

    Args:
        weights: of the clients' updates, 0 or more; 0 for those that cannot be drawn.
        size: expected number of clients, at least 1.
    """
    able = weights > 0
    wanted = np.where(able, np.maximum(weights, weights.max(initial=0.0) / _SPREAD), 0.0)
    sure = np.zeros_like(able)
    while True:  # whoever would be drawn more than once is drawn for sure, and the rest of the cohort from the others
        rest = able & ~sure
        left = max(size - int(sure.sum()), 0)
        scale = left / wanted[rest].sum() if rest.any() else 0.0
        more = rest & (wanted * scale >= 1.0)
        if not more.any():
            break
        sure |= more
    aim = np.where(sure, 1.0, np.where(rest, wanted * scale, 0.0))
    able &= aim > 0
    if not able.any():
        return Chances(np.zeros(len(weights)), np.full(len(weights), FULL, dtype=np.int64), 1.0)
    share = float(aim[able].min())
    factors = np.full(len(weights), FULL, dtype=np.int64)
    factors[able] = np.ceil(FULL * share / aim[able]).astype(np.int64)
    return Chances(np.where(able, FULL * share / factors, 0.0), factors, share)


def importance(population: Population, coins: Coins, *, size: int) -> Indices:
    """A coin for each client, in proportion to its weight; updates are divided by their clients' chances, so their mean is unbiased.

    Args:
        population: who could take part, and the weights.
        coins: one a client, uniform in [0, 1).
        size: expected number of clients.

    Source: Chen, Horvath, Richtarik 2022, Optimal Client Sampling for Federated Learning
    """
    return np.flatnonzero(coins < chances(population.drawable, size).drawn)


SAMPLERS = {"importance": importance}
