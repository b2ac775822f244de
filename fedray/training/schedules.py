"""Learning rates over rounds.

A schedule maps (round, rounds, **arguments) to a factor on ``training.lr``. ``round`` counts from 0, ``rounds``
is the number planned. It sees nothing else, so under DP it releases nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

from fedray import components, config
from fedray.errors import ConfigError, blaming


def constant(round: int, rounds: int) -> float:
    """The same learning rate in every round."""
    return 1.0


def step(round: int, rounds: int, every: int, factor: float = 0.1) -> float:
    """Times ``factor`` after each ``every`` rounds.

    Args:
        round: from 0.
        rounds: planned number of rounds.
        every: rounds after which the rate changes.
        factor: what it is multiplied by, above 0.
    """
    _at_least("every", every, 1)
    _positive("factor", factor)
    return factor ** (round // every)


def exponential(round: int, rounds: int, factor: float) -> float:
    """Times ``factor`` after each round.

    Args:
        round: from 0.
        rounds: planned number of rounds.
        factor: what the rate is multiplied by, above 0.
    """
    _positive("factor", factor)
    return factor**round


def cosine(round: int, rounds: int, floor: float = 0.0, warmup: int = 0) -> float:
    """Half a cosine from 1 down towards ``floor``, after ``warmup`` rounds of linear rise.

    Args:
        round: from 0.
        rounds: planned number of rounds.
        floor: factor at the end, in [0, 1].
        warmup: rounds of linear rise at the beginning.

    Source: Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, equation 5.
    """
    _at_least("warmup", warmup, 0)
    if not 0.0 <= floor <= 1.0:
        raise ConfigError(f"training.schedule.floor: {floor} is not in [0, 1].")
    if round < warmup:
        return (round + 1) / (warmup + 1)
    done = min(1.0, (round - warmup) / max(1, rounds - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))


def linear(round: int, rounds: int, floor: float = 0.0, warmup: int = 0) -> float:
    """A straight line from 1 down towards ``floor``, after ``warmup`` rounds of linear rise.

    Args:
        round: from 0.
        rounds: planned number of rounds.
        floor: factor at the end, in [0, 1].
        warmup: rounds of linear rise at the beginning.
    """
    _at_least("warmup", warmup, 0)
    if not 0.0 <= floor <= 1.0:
        raise ConfigError(f"training.schedule.floor: {floor} is not in [0, 1].")
    if round < warmup:
        return (round + 1) / (warmup + 1)
    return 1.0 - (1.0 - floor) * min(1.0, (round - warmup) / max(1, rounds - warmup))


def linear_warmup(round: int, rounds: int, warmup: int) -> float:
    """Linear rise over ``warmup`` rounds, then constant.

    Args:
        round: from 0.
        rounds: planned number of rounds.
        warmup: rounds of the rise.

    Source: Goyal et al. 2017, Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, section 2.2.
    """
    _at_least("warmup", warmup, 0)
    return min(1.0, (round + 1) / (warmup + 1))


SCHEDULES = {
    "constant": constant,
    "step": step,
    "exponential": exponential,
    "cosine": cosine,
    "linear": linear,
    "linear_warmup": linear_warmup,
}


def check_schedule(training: config.Training, rounds: int) -> None:
    """Try the schedule at every round that is planned.

    Raises:
        ConfigError: as :func:`learning_rate`.
    """
    schedule = _configured(training)
    for round in range(rounds):
        _factor(training, schedule, round, rounds)


def learning_rate(training: config.Training, round: int, rounds: int) -> float:
    """The learning rate of a round; call it once a round, not once a client.

    Args:
        training: its ``lr`` and ``schedule``.
        round: from 0.
        rounds: planned number of rounds.

    Raises:
        ConfigError: unknown schedule, wrong arguments, one that fails, or a factor that is no number, negative or not finite.
    """
    return training.lr * _factor(training, _configured(training), round, rounds)


def _configured(training: config.Training) -> Callable[[int, int], object]:
    return components.configured(components.SCHEDULES, training.schedule.kind, training.schedule.arguments)


def _factor(training: config.Training, schedule: Callable[[int, int], object], round: int, rounds: int) -> float:
    kind = training.schedule.kind
    with blaming(f"training.schedule.kind: '{kind}' in round {round + 1}"):
        factor = schedule(round, rounds)
    if not isinstance(factor, Real):
        raise ConfigError(f"training.schedule.kind: '{kind}' returned a {type(factor).__name__} in round {round + 1}; return a number.")
    number = float(factor)
    if not (math.isfinite(number) and number >= 0.0):
        raise ConfigError(f"training.schedule: {kind} gives a factor of {number} in round {round + 1}; it must be 0 or more.")
    return number


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"training.schedule.{name}: {value} is below {least}.")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"training.schedule.{name}: {value} is not above 0.")
