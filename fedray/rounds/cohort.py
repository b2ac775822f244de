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
from fedray.config import Cohort, Config
from fedray.errors import ConfigError, blaming, shortened
from fedray.exchange import MODEL, Exchange
from fedray.rng import generator
from fedray.traits import Traits

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """Who could take part.

    Attributes:
        eligible: mask over all clients.
        rates: a factor in [0, 1] for each client.
        round: number of the round, from 0.
        seed: the run's; not for anything that must stay secret.
        records: number of each client's training records, int64.
        weights: of each client's update, where the sampler is one of :data:`WEIGHING`; else 1, float64.
        losses: mean loss in each client's last turn, infinite where there was none or the sampler is none of :data:`READING`, float64.
    """

    eligible: npt.NDArray[np.bool_]
    rates: npt.NDArray[np.float64]
    round: int
    seed: int
    records: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]

    @classmethod
    def of(cls, eligible: npt.NDArray[np.bool_], rates: npt.NDArray[np.float64], round_: int = 0, seed: int = 0) -> Population:
        """Clients that are alike but for their rates: each has one record, and has never trained."""
        one = np.ones(len(rates))
        return cls(eligible, rates, round_, seed, one.astype(np.int64), one, np.full(len(rates), np.inf))

    @property
    def drawable(self) -> npt.NDArray[np.float64]:
        """The weights of those that may take part, and 0 for the others, float64 ``[clients]``."""
        return np.where(self.eligible & (self.rates > 0), self.weights, 0.0)


#: Samplers whose cohorts' updates count by factors, so that their sum over a constant is the mean of all clients.
WEIGHING = frozenset({"importance"})
#: Samplers that read the training losses which clients report.
READING = frozenset({"power_of_choice"})

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
    candidates = None if own else sampler.keywords.get("candidates")
    if candidates is not None and not (size or 1) <= candidates <= clients:
        raise ConfigError(
            f"cohort.candidates: should be between cohort.size={size} and the {clients} clients there are, but is {candidates}."
        )
    if cohort.min_clients > (size or clients):
        raise ConfigError(f"cohort.min_clients: {cohort.min_clients} updates a round cannot come from {size or clients} clients.")
    if not own:
        return sampler
    checked = partial(_checked, sampler, cohort.kind)
    checked(Population.of(np.ones(clients, dtype=np.bool_), np.ones(clients)), generator(0, "cohort", 0).random(clients))
    return checked


def check_sampler(config: Config, waits: bool, mean: bool, traits: Traits) -> None:
    """Refuse what a sampler that weighs updates or reads losses means nothing with.

    Args:
        config: the run.
        waits: each round waits for all clients of its cohort.
        mean: the aggregation rule is the weighted mean.
        traits: of the algorithm.

    Raises:
        ConfigError: with what to use instead.
    """
    kind = config.cohort.kind
    if kind not in WEIGHING | READING:
        return
    if not waits or config.pacing.arrival == "simulated":
        raise ConfigError(
            f"cohort.kind: '{kind}' is for synchronous rounds with real arrival, in which all of a cohort count; set pacing to "
            "{kind: synchronous, arrival: real}, or use fixed or poisson."
        )
    if kind in WEIGHING and not mean:
        raise ConfigError(
            f"aggregation.kind: '{kind}' divides updates by their clients' chances, so that their sum is unbiased, which '{config.aggregation.kind}' "
            "is no function of; use mean, or cohort.kind=fixed or poisson."
        )
    if kind in WEIGHING and (traits.exact or traits.sets):
        raise ConfigError(
            f"cohort.kind: '{kind}' gives the mean of how far clients move the model, and '{config.algorithm.kind}' makes the model of something else; "
            "use an algorithm such as fedavg or fedprox, or cohort.kind=fixed or poisson."
        )
    if kind in READING and not traits.passes:
        raise ConfigError(
            f"cohort.kind: '{kind}' chooses clients by their training losses, and those of algorithm.kind '{config.algorithm.kind}' do not train; "
            "use fixed, cyclic or all."
        )


def check_unbiased(config: Config, exchange: Exchange) -> None:
    """Refuse algorithms whose clients send more than the model, where updates are weighed so that the sum of the model's is unbiased.

    Raises:
        ConfigError: with what to use instead.
    """
    if config.cohort.kind in WEIGHING and list(exchange.up) != [MODEL]:
        raise ConfigError(
            f"cohort.kind: '{config.cohort.kind}' divides the weighted sum of models by a constant, and the clients of '{config.algorithm.kind}' send "
            "more; use an algorithm such as fedavg or fedprox, or cohort.kind=fixed or poisson."
        )


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
    if cohort.kind == "importance":
        size = int(arguments.get("size", 1))
        return min(clients, int(np.ceil(size + 4 * np.sqrt(size) + 1)))
    if cohort.kind in ("fixed", "cyclic", "power_of_choice"):
        return int(arguments.get("size") or max(round(arguments.get("fraction", 1.0) * clients), 1))
    if cohort.kind == "poisson":
        fraction = float(arguments.get("fraction", 1.0))
        return min(
            arguments.get("cap") or clients,
            clients,
            int(np.ceil(fraction * clients + 4 * np.sqrt(fraction * (1 - fraction) * clients) + 1)),
        )
    return clients
