"""The floor: federated averaging as a user would write it by hand, one process, no framework."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def rounds_per_second(x: np.ndarray, y: np.ndarray, clients: int, cohort: int, rounds: int, batch: int, lr: float) -> list[float]:
    """Seconds of each round of softmax regression on ``clients`` equal parts of the records."""
    torch.set_num_threads(1)
    xs, ys = torch.from_numpy(x).reshape(clients, -1, x.shape[1]), torch.from_numpy(y).reshape(clients, -1)
    model = nn.Linear(x.shape[1], 10)
    weights = [p.detach().clone() for p in model.parameters()]
    seconds = []
    for r in range(rounds):
        began = time.perf_counter()
        total = [torch.zeros_like(w) for w in weights]
        for k in np.random.RandomState(r).choice(clients, cohort, replace=False):
            with torch.no_grad():
                for p, w in zip(model.parameters(), weights, strict=True):
                    p.copy_(w)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            for xb, yb in zip(xs[k].split(batch), ys[k].split(batch), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(xb), yb).backward()
                optimizer.step()
            with torch.no_grad():
                for t, p, w in zip(total, model.parameters(), weights, strict=True):
                    t += (p - w) / cohort
        weights = [w + t for w, t in zip(weights, total, strict=True)]
        seconds.append(time.perf_counter() - began)
    return seconds
