"""Learning rates over rounds, of local training and of the server's optimiser.

A schedule maps (round, rounds, **arguments) to a factor on ``training.lr`` or ``server.lr``. ``round`` counts from 0, ``rounds``
is the number planned. It sees nothing else, so under DP it releases nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from numbers import Real

from fedray import components, config
from fedray.choices import Choice
from fedray.errors import ConfigError, blaming


class _Wrong(ConfigError):
    """An argument of a schedule, by its name in the section."""


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
        raise _Wrong(f"floor: {floor} is not in [0, 1].")
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
        raise _Wrong(f"floor: {floor} is not in [0, 1].")
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


def check_schedule(schedule: Choice, rounds: int, section: str = "training", above: float = -1.0) -> None:
    """Try a schedule at every round that is planned.

    Args:
        schedule: that the config names.
        rounds: planned number of rounds.
        section: of the config that has it.
        above: what each factor must be above.

    Raises:
        ConfigError: as :func:`factor_at`, or a factor is not above that.
    """
    factor = _factors(schedule, rounds, section)
    for round in range(rounds):
        if (found := factor(round)) <= above:
            raise ConfigError(
                f"{section}.schedule: {schedule.kind} gives a factor of {found} in round {round + 1}; it must be above {above:g}."
            )


def learning_rate(training: config.Training, round: int, rounds: int) -> float:
    """The learning rate of a round; call it once a round, not once a client.

    Args:
        training: its ``lr`` and ``schedule``.
        round: from 0.
        rounds: planned number of rounds.

    Raises:
        ConfigError: as :func:`factor_at`.
    """
    return training.lr * factor_at(training.schedule, round, rounds)


def factor_at(schedule: Choice, round: int, rounds: int, section: str = "training") -> float:
    """The factor on a learning rate in a round.

    Args:
        schedule: that the config names.
        round: from 0.
        rounds: planned number of rounds.
        section: of the config that has the schedule.

    Raises:
        ConfigError: unknown schedule, wrong arguments, one that fails, or a factor that is no number, negative or not finite.
    """
    return _factors(schedule, rounds, section)(round)


def _factors(choice: Choice, rounds: int, section: str) -> Callable[[int], float]:
    room, kind = replace(components.SCHEDULES, path=f"{section}.schedule.kind"), choice.kind
    schedule: Callable[[int, int], object] = components.configured(room, kind, choice.arguments)

    def factor(round: int) -> float:
        try:
            with blaming(f"{room.path}: '{kind}' in round {round + 1}"):
                found = schedule(round, rounds)
        except _Wrong as error:
            raise ConfigError(f"{room.section}.{error}") from None
        if not isinstance(found, Real):
            raise ConfigError(f"{room.path}: '{kind}' returned a {type(found).__name__} in round {round + 1}; return a number.")
        number = float(found)
        if not (math.isfinite(number) and number >= 0.0):
            raise ConfigError(f"{room.section}: {kind} gives a factor of {number} in round {round + 1}; it must be 0 or more.")
        return number

    return factor


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise _Wrong(f"{name}: {value} is below {least}.")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise _Wrong(f"{name}: {value} is not above 0.")
