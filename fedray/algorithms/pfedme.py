"""pFedMe.

Source: Dinh, Tran, Nguyen 2020, Personalized Federated Learning with Moreau Envelopes, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedray.algorithms.algorithm import Update
from fedray.algorithms.ditto import own_model
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import ClientView, Turn
from fedray.errors import ConfigError
from fedray.parameters import Vector
from fedray.training.engine import BatchGradient
from fedray.traits import Traits


@dataclass(frozen=True)
class PFedMe(FedAvg):
    """FedAvg on the clients' Moreau envelopes, of which each client gets a model of its own by the way.

    The envelope of a client's loss f at w is the least f(theta) + ``pull`` / 2 ||theta - w||^2, and its gradient is ``pull`` (w - theta). A
    step of local training finds theta on its batch by ``inner_steps`` of gradient descent from w, and the run's optimiser moves w along that
    gradient: ``training.lr`` is the paper's eta, ``training.epochs`` or ``steps`` its R, ``server.lr`` its beta. A client keeps the theta of the
    last step of its turn, by which it predicts; metrics at the clients are of these.

    Source: Dinh et al. 2020, Personalized Federated Learning with Moreau Envelopes, algorithm 1.

    Attributes:
        pull: lambda, the strength of the pull towards w, above 0; the paper's was 15 for MNIST. A small one lets clients' models differ more.
        inner_steps: K, gradient steps by which theta is found, 1 or more; the paper's was 5.
        inner_lr: learning rate of these, above 0 and below 2 over ``pull``, beyond which they diverge.
        traits: each gradient of an envelope takes several of the loss.
    """

    pull: float = 15.0
    inner_steps: int = 5
    inner_lr: float = 0.05
    traits: ClassVar[Traits] = Traits(gradients="composed", state=True)

    def __post_init__(self) -> None:
        for name in ("pull", "inner_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"algorithm.{name}: {value} is not above 0.")
        if self.inner_steps < 1:
            raise ConfigError(f"algorithm.inner_steps: {self.inner_steps} is not 1 or more.")
        if self.inner_lr * self.pull >= 2:
            raise ConfigError(
                f"algorithm.inner_lr: steps of {self.inner_lr} against a pull of {self.pull} go further each time than they came from; set it below "
                f"{2 / self.pull:g}, 2 over algorithm.pull."
            )

    def local(self, turn: Turn) -> Update:
        """Move by gradients of the envelope, and keep the last theta."""
        own = turn.globals["model"]

        def envelope(model: nn.Module, gradient: BatchGradient) -> None:
            nonlocal own
            trained = [p for p in model.parameters() if p.requires_grad]
            centre = [p.detach().clone() for p in trained]
            for _ in range(self.inner_steps):
                gradient()
                with torch.no_grad():
                    for p, w in zip(trained, centre, strict=True):
                        pulled = self.pull * (p - w)
                        p.sub_(pulled if p.grad is None else pulled.add_(p.grad), alpha=self.inner_lr)
            own = turn.vector()
            with torch.no_grad():
                for p, w in zip(trained, centre, strict=True):
                    p.grad = self.pull * (w - p)
                    p.copy_(w)

        turn.train(compose=envelope)
        return Update({"model": turn.moved()}, state={"model": own})

    def measured(self, client: ClientView) -> Vector:
        """The client's own model, where it has one."""
        return own_model(client)


ALGORITHMS = {"pfedme": PFedMe}
