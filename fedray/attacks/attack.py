"""What an attack is: what malicious clients do to their records, to their updates, or together."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedray import components
from fedray.aggregation.each import Each
from fedray.choices import AttackChoice
from fedray.data.records import Records
from fedray.errors import ConfigError
from fedray.parameters import Vector

#: From some columns of all clients' updates, float32 ``[clients, k]``, what the attackers send instead, ``[attackers, k]`` or ``[k]``.
Agreed = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


class RecordAttack(ABC):
    """Malicious clients train as the others do, on records that they have changed."""

    @abstractmethod
    def changed(self, train: Records, classes: int | None, draws: np.random.Generator) -> Records:
        """One malicious client's training records after the attack, as many as before; ``train`` is not to be changed.

        Args:
            train: what the client holds.
            classes: number of classes of the task; None in regression.
            draws: for this client.

        Raises:
            ConfigError: the attack does not go with such records.
        """


class UpdateAttack(ABC):
    """A malicious client sends something else than its update, of which nobody else need know."""

    @abstractmethod
    def sent(self, update: Vector, draws: np.random.Generator) -> Vector:
        """What one malicious client sends, float32 ``[size]``.

        Args:
            update: that it would send, before compression, float32 ``[size]``; not to be changed.
            draws: for this client in this round.
        """


class Collusion(ABC):
    """Malicious clients send what follows from several clients' updates, which only the driver has, with a rule of single updates."""

    @abstractmethod
    def agreed(self, got: Each, mine: npt.NDArray[np.bool_]) -> Agreed:
        """How what they send follows from a round's updates.

        Args:
            got: what all clients would send.
            mine: which of them are malicious, bool ``[got.count]``, at least one.
        """


Attack = RecordAttack | UpdateAttack | Collusion


def make_attack(section: AttackChoice) -> Attack | None:
    """The attack of the config's ``attack`` section, None where there is none.

    Raises:
        ConfigError: unknown attack, what is none, or wrong arguments.
    """
    if section.kind == "none":
        return None
    room = components.ATTACKS
    factory = components.find(room, section.kind)
    if not (isinstance(factory, type) and issubclass(factory, Attack)) or inspect.isabstract(factory):
        raise ConfigError(
            f"{room.path}: '{section.kind}' is no attack; name a class derived from RecordAttack, UpdateAttack or Collusion of "
            "fedray.attacks.attack, with its method."
        )
    made: Attack = components.made(room, section.kind, section.arguments)
    return made
