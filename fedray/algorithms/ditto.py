"""Ditto.

Source: Li, Hu, Beirami, Smith 2021, Ditto: Fair and Robust Federated Learning Through Personalization, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.fedprox import pulled
from fedray.algorithms.turn import ClientView, Turn
from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.traits import Traits


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg beside which each client trains a model of its own, pulled towards the global one; metrics at the clients are of their own models.

    Source: Li et al. 2021, Ditto: Fair and Robust Federated Learning Through Personalization, algorithm 1.

    Attributes:
        pull: lambda, the strength of the pull towards the global model, above 0; the paper's were 0.1 to 2.
    """

    pull: float = 1.0
    traits: ClassVar[Traits] = Traits(gradients="adjusted", state=True, passes=2)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.pull) and self.pull > 0):
            raise ConfigError(f"algorithm.pull: {self.pull} is not above 0.")

    def local(self, turn: Turn) -> Update:
        """Train the client's own model from where it was, and the global model as FedAvg does."""
        turn.train(start=self.measured(turn), adjust=pulled(turn, turn.globals["model"], self.pull), stream="own")
        own = turn.vector()
        turn.train()
        return Update({"model": turn.moved()}, state={"model": own})

    def measured(self, client: ClientView) -> Vector:
        """The client's own model, where it has one."""
        return own_model(client)


def own_model(client: ClientView) -> Vector:
    """What a client has kept as ``model``; the global one before its first turn that counts."""
    return client.globals["model"] if client.state is None else client.state["model"]


ALGORITHMS = {"ditto": Ditto}
