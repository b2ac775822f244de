"""MOON.

Source: Li, He, Song 2021, Model-Contrastive Federated Learning, algorithm 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Turn
from fedray.errors import ConfigError
from fedray.parameters import Vector, set_vector
from fedray.traits import Traits


@dataclass(frozen=True)
class Moon(FedAvg):
    """FedAvg whose clients pull what a layer makes of their records towards what the global model makes of them, away from their last local model.

    With z the record's representation by the model in training, and z_g and z_p those by the global model and by the client's last local one,
    both in evaluation mode, ``mu`` times -log(e^(s(z, z_g) / t) / (e^(s(z, z_g) / t) + e^(s(z, z_p) / t))) is added to each record's loss, where
    s is the cosine and t the ``temperature``. A client's first turn adds nothing. Clients keep their last local models.

    Source: Li et al. 2021, Model-Contrastive Federated Learning, algorithm 1 and equation 3.

    Attributes:
        mu: strength of the contrastive term, above 0; the paper's best were 1 to 10.
        temperature: above 0; the paper's was 0.5.
        layer: whose output is the representation, by its name in the model; null = what goes into the last linear layer.
        traits: the term is one more loss of each record.
    """

    mu: float = 1.0
    temperature: float = 0.5
    layer: str | None = None
    traits: ClassVar[Traits] = Traits(gradients="composed", state=True)

    def __post_init__(self) -> None:
        for name in ("mu", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"algorithm.{name}: {value} is not above 0.")

    def check_model(self, model: nn.Module) -> None:
        """The model has the layer."""
        self._watched(model)

    def local(self, turn: Turn) -> Update:
        """Train with the contrastive term, and keep the local model."""
        if turn.state is None:
            turn.train()
        else:
            others = [_frozen(turn, vector) for vector in (turn.globals["model"], turn.state["model"])]
            looks = [_Representation(*self._watched(model)) for model in (turn.model, *others)]
            try:
                turn.train(extra=partial(self._contrast, others, looks))
            finally:
                for look in looks:
                    look.handle.remove()
        return Update({"model": turn.moved()}, state={"model": turn.vector()})

    def _watched(self, model: nn.Module) -> tuple[nn.Module, bool]:
        """The layer that is looked at, and whether its input is the representation.

        Raises:
            ConfigError: there is none.
        """
        layers = {name: module for name, module in model.named_modules() if name}
        if self.layer is not None:
            if self.layer not in layers:
                raise ConfigError(f"algorithm.layer: the model has no layer '{self.layer}'; it has {', '.join(layers) or 'none'}.")
            return layers[self.layer], False
        linear = [module for module in layers.values() if isinstance(module, nn.Linear)]
        if not linear:
            raise ConfigError(
                f"algorithm.layer: the model has no linear layer whose input would be the representation; name one of {', '.join(layers) or 'its layers'}."
            )
        return linear[-1], True

    def _contrast(self, others: list[nn.Module], looks: list[_Representation], records: Tensor) -> Tensor:
        with torch.no_grad():
            for model in others:
                model(records)
        z, common, last = (look.seen.flatten(1).float() for look in looks)  # also where a layer computed in sixteen bits
        towards, away = (functional.cosine_similarity(z, other) / self.temperature for other in (common, last))
        return self.mu * functional.softplus(away - towards)  # the fraction's logarithm in the docstring, without its overflow


class _Representation:
    """What a layer has made of the records of the last forward pass."""

    def __init__(self, layer: nn.Module, given: bool) -> None:
        self.seen = torch.empty(0)
        hook: Callable[..., None] = self._given if given else self._made
        self.handle = layer.register_forward_pre_hook(hook) if given else layer.register_forward_hook(hook)

    def _given(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.seen = args[0]

    def _made(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.seen = output[0] if isinstance(output, tuple) else output


def _frozen(turn: Turn, vector: Vector) -> nn.Module:
    """The model with the weights of a vector, in evaluation mode."""
    model = copy.deepcopy(turn.model).eval()
    set_vector(model, turn.layout, vector)
    return model


ALGORITHMS = {"moon": Moon}
