"""SCAFFOLD.

Source: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, SCAFFOLD: Stochastic Controlled Averaging for Federated Learning,
algorithm 1 with option II.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from fedray.algorithms.algorithm import Mean, Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Turn
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """FedAvg whose clients correct each gradient by how far their own gradients are from everybody's (control variates, option II).

    A client keeps its control variate between its turns: the mean gradient of its last local training. Under record privacy it is made of
    noised gradients alone.

    Source: Karimireddy et al. 2020, SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, algorithm 1.
    """

    traits: ClassVar[Traits] = Traits(gradients="adjusted", state=True)

    def check(self, training: Training) -> None:
        """Plain SGD: option II takes the mean gradient from how far the model has moved."""
        if training.optimizer != "sgd" or training.momentum or training.weight_decay:
            raise ConfigError(
                "algorithm.kind: scaffold takes the mean gradient from how far plain SGD has moved; set training.optimizer: sgd, "
                "training.momentum: 0 and training.weight_decay: 0."
            )

    def exchange(self, layout: Layout) -> Exchange:
        """The model, and the control variate of all clients, whose changes count each client once."""
        return Exchange((Field("model", layout.size), Field("control", layout.size, weigh="one")))

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """The initial model and a control variate of zeros."""
        return {"model": weights, "control": np.zeros(layout.size, dtype=np.float32)}

    def local(self, turn: Turn) -> Update:
        """Train with corrected gradients; send the update and the change of the client's control variate."""
        common = turn.globals["control"]
        own = np.zeros_like(common) if turn.state is None else turn.state["control"]
        correction = turn.tensors(common - own)

        def adjust(model: nn.Module) -> None:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if p.grad is not None and name in correction:
                        p.grad.add_(correction[name])

        result, moved = turn.train(adjust=adjust), turn.moved().vector()
        change = -common - moved / np.float32(max(result.steps, 1) * turn.lr)
        change[turn.layout.mask("buffer")] = 0.0
        return Update({"model": moved, "control": change}, state={"control": own + change})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """The mean update as FedAvg; the control variate moves by the mean change times the share of clients that took part."""
        control = globals_["control"] + np.float32(mean.share) * mean.values["control"]
        return {"model": mean.values["model"], "control": control}


ALGORITHMS = {"scaffold": Scaffold}
