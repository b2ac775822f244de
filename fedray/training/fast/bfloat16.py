"""Convolutions in bfloat16, where the user asks for them; processors with the format compute them twice as fast.

Weights, updates and everything between the convolutions stay float32. Eight bits of mantissa change a client's update by about a fifth of its
norm for the FedAvg paper's CNN. Whether training averages this out is not known, so it is never chosen automatically, and it is refused under
record-level privacy, where norms must be exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def bfloat16_convolutions(model: nn.Module) -> Iterator[None]:
    """Within the context the model's convolutions compute in bfloat16 and return float32, forward and backward.

    Args:
        model: on any device. Layers with a forward pass of their own keep it.
    """
    layers = [m for m in model.modules() if type(m) in _CONVOLUTIONS and "forward" not in vars(m)]
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    # Entered for each call: autocast keeps the weights that it has cast for as long as it lasts, and steps change them.
    with torch.autocast(x.device.type, torch.bfloat16):
        found: Tensor = type(layer).forward(layer, x)
    return found.float()
