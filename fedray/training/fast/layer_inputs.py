"""The inputs of layers during a forward pass, and the places in the graph where the gradients of their outputs arrive.

Engines that compute a layer's gradient themselves need no more. Their backward pass ends at the layers' outputs, and autograd computes no
gradient of the layers' parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass(frozen=True)
class Use:
    """One call of a layer: its input, the input's version at the call, and the edge at which its output's gradient arrives (None: without gradients)."""

    layer: nn.Module
    x: Tensor
    version: int
    edge: GradientEdge | None

    @property
    def changed(self) -> bool:
        """Whether the input was changed in place afterwards."""
        return self.x._version != self.version


class Tape:
    """Keeps the uses of some layers, for as long as the context lasts.

    Args:
        layers: whose uses are kept.

    Attributes:
        uses: of the last batch, in order.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.layers = list(layers)
        self.uses: list[Use] = []
        self._on = False
        self._parameters = {id(p) for layer in self.layers for p in layer.parameters(recurse=False) if p.requires_grad}

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_hook(self._called, with_kwargs=True) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.uses = []

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """What ``forward`` gives; :attr:`uses` is then what it used."""
        self.uses, self._on = [], True
        try:
            return forward()
        finally:
            self._on = False  # a layer may run again in the backward pass (activation checkpoints)

    def _called(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.note(layer, args[0] if args else kwargs["input"], output)

    def note(self, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        """Keep a use of a layer that was not called: its input, and a tensor whose gradient is that of its output."""
        if self._on:
            self.uses.append(Use(layer, x, x._version, get_gradient_edge(output) if output.requires_grad else None))

    def reaches_only_layers(self, losses: Tensor) -> bool:
        """Whether every way from the losses to a parameter of the layers leads through its layer's output."""
        seen = {use.edge.node for use in self.uses if use.edge is not None}
        waiting: list[Any] = [losses.grad_fn, *(use.x.grad_fn for use in self.uses)]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in self._parameters:
                return False
            waiting += [following for following, _ in node.next_functions]
        return True

    def gradients(self, losses: Tensor, weights: Tensor, others: Sequence[Tensor] = ()) -> Sequence[Tensor | None]:
        """Gradients of ``losses`` times ``weights``: of ``others``, then of each use's output; None where they do not depend on it.

        All uses must have gradients.
        """
        ends: list[Any] = [*others, *(use.edge for use in self.uses)]
        # A sum and not autograd's own weights: for those torch imports a symbolic algebra, a second and 50 MiB in each process.
        found: Sequence[Tensor | None] = torch.autograd.grad([(losses * weights).sum()], ends, allow_unused=True)
        return found
