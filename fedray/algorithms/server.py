"""Server optimisers: the mean update taken as a negative gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedray.errors import ConfigError
from fedray.parameters import Vector


@dataclass(frozen=True)
class ServerSGD:
    """Server SGD on the mean update, with momentum if asked (FedAvgM).

    Source: Hsu, Qi, Brown 2019, Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.

    With ``lr`` 1 and no momentum the new weights are the old plus the mean update (FedAvg). Reddi et al. 2021,
    Adaptive Federated Optimization, algorithm 1.

    Attributes:
        lr: server learning rate, above 0.
        momentum: in [0, 1).
        nesterov: look-ahead momentum; needs momentum.
    """

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"server.lr: {self.lr} is not above 0.")
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(f"server.momentum: {self.momentum} is not in [0, 1).")
        if self.nesterov and not self.momentum:
            raise ConfigError("server.nesterov: needs server.momentum above 0.")

    def init(self, size: int) -> dict[str, Vector]:
        """State before the first round: ``momentum``, float32 zeros [size], where momentum is used."""
        return {"momentum": np.zeros(size, dtype=np.float32)} if self.momentum else {}

    def step(self, weights: Vector, delta: Vector, state: dict[str, Vector]) -> tuple[Vector, dict[str, Vector]]:
        """New weights and state; the arguments are left as they are.

        Args:
            weights: global model, float32 [size].
            delta: mean of the clients' updates, float32 [size].
            state: of :meth:`init` or the step before.
        """
        lr, beta = np.float32(self.lr), np.float32(self.momentum)
        if not self.momentum:
            return _moved(weights, lr, delta), {}
        velocity = beta * state["momentum"] + delta
        direction = delta + beta * velocity if self.nesterov else velocity
        return _moved(weights, lr, direction), {"momentum": velocity}


def _moved(weights: Vector, lr: np.float32, direction: Vector) -> Vector:
    """``weights + lr * direction``, with no third vector in memory."""
    moved = direction * lr
    moved += weights
    return moved


SERVERS = {"sgd": ServerSGD}
