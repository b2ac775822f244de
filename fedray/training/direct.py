"""Plain SGD on large Linear layers without a gradient in memory.

The gradient of a Linear layer's weight is a product g' x that is as large as the weight, written once and read once to be
subtracted. Where the optimiser is plain SGD the product can be subtracted as it is made. For this the layer's weight takes no part in
the backward pass: its input and its output's gradient are kept, and the weight moves when the pass is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedray.config import Training

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
        self._layers: list[nn.Linear] = []
        if allowed and training.optimizer == "sgd" and not training.momentum and not training.weight_decay:
            owners: dict[int, int] = {}
            for _, p in model.named_parameters(remove_duplicate=False):
                owners[id(p)] = owners.get(id(p), 0) + 1
            self._layers = [m for m in model.modules() if type(m) is nn.Linear and self._suits(m, owners)]
        mine = {id(p) for layer in self._layers for p in layer.parameters()}
        self.others = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]
        self._uses: list[_Use] = []
        self._noting = False

    def __enter__(self) -> Direct:
        self._handles = [layer.register_forward_hook(self._note) for layer in self._layers]
        self._require(False)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._require(True)
        self._uses = []

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """The model's outputs."""
        self._uses, self._noting = [], True
        try:
            return model(x)  # type: ignore[no-any-return]
        finally:
            self._noting = False  # a layer may run again in the backward pass (activation checkpoints)

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        """Add to the gradients of :attr:`others`, and move the layers by theirs."""
        if not self._uses:
            torch.autograd.backward(losses, weights)
            return
        edges: list[Any] = [use.edge for use in self._uses]
        found = torch.autograd.grad([losses], [*self.others, *edges], [weights], allow_unused=True)
        with torch.no_grad():
            for p, gradient in zip(self.others, found, strict=False):
                if gradient is not None:
                    p.grad = gradient if p.grad is None else p.grad.add_(gradient)
            for use, gradient in zip(self._uses, found[len(self.others) :], strict=True):
                if gradient is not None:
                    use.move(gradient, self._lr)

    def _suits(self, layer: nn.Linear, owners: dict[int, int]) -> bool:
        alone = all(owners[id(p)] == 1 and p.requires_grad for p in layer.parameters())
        hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "forward" in vars(layer)
        return alone and not hooked and layer.weight.numel() >= _LARGE and layer.weight.device.type == "cpu"

    def _require(self, value: bool) -> None:
        for layer in self._layers:
            for p in layer.parameters():
                p.requires_grad_(value)

    def _note(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self._noting or not torch.is_grad_enabled():
            return None
        assert isinstance(layer, nn.Linear)
        if not output.requires_grad:  # nothing before it is trained: a graph begins here
            output = output.detach().requires_grad_() * 1.0
        x = args[0]
        self._uses.append(_Use(layer, x.detach(), x._version, get_gradient_edge(output)))
        return output


@dataclass(frozen=True)
class _Use:
    """A layer's run on a batch: its input as it was, and where its output's gradient arrives."""

    layer: nn.Linear
    x: Tensor
    version: int
    edge: GradientEdge

    def move(self, gradient: Tensor, lr: float) -> None:
        if self.x._version != self.version:
            raise RuntimeError("the input of a Linear layer was changed in place afterwards, so its gradient cannot be computed.")
        rows = gradient.flatten(0, -2)
        self.layer.weight.addmm_(rows.t(), self.x.flatten(0, -2), alpha=-lr)
        if self.layer.bias is not None:
            self.layer.bias.sub_(rows.sum(0), alpha=lr)
