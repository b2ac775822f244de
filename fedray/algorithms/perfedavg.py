"""Per-FedAvg.

Source: Fallah, Mokhtari, Ozdaglar 2020, Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic Meta-Learning Approach,
algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import ClientView, Turn
from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.training.engine import BatchGradient
from fedray.traits import Traits


@dataclass(frozen=True)
class PerFedAvg(FedAvg):
    """FedAvg of a model that is good after a step of gradient descent on a client's records, and not before.

    Clients minimise F(w) = f(w - ``alpha`` grad f(w)), whose gradient is (I - ``alpha`` Hessian of f) grad f(w - ``alpha`` grad f(w)). A step
    of local training takes the inner gradient, the outer one and the Hessian over batches of their own, and the run's optimiser moves w by it:
    ``training.lr`` is the paper's beta, ``training.epochs`` or ``steps`` its tau. Metrics at the clients are of the adapted model, made
    of the global one by full gradients over the client's training records when it is measured.

    Source: Fallah et al. 2020, Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic Meta-Learning Approach, algorithm 1.

    Attributes:
        alpha: learning rate of the adaptation, above 0; begin with that of local training, or a few times it.
        variant: ``first_order`` leaves the Hessian out (2 gradients a step); ``hessian_free`` takes its product with the outer gradient from a
            difference of gradients (4 a step).
        delta: of that difference, in units of the outer gradient; above 0.
        adaptations: steps from the global model to the one that is measured, 1 or more; 1 is what the training is made for.
        traits: the gradient of F takes several of f.
    """

    alpha: float = 0.1
    variant: Literal["first_order", "hessian_free"] = "first_order"
    delta: float = 0.001
    adaptations: int = 1
    traits: ClassVar[Traits] = Traits(gradients="composed", adapted=True)

    def __post_init__(self) -> None:
        for name in ("alpha", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"algorithm.{name}: {value} is not above 0.")
        if self.variant != "hessian_free" and self.delta != PerFedAvg.delta:
            raise ConfigError(
                "algorithm.delta: has no effect with algorithm.variant=first_order, which takes no difference of gradients; take it out."
            )
        if self.adaptations < 1:
            raise ConfigError(f"algorithm.adaptations: {self.adaptations} is not 1 or more.")

    def local(self, turn: Turn) -> Update:
        """Move by gradients of F."""
        turn.train(compose=self._adapted)
        return Update({"model": turn.moved()})

    def measured(self, client: ClientView) -> Vector:
        """The global model after adaptation to the client's training records."""
        adapted = client.globals["model"]
        for _ in range(self.adaptations):
            adapted = adapted - self.alpha * client.gradient(adapted)
        return adapted

    def _adapted(self, model: nn.Module, gradient: BatchGradient) -> None:
        """The gradient of F."""
        trained = [p for p in model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in trained]
        gradient("inner")
        _place(trained, start, [p.grad for p in trained], -self.alpha)
        gradient()
        outer = [p.grad for p in trained]
        if self.variant == "hessian_free":
            curvature = []
            for sign in (1.0, -1.0):
                _place(trained, start, outer, sign * self.delta)
                gradient("hessian")
                curvature.append([p.grad for p in trained])
            for g, ahead, behind in zip(outer, *curvature, strict=True):
                if g is not None and ahead is not None and behind is not None:
                    g.sub_(ahead.sub_(behind), alpha=self.alpha / (2 * self.delta))
        _place(trained, start, outer, 0.0)
        for p, g in zip(trained, outer, strict=True):
            p.grad = g


def _place(parameters: list[nn.Parameter], start: list[Tensor], direction: list[Tensor | None], length: float) -> None:
    """Set parameters to ``start`` plus ``length`` times ``direction``."""
    with torch.no_grad():
        for p, w, d in zip(parameters, start, direction, strict=True):
            p.copy_(w if d is None or not length else w.add(d, alpha=length))


ALGORITHMS = {"perfedavg": PerFedAvg}
