"""SGD on large Linear layers without keeping their gradient in memory.

The gradient of a Linear layer's weight is the product g' x of its output's gradient and its input. It is as large as the weight, is written
once, and is read once to be subtracted. With SGD without momentum and weight decay the product is subtracted while it is computed, after the
backward pass.

In a sequential model nothing but the layer reads the weight, and then the weight need not change in every step: after steps with inputs x_s and
output gradients g_s the layer's output is x W' - lr sum_s (x x_s') g_s. So a few steps are kept as rows of x_s and g_s and then subtracted in
one product, which reads and writes the weight once for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.training.fast.layer_inputs import Tape, Use
from fedray.training.fast.onednn_linear import linear
from fedray.training.fast.sequential import observed

#: Values of a weight from which this is faster: smaller weights and their gradients stay in a core's cache.
_LARGE = 2**18
#: Largest number of rows of steps that are kept.
_ROWS = 64


class Direct:
    """The large Linear layers of a model, for as long as the context lasts.

    Args:
        model: that is trained.
        training: the training section.
        lr: learning rate.
        allowed: whether a step is one backward pass, of which nobody reads the gradients.
        alone: whether nothing but the layers reads their weights, as in a sequential model.

    Attributes:
        others: the other trained parameters, which get gradients as usual.
    """

    def __init__(self, model: nn.Module, training: Training, lr: float, allowed: bool, alone: bool) -> None:
        self._lr = lr
        layers: list[nn.Module] = []
        if allowed and training.optimizer == "sgd" and not training.momentum and not training.weight_decay:
            owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
            layers = [m for m in model.modules() if type(m) is nn.Linear and _suits(m, owners)]
        self._tape, self._own = Tape(layers), [p for layer in layers for p in layer.parameters()]
        mine = {id(p) for p in self._own}
        self.others = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]
        self._steps = {layer: _Steps(layer) for layer in layers if isinstance(layer, nn.Linear)} if alone else {}
        self._by_autograd = False  # whether the layers' gradients are made in the backward pass

    def __enter__(self) -> Direct:
        self._tape.__enter__()
        for layer in self._tape.layers:
            layer.forward = partial(self._output, layer)
        self._handles = [layer.register_forward_hook(self._correct) for layer in self._steps]
        return self

    def __exit__(self, *_: object) -> None:
        self._tape.__exit__()
        for layer in self._tape.layers:
            del layer.forward  # the class's again
        for handle in self._handles:
            handle.remove()
        self._flush()

    def forward(self, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The model's outputs."""
        return self._tape.run(lambda: model(x))

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        """Add to the gradients of :attr:`others`, and move the layers by theirs."""
        uses = self._tape.uses
        if any(use.changed for use in uses):
            raise RuntimeError("the input of a Linear layer was changed in place afterwards, so its gradient cannot be computed.")
        if not uses or any(use.edge is None for use in uses) or not self._tape.reaches_only_layers(losses):
            self._flush()
            self._by_autograd = True
            try:
                (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
            finally:
                self._by_autograd = False
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
                    self._move(use, gradient)

    def _move(self, use: Use, gradient: Tensor) -> None:
        layer, x, rows = use.layer, use.x.flatten(0, -2), gradient.flatten(0, -2)
        assert isinstance(layer, nn.Linear)
        if layer.bias is not None:
            layer.bias.sub_(rows.sum(0), alpha=self._lr)
        steps = self._steps.get(layer)
        if steps is None or not steps.remember(x, rows, self._lr):
            layer.weight.addmm_(rows.t(), x, alpha=-self._lr)

    def _output(self, layer: nn.Module, input: Tensor) -> Tensor:  # the argument has torch's name, which callers may use
        assert isinstance(layer, nn.Linear)
        return linear(input, layer.weight, layer.bias, lambda: self._by_autograd)

    def _correct(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """A forward hook: correct the output by the steps that are not yet in the weight."""
        assert isinstance(layer, nn.Linear)
        x, gradients = self._steps[layer].taken()
        if not len(x):
            return None
        found = torch.addmm(output.flatten(0, -2), args[0].flatten(0, -2) @ x.t(), gradients, alpha=-self._lr)
        return found.view(output.shape)

    def _flush(self) -> None:
        for steps in self._steps.values():
            steps.flush(self._lr)


class _Steps:
    """Steps that are not yet in a layer's weight: inputs [rows, in] and gradients of outputs [rows, out]."""

    def __init__(self, layer: nn.Linear) -> None:
        self._weight, self._rows = layer.weight, 0
        self._x, self._gradients = (layer.weight.new_empty((_ROWS, n)) for n in (layer.in_features, layer.out_features))

    def taken(self) -> tuple[Tensor, Tensor]:
        """Inputs and output gradients of the steps that are kept."""
        return self._x[: self._rows], self._gradients[: self._rows]

    def remember(self, x: Tensor, gradients: Tensor, lr: float) -> bool:
        """Keep a step, after applying the kept ones if there is no room; return False if the step is too large to be kept."""
        if self._rows + len(x) > _ROWS:
            self.flush(lr)
        if 2 * len(x) > _ROWS:  # a product for fewer than two steps saves nothing
            return False
        here = slice(self._rows, self._rows + len(x))
        self._x[here], self._gradients[here] = x, gradients
        self._rows += len(x)
        return True

    def flush(self, lr: float) -> None:
        """Subtract the kept steps from the weight."""
        if self._rows:
            x, gradients = self.taken()
            with torch.no_grad():
                self._weight.addmm_(gradients.t(), x, alpha=-lr)
            self._rows = 0


def _suits(layer: nn.Linear, owners: Counter[int]) -> bool:
    alone = all(owners[id(p)] == 1 and p.requires_grad and not p._backward_hooks for p in layer.parameters())
    return alone and not observed(layer) and layer.weight.numel() >= _LARGE and layer.weight.device.type == "cpu"
