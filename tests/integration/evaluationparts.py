"""A model whose process ends in the evaluation of one client, once, and a model that takes its time in evaluation."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn


class Dying(nn.Module):
    """Linear; a record in evaluation whose first feature is ``dies`` ends the process, if the file ``mark`` does not exist yet."""

    def __init__(self, dies: int, mark: str) -> None:
        super().__init__()
        self.linear, self.dies, self.mark = nn.Linear(3, 2), dies, mark

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and int(x[0, 0]) == self.dies and not Path(self.mark).exists():
            Path(self.mark).touch()
            os._exit(1)
        return self.linear(x)


def model(dies: int, mark: str) -> nn.Module:
    """Factory for ``python:evaluationparts:model``."""
    return Dying(dies, mark)


class Slow(nn.Module):
    """Linear; waits with each record in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            time.sleep(0.02)
        return self.linear(x)


def slow() -> nn.Module:
    """Factory for ``python:evaluationparts:slow``."""
    return Slow()
