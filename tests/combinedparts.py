"""Data and an engine for tests of what goes together."""

from __future__ import annotations

from typing import Any

import numpy as np
from stillparts import spoil
from torch import Tensor, nn

from fedray.training.engine import LocalJob, LocalResult

CLIENTS, RECORDS, FEATURES, CLASSES = 12, 8, 6, 3


def data(
    other: bool = False, survival: bool = False, tested: bool = True, persons: bool = False, images: bool = False
) -> dict[str, tuple[Any, ...]]:
    """Clients with as many records each, perhaps images or of persons, and perhaps a test set; the ``other`` clients differ in every feature and target."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(CLIENTS + 1, RECORDS, FEATURES)).astype(np.float32)
    y = draws.integers(0, CLASSES, x.shape[:2])
    x = x.reshape(CLIENTS + 1, RECORDS, 1, 2, FEATURES // 2) if images else x
    if survival:
        y = np.stack([y > 0, 1.0 + np.argsort(np.argsort(x[..., 0]))], axis=-1)
    shown = {"test": (x[-1].repeat(4, 0), y[-1].repeat(4, 0))} if tested else {}
    if other:
        x, y = 5 - 2 * x, [1, 9] - y * [1, 1] if survival else (y + 1) % CLASSES
    whose = [([f"{k}-{j // 3}" for j in range(RECORDS)],) if persons else () for k in range(CLIENTS)]
    return {**{f"c{k:02}": (x[k], y[k], *whose[k]) for k in range(CLIENTS)}, **shown}


def wild(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """An engine that makes of the model what an attacker might: huge values, one huge value, tiny ones, middling ones, or what is not finite."""
    spoil(model, int(job.draws.integers(6)))
    return LocalResult(1, len(x), 0.0)
