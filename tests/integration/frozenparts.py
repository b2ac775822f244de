"""Models with a frozen base, for runs in real processes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def base_and_head(input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """A frozen base, and a head that is trained."""
    base = nn.Linear(int(np.prod(input_shape)), 20)
    base.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), base, nn.ReLU(), nn.Linear(20, outputs))


def by_chance(input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """The same, with a base that no seed decides."""
    model = base_and_head(input_shape, outputs)
    values = np.random.default_rng().normal(size=(20, int(np.prod(input_shape))))
    model[1].weight.data = torch.from_numpy(values.astype(np.float32))
    return model
