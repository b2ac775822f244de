"""Cohort samplers: who is asked to take part in a round.

A sampler takes the population and a uniform coin for each client; it returns the cohort's indices in increasing
order. A client's coin depends on nothing else, so excluding one client changes no other's chance. Where whole
clients are protected the coins are cryptographic and secret; otherwise they are keyed by (seed, round).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from fedray.components import SAMPLERS as ROOM
from fedray.components import configured, is_own
from fedray.config import Cohort
from fedray.errors import ConfigError, blaming, shortened
from fedray.rng import generator

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """Who could take part.

    Attributes:
        eligible: mask over all clients.
        rates: a factor in [0, 1] for each client.
        round: number of the round, from 0.
        seed: the run's; not for anything that must stay secret.
    """

    eligible: npt.NDArray[np.bool_]
    rates: npt.NDArray[np.float64]
    round: int = 0
    seed: int = 0


Coins = npt.NDArray[np.float64]
Sampler = Callable[[Population, Coins], Indices]


def poisson(population: Population, coins: Coins, *, fraction: float, cap: int | None = None) -> Indices:
    """An independent coin for each client; the cohort's size varies and may be zero. Above ``cap`` clients, as many of them at random.

    Args:
        population: who could take part.
        coins: one a client, uniform in [0, 1).
        fraction: the probability of each client, in (0, 1].
        cap: most clients of a cohort; null = no limit.

    Source: Mironov, Talwar, Zhang 2019, Renyi Differential Privacy of the Sampled Gaussian Mechanism
    """
    cohort = np.flatnonzero(population.eligible & (coins < fraction * population.rates))
    if cap is not None and len(cohort) > cap:  # below its rate a coin is uniform again, so the smallest are a uniform choice
        shares = coins[cohort] / np.maximum(fraction * population.rates[cohort], 1e-300)
        cohort = np.sort(cohort[np.argsort(shares, kind="stable")[:cap]])
    return cohort


def fixed(population: Population, coins: Coins, *, size: int | None = None, fraction: float | None = None) -> Indices:
    """A fixed number of clients, uniformly without replacement.

    Args:
        population: who could take part.
        coins: one a client, uniform in [0, 1).
        size: clients of a round; null = by ``fraction``.
        fraction: of all clients, instead of ``size``.

    Source: McMahan et al. 2017, Algorithm 1 (max(C x K, 1) clients a round)
    """
    wanted = size if size is not None else max(round((fraction or 0.0) * len(population.rates)), 1)
    candidates = np.flatnonzero(population.eligible & (population.rates > 0))
    if wanted < len(candidates):  # only the smallest coins need be sorted, which are few of very many clients
        mine = coins[candidates]
        candidates = candidates[mine <= np.partition(mine, wanted - 1)[wanted - 1]]
    return np.sort(candidates[np.argsort(coins[candidates], kind="stable")[:wanted]])


def cyclic(population: Population, coins: Coins, *, size: int) -> Indices:
    """Each client once a pass over the population, in an order that is shuffled anew for each pass; those away miss their turn.

    Args:
        population: who could take part.
        coins: not used.
        size: clients of a round.

    Source: Cho et al. 2023, On the Convergence of Federated Averaging with Cyclic Client Participation
    """
    clients = len(population.rates)
    rounds = -(-clients // size)
    number, turn = divmod(population.round, rounds)
    order = generator(population.seed, "cyclic", number).permutation(clients)
    chosen = np.sort(order[turn * size : (turn + 1) * size])
    return chosen[population.eligible[chosen] & (population.rates[chosen] > 0)]


def everyone(population: Population, coins: Coins) -> Indices:
    """All clients that may take part."""
    return np.flatnonzero(population.eligible & (population.rates > 0))


SAMPLERS = {"poisson": poisson, "fixed": fixed, "cyclic": cyclic, "all": everyone}


def make_sampler(cohort: Cohort, clients: int) -> Sampler:
    """The configured sampler.

    Raises:
        ConfigError: unknown kind or arguments, a size that the population does not have, or a sampler of the user's own that fails when
            it is tried on the whole population.
    """
    sampler = configured(ROOM, cohort.kind, cohort.arguments)
    own = is_own(cohort.kind)
    fraction, size = (None, None) if own else (sampler.keywords.get("fraction"), sampler.keywords.get("size"))
    if cohort.kind == "fixed" and (size is None) == (fraction is None):
        raise ConfigError("cohort.size: a fixed cohort takes exactly one of size and fraction.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"cohort.fraction: should be above 0 and at most 1, but is {fraction}.")
    if size is not None and not 1 <= size <= clients:
        raise ConfigError(f"cohort.size: should be between 1 and the {clients} clients there are, but is {size}.")
    if cohort.min_clients > (size or clients):
        raise ConfigError(f"cohort.min_clients: {cohort.min_clients} updates a round cannot come from {size or clients} clients.")
    if not own:
        return sampler
    checked = partial(_checked, sampler, cohort.kind)
    checked(Population(np.ones(clients, dtype=np.bool_), np.ones(clients)), generator(0, "cohort", 0).random(clients))
    return checked


def _checked(sampler: Sampler, kind: str, population: Population, coins: Coins) -> Indices:
    """The cohort that a sampler of the user's own draws, in increasing order.

    Raises:
        ConfigError: it fails, or returns anything but different clients' indices.
    """
    clients = len(coins)
    with blaming(f"cohort.kind: '{kind}' in round {population.round + 1}"):
        drawn = np.asarray(sampler(population, coins))
    if drawn.ndim == 1 and not len(drawn):
        return np.empty(0, dtype=np.int64)
    if drawn.ndim != 1 or drawn.dtype.kind not in "iu" or drawn.min() < 0 or drawn.max() >= clients or len(np.unique(drawn)) < len(drawn):
        raise ConfigError(
            f"cohort.kind: '{kind}' returned {shortened(repr(drawn.tolist()), 60)} in round {population.round + 1}; return the indices of "
            f"the clients it chooses, different whole numbers from 0 to {clients - 1} (np.flatnonzero of a mask)."
        )
    return np.sort(drawn).astype(np.int64)


def largest_cohort(cohort: Cohort, clients: int) -> int:
    """How many clients one round can be expected to ask at most (Poisson: mean plus four standard deviations)."""
    arguments = cohort.arguments
    if cohort.kind in ("fixed", "cyclic"):
        return int(arguments.get("size") or max(round(arguments.get("fraction", 1.0) * clients), 1))
    if cohort.kind == "poisson":
        fraction = float(arguments.get("fraction", 1.0))
        return min(
            arguments.get("cap") or clients,
            clients,
            int(np.ceil(fraction * clients + 4 * np.sqrt(fraction * (1 - fraction) * clients) + 1)),
        )
    return clients
