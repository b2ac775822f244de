"""Federated averaging with clients that take their time, or whose actor dies once, for the tests of schedules."""

from __future__ import annotations

import time
from dataclasses import dataclass

from stateparts import end_once

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Turn


@dataclass(frozen=True)
class Sleeping(FedAvg):
    """A turn sleeps before it trains.

    Attributes:
        slow: number of clients, the first ones, that sleep 20 times as long as the others.
        seconds: of the others.
    """

    slow: int = 0
    seconds: float = 0.0

    def local(self, turn: Turn) -> Update:
        time.sleep(self.seconds * (20 if turn.client < self.slow else 1))
        return super().local(turn)


@dataclass(frozen=True)
class Dying(FedAvg):
    """The first turn after round 0 that finds no file ``mark`` makes it and ends its actor, after it has trained."""

    mark: str = ""

    def local(self, turn: Turn) -> Update:
        update = super().local(turn)
        if turn.number > 0:
            end_once(self.mark)
        return update
