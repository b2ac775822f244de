"""IFCA.

Source: Ghosh, Chung, Yin, Ramchandran 2020, An Efficient Framework for Clustered Federated Learning, algorithm 1 with model averaging
(option II).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.algorithms.algorithm import Mean, Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import ClientView, Turn
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits


@dataclass(frozen=True)
class Ifca(FedAvg):
    """Several global models, one for each cluster of clients: a client trains the one with the least loss on its records.

    Each model moves by the mean of the updates of those who have trained it in the round; one that nobody has trained stays as it is, unless
    the server's optimiser has momentum. The models begin with draws of their own, all of which follow from the run's seed. They are evaluated
    at the clients, each of which takes the model with the least loss on its training records.

    Source: Ghosh et al. 2020, An Efficient Framework for Clustered Federated Learning.

    Attributes:
        clusters: number of models, 2 or more; the paper's were 2 to 4.
        traits: the choice is made of losses without noise, and the server divides by how much weight a cluster has.
    """

    clusters: int = 2
    traits: ClassVar[Traits] = Traits(gradients="adjusted", reads=frozenset({"loss"}), divides=True)

    def __post_init__(self) -> None:
        if self.clusters < 2:
            raise ConfigError(f"algorithm.clusters: {self.clusters} is not 2 or more; algorithm.kind fedavg has one model.")

    def exchange(self, layout: Layout) -> Exchange:
        """All models; each one's share of the clients' weight, and of the clients."""
        k = self.clusters
        return Exchange((Field("model", k * layout.size), Field("share", k, down=False), Field("members", k, down=False, weigh="one")))

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """The initial model, and others that begin with other draws.

        Raises:
            ConfigError: they are the same.
        """
        models = [weights, *(another(k) for k in range(1, self.clusters))]
        if len({model.tobytes() for model in models}) < len(models):
            raise ConfigError(
                "algorithm.kind: ifca needs models that begin differently, but model.kind makes the same with every seed; let its factory draw "
                "them, or take model.weights out."
            )
        return {"model": np.concatenate(models)}

    def local(self, turn: Turn) -> Update:
        """Train the model that fits the client's records best."""
        k, start = self._best(turn)
        turn.train(start=start)
        moved, one = np.zeros((self.clusters, turn.layout.size), dtype=np.float32), np.zeros(self.clusters, dtype=np.float32)
        moved[k], one[k] = turn.moved().vector(), 1.0
        return Update({"model": moved.ravel(), "share": one, "members": one})

    def measured(self, client: ClientView) -> Vector:
        """The model that fits the client's training records best."""
        return self._best(client)[1]

    def _best(self, client: ClientView) -> tuple[int, Vector]:
        models = np.split(client.globals["model"], self.clusters)
        losses = np.array([client.loss(model) for model in models])
        k = int(np.argmin(np.where(np.isnan(losses), np.inf, losses)))
        return k, models[k]

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """Each cluster's mean over its own clients."""
        moved, share = mean.values["model"].reshape(self.clusters, -1), mean.values["share"][:, None]
        return {"model": np.divide(moved, share, out=np.zeros_like(moved), where=share > 0).ravel()}

    def figures(self, mean: Mean) -> dict[str, float]:
        """The number of clients that have trained each model."""
        return {f"round/cluster_{k}_clients": float(round(part * mean.clients)) for k, part in enumerate(mean.values["members"].tolist())}


ALGORITHMS = {"ifca": Ifca}
