"""AdaptiveServer server optimisers: FedAdagrad, FedAdam and FedYogi.

Source: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan 2021, Adaptive Federated Optimization, algorithm 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fedray.errors import ConfigError
from fedray.parameters import Vector


@dataclass(frozen=True)
class AdaptiveServer(ABC):
    """What the three have in common: ``m = beta1 m + (1 - beta1) delta``, and a step of ``lr m / (sqrt(v) + tau)``.

    Source: Reddi et al. 2021, Adaptive Federated Optimization, algorithm 2.

    Attributes:
        lr: server learning rate, above 0.
        beta1: decay of the first moment, in [0, 1).
        tau: degree of adaptivity, above 0; the second moment starts at its square.
    """

    lr: float = 0.1
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("tau", self.tau)):
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"server.{name}: {value} is not above 0.")
        for name in ("beta1", "beta2"):
            value = getattr(self, name, 0.0)
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"server.{name}: {value} is not in [0, 1).")

    def init(self, size: int) -> dict[str, Vector]:
        """State before the first round: ``first`` and ``second`` moment, float32 [size]."""
        return {"first": np.zeros(size, dtype=np.float32), "second": np.full(size, self.tau**2, dtype=np.float32)}

    def step(self, weights: Vector, delta: Vector, state: dict[str, Vector]) -> tuple[Vector, dict[str, Vector]]:
        """New weights and state; the arguments are left as they are.

        Args:
            weights: global model, float32 [size].
            delta: mean of the clients' updates, float32 [size].
            state: of :meth:`init` or the step before.
        """
        first = np.float32(self.beta1) * state["first"]
        first += np.float32(1 - self.beta1) * delta
        second = self._second(state["second"], delta)
        divisor = np.sqrt(second)
        divisor += np.float32(self.tau)
        moved = np.divide(first, divisor, out=divisor)
        moved *= np.float32(self.lr)
        moved += weights
        return moved, {"first": first, "second": second}

    @abstractmethod
    def _second(self, before: Vector, delta: Vector) -> Vector:
        """The second moment after ``delta``, a new array."""


@dataclass(frozen=True)
class FedAdagrad(AdaptiveServer):
    """Server Adagrad: the second moment is the sum of all squared updates. The paper uses ``beta1`` 0.

    Source: Reddi et al. 2021, Adaptive Federated Optimization, algorithm 2.
    """

    beta1: float = 0.0

    def _second(self, before: Vector, delta: Vector) -> Vector:
        return before + np.square(delta)


@dataclass(frozen=True)
class FedAdam(AdaptiveServer):
    """Server Adam: the second moment is a running mean of squared updates; no bias correction, as in the paper.

    Source: Reddi et al. 2021, Adaptive Federated Optimization, algorithm 2.

    Attributes:
        beta2: decay of the second moment, in [0, 1).
    """

    beta2: float = 0.99

    def _second(self, before: Vector, delta: Vector) -> Vector:
        second = np.square(delta)
        second *= np.float32(1 - self.beta2)
        second += np.float32(self.beta2) * before
        return second


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Server Yogi: Adam whose second moment moves towards the squared update by at most a share of it, ``1 - beta2``.

    Source: Reddi et al. 2021, Adaptive Federated Optimization, algorithm 2.
    """

    def _second(self, before: Vector, delta: Vector) -> Vector:
        squared = np.square(delta)
        return before - np.float32(1 - self.beta2) * squared * np.sign(before - squared)


SERVERS = {"adagrad": FedAdagrad, "adam": FedAdam, "yogi": FedYogi}
