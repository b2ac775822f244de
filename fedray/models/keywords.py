"""A model of several inputs, called with one array in which they stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedray.inputs import Input


class Keywords(nn.Module):
    """Takes records apart and calls a model with each input by its name.

    Args:
        model: takes a tensor ``[n, *shape]`` for each input, as keyword arguments.
        inputs: in the order in which they stand.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """The model's outputs for records ``[n, sum of sizes]``."""
        parts = torch.split(x, [i.size for i in self.inputs], dim=1)
        outputs: Tensor = self.model(
            **{i.name: (part.long() if i.tokens else part).reshape(-1, *i.shape) for i, part in zip(self.inputs, parts, strict=True)}
        )
        return outputs
