"""A model's outputs, one record at a time.

In a batch, the rounding of a record's outputs could depend on the number of the other records, and what is counted of it would then depend on
them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def outputs_alone(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs [1, ...] on the CPU for each record, without gradients.

    Args:
        model: in evaluation mode.
        x: records [n, ...] on the model's device, or on the CPU.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        return [model(record.to(device)).cpu() for record in torch.split(x, 1)] if len(x) else []
