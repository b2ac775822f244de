"""Parts with which a run moves the model by nothing but noise, or by far too much; for tests of what leaves clients."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

from fedray.training.engine import LocalJob, LocalResult


def data(clients: int = 8, records: int = 30) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Clients whose first feature is their number plus 1000."""
    rng = np.random.default_rng(0)
    out = {}
    for k in range(clients):
        y = rng.integers(0, 10, records)
        x = rng.normal(size=(records, 100)).astype(np.float32)
        x[:, 0] = 1000 + k
        out[f"c{k}"] = (x, y)
    return out


def still(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """An engine that changes nothing."""
    return LocalResult(1, len(x), 0.0)


def wild(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """An engine that makes of the model what an attacker might: huge values, one huge value, tiny ones, infinities, NaN."""
    spoil(model, int(x[0, 0]) % 5)
    return LocalResult(1, len(x), 0.0)


def spoil(model: nn.Module, kind: int) -> None:
    """Make of a model what an attacker might, in one of six ways."""
    with torch.no_grad():
        for p in model.parameters():
            if kind == 0:
                p.fill_(3e38)
            elif kind == 1:
                p.view(-1)[0] += 1e30
            elif kind == 2:
                p += 1e-40
            elif kind == 3:
                p.fill_(float("inf"))
            elif kind == 4:
                p += torch.randn_like(p) * 100
                p.view(-1)[-1] = float("nan")
            else:
                p += 1.0


def no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient is zero for the clients' records, of which a linear model makes large outputs; not for the pre-flight test's."""
    small = outputs.detach().abs().amax(1) < 20
    return outputs.sum(dim=1) * small


class Watching(nn.Module):
    """Linear; writes the size of each training batch of real records into the file ``log``."""

    def __init__(self, log: str) -> None:
        super().__init__()
        self.linear = nn.Linear(100, 10)
        self.path = log

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) and bool((x[:, 0] >= 1000).all()) and bool((x[:, 0] < 2000).all()):
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{len(x)}\n".encode())
            os.close(fd)
        return self.linear(x)


class Counting(nn.Module):
    """Linear; writes the number of the client of each training batch into the file ``log``."""

    def __init__(self, log: str) -> None:
        super().__init__()
        self.linear = nn.Linear(100, 10)
        self.path = log

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) and float(x[0, 0]) >= 1000:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{int(x[0, 0]) - 1000}\n".encode())
            os.close(fd)
        return self.linear(x)


def counting(log: str) -> nn.Module:
    """Factory for ``python:stillparts:counting``."""
    return Counting(log)


def watching(log: str) -> nn.Module:
    """Factory for ``python:stillparts:watching``."""
    return Watching(log)
