"""q-FedAvg.

Source: Li, Sanjabi, Beirami, Smith 2020, Fair Resource Allocation in Federated Learning, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.algorithms.algorithm import Algorithm, Mean, Update
from fedray.algorithms.turn import Turn
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits

_LEAST = 1e-10  # of a loss: a power of zero has no derivative where q is below 1


@dataclass(frozen=True)
class QFedAvg(Algorithm):
    """FedAvg that gives clients with a larger loss more weight: it minimises the mean of the clients' losses to the power ``q + 1``.

    Each client sends ``F^q`` times its update and its part of the step size's bound, both for the loss F of the global model on its
    records and the Lipschitz constant 1 / lr; the server divides one sum by the other. Each client counts once.

    Source: Li et al. 2020, Fair Resource Allocation in Federated Learning, algorithm 2.

    Attributes:
        q: 0 is FedAvg with uniform weights; the paper's were 0.001 to 15.
        traits: the loss of the global model is read from the records without noise, and the server divides by the sum of the bounds.
    """

    q: float = 1.0
    traits: ClassVar[Traits] = Traits(gradients="adjusted", reads=frozenset({"loss"}), divides=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.q) and self.q >= 0):
            raise ConfigError(f"algorithm.q: {self.q} is not 0 or above.")

    def exchange(self, layout: Layout) -> Exchange:
        """The scaled update and the scaled bound, each client counting once."""
        return Exchange((Field("model", layout.size, weigh="one"), Field("bound", 1, down=False, weigh="one")))

    def local(self, turn: Turn) -> Update:
        """The update and the bound; both times lr, which leaves their quotient as it is."""
        loss = max(turn.loss(), _LEAST)
        turn.train()
        update = turn.moved().vector()
        moved = float(np.square(update[turn.layout.mask("shared")], dtype=np.float64).sum())
        bound = self.q * loss ** (self.q - 1) * moved / turn.lr + loss**self.q
        update *= np.float32(loss**self.q)
        return Update({"model": update, "bound": np.array([bound], dtype=np.float32)})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """The sum of the scaled updates over the sum of the bounds."""
        return {"model": mean.values["model"] / mean.values["bound"]}


ALGORITHMS = {"qfedavg": QFedAvg}
