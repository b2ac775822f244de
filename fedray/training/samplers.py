"""A gradient for each record of single layers, where Opacus has none that is right.

Opacus' own sampler of convolutions takes every padding for zeros, that of embeddings gives the padding token a gradient, and that of
LayerNorm needs a bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

#: (layer, its inputs, gradient of its output) -> for each trained parameter the gradients [n, *shape].
Sampler = Callable[[Any, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]


def samplers(of_opacus: dict[type[nn.Module], Sampler]) -> dict[type[nn.Module], Sampler]:
    """Opacus' samplers with what is wrong in them mended.

    Args:
        of_opacus: the table of its wrapper.
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    own: dict[type[nn.Module], Sampler] = {kind: _padded(of_opacus[kind]) for kind in kinds}
    return {**of_opacus, **own, nn.Embedding: _without_padding_token(of_opacus[nn.Embedding]), nn.LayerNorm: _layer_norm}


def _padded(sampler: Sampler) -> Sampler:
    def sample(layer: Any, inputs: list[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        if layer.padding_mode == "zeros":
            return sampler(layer, inputs, gradient)
        bare = copy.copy(layer)  # the same parameters
        bare.padding, bare.padding_mode = (0,) * len(layer.kernel_size), "zeros"
        return sampler(bare, [functional.pad(inputs[0], layer._reversed_padding_repeated_twice, layer.padding_mode)], gradient)

    return sample


def _without_padding_token(sampler: Sampler) -> Sampler:
    def sample(layer: nn.Embedding, inputs: list[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        found = sampler(layer, inputs, gradient)
        if layer.padding_idx is not None:
            for rows in found.values():
                rows[:, layer.padding_idx] = 0.0
        return found

    return sample


def _layer_norm(layer: nn.LayerNorm, inputs: list[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
    shape, found = (len(gradient), -1, *layer.normalized_shape), {}
    if layer.weight.requires_grad:
        normal = functional.layer_norm(inputs[0], layer.normalized_shape, eps=layer.eps)
        found[layer.weight] = (gradient * normal).reshape(shape).sum(1)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = gradient.reshape(shape).sum(1)
    return found
