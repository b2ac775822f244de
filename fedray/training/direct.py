"""Plain SGD on large Linear layers without a gradient in memory.

The gradient of a Linear layer's weight is a product g' x that is as large as the weight, written once and read once to be
subtracted. Where the optimiser is plain SGD the product can be subtracted as it is made: from the layer's input and its output's
gradient, when the backward pass is over.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.training.tape import Tape, Use

#: Weights from which it pays: smaller ones and their gradients stay in a core's cache.
_LARGE = 2**18


class Direct:
    """The large Linear layers of a model, for as long as the context lasts.

    Args:
        model: that is trained.
        training: the training section.
        lr: learning rate.
        allowed: whether nobody wants to see gradients, and a step is one backward pass.

    Attributes:
        others: the trained parameters that are left, which have gradients as ever.
    """

    def __init__(self, model: nn.Module, training: Training, lr: float, allowed: bool) -> None:
        self._lr = lr
        layers: list[nn.Module] = []
        if allowed and training.optimizer == "sgd" and not training.momentum and not training.weight_decay:
            owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
            layers = [m for m in model.modules() if type(m) is nn.Linear and _suits(m, owners)]
        self._tape, self._own = Tape(layers), [p for layer in layers for p in layer.parameters()]
        mine = {id(p) for p in self._own}
        self.others = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]

    def __enter__(self) -> Direct:
        self._tape.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._tape.__exit__()

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """The model's outputs."""
        return self._tape.run(lambda: model(x))

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        """Add to the gradients of :attr:`others`, and move the layers by theirs."""
        uses = self._tape.uses
        if any(use.changed for use in uses):
            raise RuntimeError("the input of a Linear layer was changed in place afterwards, so its gradient cannot be computed.")
        if not uses or any(use.edge is None for use in uses) or not self._tape.reaches_only_layers(losses):
            torch.autograd.backward(losses, weights)
            with torch.no_grad():
                for p in self._own:
                    if p.grad is not None:
                        p.add_(p.grad, alpha=-self._lr)
                        p.grad = None
            return
        found = self._tape.gradients(losses, weights, self.others)
        with torch.no_grad():
            for p, gradient in zip(self.others, found, strict=False):
                if gradient is not None:
                    p.grad = gradient if p.grad is None else p.grad.add_(gradient)
            for use, gradient in zip(uses, found[len(self.others) :], strict=True):
                if gradient is not None:
                    _move(use, gradient, self._lr)


def _suits(layer: nn.Linear, owners: Counter[int]) -> bool:
    alone = all(owners[id(p)] == 1 and p.requires_grad and not p._backward_hooks for p in layer.parameters())
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "forward" in vars(layer)
    return alone and not hooked and layer.weight.numel() >= _LARGE and layer.weight.device.type == "cpu"


def _move(use: Use, gradient: Tensor, lr: float) -> None:
    layer, rows = use.layer, gradient.flatten(0, -2)
    assert isinstance(layer, nn.Linear)
    layer.weight.addmm_(rows.t(), use.x.flatten(0, -2), alpha=-lr)
    if layer.bias is not None:
        layer.bias.sub_(rows.sum(0), alpha=lr)
