"""FedProx.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, Federated Optimization in Heterogeneous Networks, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Adjust, Turn
from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.traits import Traits


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose clients minimise their loss plus ``mu / 2`` times the squared distance to the global model.

    Source: Li et al. 2020, Federated Optimization in Heterogeneous Networks.

    Attributes:
        mu: strength of the proximal term, above 0; the paper's best were 0.001 to 1.
        traits: the term's gradient is added to that of each step.
    """

    mu: float = 0.01
    traits: ClassVar[Traits] = Traits(gradients="adjusted")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.mu > 0):
            raise ConfigError(f"algorithm.mu: {self.mu} is not above 0; algorithm.kind fedavg is FedProx without the term.")

    def local(self, turn: Turn) -> Update:
        """Train with the proximal term; its gradient depends on no record."""
        turn.train(adjust=pulled(turn, turn.globals["model"], self.mu))
        return Update({"model": turn.moved()})


def pulled(turn: Turn, centre: Vector, strength: float) -> Adjust:
    """What adds the gradient of ``strength / 2 * ||w - centre||^2`` to the gradients of a step."""
    anchors = turn.tensors(centre)

    def adjust(model: nn.Module) -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is not None and name in anchors:
                    p.grad.add_(p - anchors[name], alpha=strength)

    return adjust


ALGORITHMS = {"fedprox": FedProx}
