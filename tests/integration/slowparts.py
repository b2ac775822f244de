"""A model that takes its time on one client, and one that fails on one; for deadlines and failures."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from torch import nn


def data(clients: int = 4, records: int = 40) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Clients whose first feature is their number."""
    rng = np.random.default_rng(0)
    out = {}
    for k in range(clients):
        y = rng.integers(0, 2, records)
        x = rng.normal(size=(records, 4)).astype(np.float32) + y[:, None]
        x[:, 0] = k
        out[f"c{k}"] = (x, y)
    return out


class Odd(nn.Module):
    """Linear; on client ``slow`` each batch sleeps, on client ``fails`` it raises, on ``explodes`` it gives NaN,
    on ``sleeps`` it never comes back.
    """

    def __init__(self, slow: int, fails: int, explodes: int, dies: int, mark: str, sleeps: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.slow, self.fails, self.explodes, self.dies, self.mark, self.sleeps = slow, fails, explodes, dies, mark, sleeps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        client = int(x[0, 0]) if self.training and len(x) else -1
        if client >= 0 and client == self.slow:
            time.sleep(0.15)
        if client >= 0 and client == self.sleeps:
            time.sleep(10_000)
        if client >= 0 and client == self.fails:
            raise RuntimeError("the sensor is broken")
        if client >= 0 and client == self.dies and not os.path.exists(self.mark):
            if self.mark:  # once, else always
                with open(self.mark, "w"):
                    pass
            os._exit(1)
        out = self.linear(x)
        return out * float("nan") if client >= 0 and client == self.explodes else out


def model(slow: int = -1, fails: int = -1, explodes: int = -1, dies: int = -1, mark: str = "", sleeps: int = -1) -> nn.Module:
    """Factory for ``python:slowparts:model``."""
    return Odd(slow, fails, explodes, dies, mark, sleeps)
