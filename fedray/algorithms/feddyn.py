"""FedDyn.

Source: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, Federated Learning Based on Dynamic Regularization, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.algorithms.algorithm import Algorithm, Mean, Update
from fedray.algorithms.fedprox import pulled
from fedray.algorithms.turn import Turn
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """FedAvg whose clients add a linear and a quadratic term to their loss, so that their optima agree with that of the mean of all losses.

    A client keeps the sum ``s`` of all its updates that counted and minimises its loss plus ``alpha / 2`` times the squared distance to the
    global model less ``s``. But for a constant that is the paper's objective, whose linear term, the last gradient of the client's loss, is
    ``-alpha s``. The driver keeps the mean of ``s`` over all clients, which is the paper's ``-h / alpha``, sends it to nobody, and adds it to
    the mean update. Each client counts once, as in the paper. Under record privacy ``s`` is made of noised steps alone.

    Source: Acar et al. 2021, Federated Learning Based on Dynamic Regularization, algorithm 1.

    Attributes:
        alpha: strength of the terms, above 0; the paper's were 0.001 to 0.1.
        traits: the terms' gradients are added to that of each step, and clients keep ``s``.
    """

    alpha: float = 0.01
    traits: ClassVar[Traits] = Traits(gradients="adjusted", state=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"algorithm.alpha: {self.alpha} is not above 0; algorithm.kind fedavg is without the terms.")

    def exchange(self, layout: Layout) -> Exchange:
        """The model, and the mean of all clients' sums, which stays with the driver.

        Raises:
            ConfigError: the model has running statistics, which no gradient moves and of which a sum of updates means nothing.
        """
        if layout.mask("buffer").any():
            raise ConfigError(
                "algorithm.kind: feddyn adds all earlier updates to the next, which running statistics (batch normalisation) do not bear; "
                "use a model with group normalisation, or algorithm.kind=fedprox."
            )
        return Exchange((Field("model", layout.size), Field("past", layout.size, down=False, up=False)))

    def local(self, turn: Turn) -> Update:
        """Train with both terms, as a pull towards the global model less the client's earlier updates."""
        model = turn.globals["model"]
        past = np.zeros_like(model) if turn.state is None else turn.state["past"]
        turn.train(adjust=pulled(turn, model - past, self.alpha))
        moved = turn.moved().vector()
        return Update({"model": moved}, state={"past": past + moved})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """The mean update plus the mean of all clients' sums, those that did not take part among them."""
        past = globals_["past"] + np.float32(mean.share) * mean.values["model"]
        return {"model": mean.values["model"] + past, "past": past}


ALGORITHMS = {"feddyn": FedDyn}
