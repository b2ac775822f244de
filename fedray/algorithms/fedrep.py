"""FedRep.

Source: Collins, Hassani, Mokhtari, Shakkottai 2021, Exploiting Shared Representations for Personalized Federated Learning, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedper import FedPer
from fedray.algorithms.turn import Adjust, Turn
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.parameters import belongs
from fedray.traits import Traits


@dataclass(frozen=True)
class FedRep(FedPer):
    """FedPer whose clients first train their personal layers (the head) alone, and then the shared layers (the representation) alone.

    A training of one part moves no parameter of the other: neither by gradients nor by momentum or weight decay. Running statistics of
    shared layers leave a turn as the training of the shared layers makes them.

    Source: Collins et al. 2021, Exploiting Shared Representations for Personalized Federated Learning, algorithm 1.

    Attributes:
        head_trainings: how many times in a turn the personal layers are trained before the shared ones are trained once, 1 or more; each
            training is as the training section says. The paper's experiments had ten epochs of the head: 10 with ``training.epochs`` 1.
        traits: a turn trains at least twice.
    """

    head_trainings: int = 5
    traits: ClassVar[Traits] = Traits(gradients="adjusted", state=True, passes=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_trainings < 1:
            raise ConfigError(f"algorithm.head_trainings: {self.head_trainings} is not 1 or more.")

    def check(self, training: Training) -> None:
        """No bound on the norm of gradients, which would count those of the part that is not trained."""
        if training.max_grad_norm is not None:
            raise ConfigError(
                "training.max_grad_norm: it bounds the gradient of all layers together, of which fedrep trains a part at a time; take it out, "
                "or use algorithm.kind=fedper."
            )

    def local(self, turn: Turn) -> Update:
        """Train the personal layers with the global ones as they came, then the global ones with these personal layers."""
        for n in range(self.head_trainings):
            turn.train(adjust=self._only(personal=True), stream=f"head {n}")
        turn.train(adjust=self._only(personal=False))
        return Update({"model": turn.moved()})

    def _only(self, personal: bool) -> Adjust:
        """What leaves gradients to one part alone; optimisers pass over parameters without a gradient, with momentum and weight decay."""

        def adjust(model: nn.Module) -> None:
            for name, p in model.named_parameters():
                if belongs(name, self.personal) != personal:
                    p.grad = None

        return adjust


ALGORITHMS = {"fedrep": FedRep}
