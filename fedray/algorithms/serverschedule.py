"""The server's learning rate over rounds: any server optimiser whose arguments have an ``lr``, made anew for each round.

What it remembers between rounds (momentum, moments) is in the server's state and not in it, so it goes on with another rate, and a resumed run
takes the rate of its round.
"""

from __future__ import annotations

import inspect
from numbers import Real

from fedray import components
from fedray.algorithms.algorithm import Server, make_server
from fedray.choices import Choice, ServerChoice
from fedray.errors import ConfigError
from fedray.training.schedules import check_schedule, factor_at


def check_server_schedule(choice: ServerChoice, rounds: int) -> None:
    """Try the server's schedule at every round that is planned.

    Raises:
        ConfigError: as :func:`fedray.training.schedules.factor_at`, the optimiser takes no lr, or a round would have none.
    """
    check_schedule(choice.schedule, rounds, "server", above=0.0)
    server_in(choice, make_server(choice), 0, rounds)


def server_in(choice: ServerChoice, made: Server, round: int, rounds: int) -> Server:
    """The server's optimiser in a round.

    Args:
        choice: the config's ``server`` section.
        made: what that makes, which serves in all rounds if the learning rate is constant.
        round: from 0.
        rounds: planned number of rounds.

    Raises:
        ConfigError: as :func:`check_server_schedule`.
    """
    lr = server_lr(choice, round, rounds)
    return made if lr is None else make_server(Choice(**{**choice.arguments, "kind": choice.kind, "lr": lr}))


def server_lr(choice: ServerChoice, round: int, rounds: int) -> float | None:
    """The server's learning rate in a round, None where it is constant; arguments and errors as for :func:`server_in`."""
    if choice.schedule.kind == "constant":
        return None
    return _full(choice) * factor_at(choice.schedule, round, rounds, "server")


def _full(choice: ServerChoice) -> float:
    """The learning rate that the factors of the schedule are of."""
    taken = inspect.signature(components.find_callable(components.SERVERS, choice.kind)).parameters
    lr = choice.arguments.get("lr", taken["lr"].default if "lr" in taken else None)
    if "lr" not in taken or not isinstance(lr, Real):
        raise ConfigError(
            f"server.schedule: '{choice.kind}' has no number lr, which a schedule would change over rounds; give server.lr, or take the schedule out."
        )
    return float(lr)
