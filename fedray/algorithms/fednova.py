"""FedNova.

Source: Wang, Liu, Liang, Joshi, Poor 2020, Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.algorithms.algorithm import Mean, Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Turn
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits


@dataclass(frozen=True)
class FedNova(FedAvg):
    """FedAvg that divides each client's update by its number of local steps, so that no client counts for more by stepping more often.

    The mean of the normalised updates is multiplied by the mean number of steps (equation 8, with the effective steps of section 4).
    With momentum the number of steps is the L1 norm of the weights that momentum gives the gradients (section 4.2). Running statistics
    of normalisation layers are averaged as in FedAvg.

    Source: Wang et al. 2020, Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization.

    Attributes:
        traits: the number of local steps that a client sends tells how many records it has.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"count"}))

    def check(self, training: Training) -> None:
        """Plain or momentum SGD, without decay; what Adam's steps add up to is not a multiple of gradients."""
        if training.optimizer != "sgd" or training.nesterov or training.weight_decay:
            raise ConfigError(
                "algorithm.kind: fednova normalises the steps of SGD, with or without momentum; set training.optimizer: sgd, "
                "training.nesterov: false and training.weight_decay: 0."
            )

    def exchange(self, layout: Layout) -> Exchange:
        """The normalised update, and the number of steps."""
        return Exchange((Field("model", layout.size), Field("steps", 1, down=False)))

    def local(self, turn: Turn) -> Update:
        """Train, and send the update for each step, with the number of steps."""
        result, update = turn.train(), turn.moved().vector()
        taken = effective_steps(result.steps, turn.training.momentum)
        update[turn.layout.mask("shared")] /= np.float32(max(taken, 1.0))
        return Update({"model": update, "steps": np.array([taken], dtype=np.float32)})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """The mean normalised update times the mean number of steps."""
        return {"model": mean.values["model"] * mean.values["steps"]}


def effective_steps(steps: int, momentum: float) -> float:
    """L1 norm of the weights that SGD with ``momentum`` gives the gradients of its ``steps`` steps: ``steps`` without momentum.

    The gradient of step k is used with weight (1 - m^(steps - k)) / (1 - m), for k = 0 .. steps - 1.
    """
    if not momentum:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


ALGORITHMS = {"fednova": FedNova}
