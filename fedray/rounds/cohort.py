"""Cohort samplers: who is asked to take part in a round.

A sampler takes the population's indices that may take part, a rate factor for each client, and a
keyed generator; it returns the cohort's indices in increasing order. A client's own coin depends on
nothing but (seed, round, client), so excluding one client changes no other's chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from fedray.components import SAMPLERS as ROOM
from fedray.components import check_arguments, find
from fedray.config import Cohort
from fedray.errors import ConfigError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """Who could take part: ``eligible`` is a mask and ``rates`` a factor in [0, 1], both over all clients."""

    eligible: npt.NDArray[np.bool_]
    rates: npt.NDArray[np.float64]


Sampler = Callable[[Population, np.random.Generator], Indices]


def poisson(population: Population, rng: np.random.Generator, *, fraction: float) -> Indices:
    """An independent coin for each client; the cohort's size varies and may be zero.

    Source: Mironov, Talwar, Zhang 2019, Renyi Differential Privacy of the Sampled Gaussian Mechanism
    """
    coins = rng.random(len(population.rates))
    return np.flatnonzero(population.eligible & (coins < fraction * population.rates))


def fixed(population: Population, rng: np.random.Generator, *, size: int | None = None, fraction: float | None = None) -> Indices:
    """A fixed number of clients, uniformly without replacement.

    Source: McMahan et al. 2017, Algorithm 1 (max(C x K, 1) clients a round)
    """
    wanted = size if size is not None else max(round((fraction or 0.0) * len(population.rates)), 1)
    keys = rng.random(len(population.rates))  # the clients with the smallest keys; one key a client, whoever else is eligible
    candidates = np.flatnonzero(population.eligible & (population.rates > 0))
    return np.sort(candidates[np.argsort(keys[candidates], kind="stable")[:wanted]])


def everyone(population: Population, rng: np.random.Generator) -> Indices:
    """All clients that may take part."""
    return np.flatnonzero(population.eligible & (population.rates > 0))


SAMPLERS = {"poisson": poisson, "fixed": fixed, "all": everyone}


def make_sampler(cohort: Cohort, clients: int) -> Sampler:
    """The configured sampler.

    Raises:
        ConfigError: unknown kind or arguments, or a size that the population does not have.
    """
    function = find(ROOM, cohort.kind)
    arguments = check_arguments(function, cohort.arguments, "cohort", own=("population", "rng"))
    fraction, size = arguments.get("fraction"), arguments.get("size")
    if cohort.kind == "fixed" and (size is None) == (fraction is None):
        raise ConfigError("cohort.size: a fixed cohort takes exactly one of size and fraction.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"cohort.fraction: should be above 0 and at most 1, but is {fraction}.")
    if size is not None and not 1 <= size <= clients:
        raise ConfigError(f"cohort.size: should be between 1 and the {clients} clients there are, but is {size}.")
    if cohort.min_clients > (size or clients):
        raise ConfigError(f"cohort.min_clients: {cohort.min_clients} updates a round cannot come from {size or clients} clients.")
    return partial(function, **arguments)


def largest_cohort(cohort: Cohort, clients: int) -> int:
    """How many clients one round can be expected to ask at most (Poisson: mean plus four standard deviations)."""
    arguments = cohort.arguments
    if cohort.kind == "fixed":
        return int(arguments.get("size") or max(round(arguments.get("fraction", 1.0) * clients), 1))
    if cohort.kind == "poisson":
        fraction = float(arguments.get("fraction", 1.0))
        return min(clients, int(np.ceil(fraction * clients + 4 * np.sqrt(fraction * (1 - fraction) * clients) + 1)))
    return clients
