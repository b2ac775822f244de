"""Agnostic federated learning.

Source: Mohri, Sivek, Suresh 2019, Agnostic Federated Learning, equation 4 and algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.algorithms.algorithm import Algorithm, Mean, Update
from fedray.algorithms.turn import Turn
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits

_LEAST = 2.0**-20  # of a cohort's mean weight over that of all clients: the sum's grid would show in a quotient of smaller ones


@dataclass(frozen=True)
class AgnosticFL(Algorithm):
    """FedAvg for the worst mixture of the clients: the mixture moves towards clients with a larger loss while the model learns from it.

    In each of its turns a client multiplies its weight in the mixture by ``exp(ascent * F)``, where F is the loss of the global model on its
    records, and the model moves by the mean update under the mixture. This is ascent on the simplex that is projected by the
    Kullback-Leibler divergence (Sagawa et al. 2020, Distributionally Robust Neural Networks, algorithm 1), where the paper projects by the
    Euclidean distance: so each client can keep its own weight, over the mean of all weights, and nobody is sent the others'. Of those who do
    not take part in a round only the share in the mixture changes. A cohort with next to no share leaves the model as it is.

    Source: Mohri et al. 2019, Agnostic Federated Learning, equation 4 and algorithm 1.

    Attributes:
        ascent: step size of the mixture, 0 or above; 0 is FedAvg with uniform weights.
        traits: the loss is read from the records without noise, clients keep their weights, and the server divides by their sum.
    """

    ascent: float = 0.3
    traits: ClassVar[Traits] = Traits(gradients="adjusted", reads=frozenset({"loss"}), state=True, divides=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ascent) and self.ascent >= 0):
            raise ConfigError(f"algorithm.ascent: {self.ascent} is not 0 or above.")

    def exchange(self, layout: Layout) -> Exchange:
        """The weighted update; the weight and how far it has moved; and the logarithm of the mean of all clients' weights, which goes down."""
        sent = (Field(name, 1, down=False, weigh="one") for name in ("weight", "change"))
        return Exchange((Field("model", layout.size, weigh="one"), *sent, Field("level", 1, up=False)))

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """The initial model and equal weights."""
        return {"model": weights, "level": np.zeros(1, dtype=np.float32)}

    def local(self, turn: Turn) -> Update:
        """Train, and move the client's weight; what is sent of it is over the mean of all weights."""
        level = turn.globals["level"]
        before = np.zeros(1, dtype=np.float32) if turn.state is None else turn.state["weight"]
        after = before + np.float32(self.ascent * turn.loss())
        turn.train()
        weight = np.exp(after - level)
        change = weight - np.exp(before - level)
        return Update({"model": turn.moved().vector() * weight, "weight": weight, "change": change}, state={"weight": after})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """The mean update under the mixture; the mean of all weights moves by the mean change times the share of clients that took part."""
        level = globals_["level"] + np.log1p(np.float32(mean.share) * mean.values["change"])
        moved, weight = mean.values["model"], mean.values["weight"]
        return {"model": np.divide(moved, weight, out=np.zeros_like(moved), where=weight >= _LEAST), "level": level}


ALGORITHMS = {"afl": AgnosticFL}
