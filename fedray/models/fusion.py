"""A network for records with several inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.models.shapes import flat_size


class LateFusion(nn.Module):
    """See :func:`late_fusion`."""

    def __init__(self, input_shape: Mapping[str, tuple[int, ...]], outputs: int, hidden: int) -> None:
        super().__init__()
        self.names = tuple(input_shape)
        self.branches = nn.ModuleList(nn.Linear(flat_size("late_fusion", shape), hidden) for shape in input_shape.values())
        self.head = nn.Linear(hidden * len(input_shape), outputs)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Outputs ``[n, outputs]``."""
        features = [branch(inputs[name].flatten(1)).relu() for name, branch in zip(self.names, self.branches, strict=True)]
        outputs: Tensor = self.head(torch.cat(features, dim=1))
        return outputs


def late_fusion(input_shape: Mapping[str, tuple[int, ...]], outputs: int, *, hidden: int = 32) -> nn.Module:
    """A hidden layer of its own for each input, and one linear layer on all of them together.

    For records with several inputs of numbers, each flattened; gives [n, outputs].

    Args:
        hidden: units of each input's layer.

    Raises:
        ConfigError: records of one input, or a layer without units.
    """
    if not isinstance(input_shape, Mapping):
        raise ConfigError("model.kind: late_fusion is for records with several inputs, but these have one; use mlp.")
    if hidden < 1:
        raise ConfigError(f"model.hidden: {hidden} is no number of units; give at least 1.")
    return LateFusion(input_shape, outputs, hidden)


MODELS = {"late_fusion": late_fusion}
