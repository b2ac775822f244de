"""Clients that drop out of rounds that everyone can name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Turn


@dataclass(frozen=True)
class Dropping(FedAvg):
    """FedAvg in which one of ``every`` clients fails in its turn, another one in each round.

    Attributes:
        every: see above.
        mark: directory in which each failure makes a file.
    """

    every: int = 5
    mark: str = ""

    def local(self, turn: Turn) -> Update:
        """See :class:`FedAvg`."""
        if turn.client % self.every == turn.number % self.every:
            Path(self.mark, f"{turn.number}-{turn.client}").touch()
            raise RuntimeError("it drops out")
        return super().local(turn)
