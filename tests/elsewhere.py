"""The device that tests compute on: ``FEDRAY_TEST_DEVICE``, any device of torch's such as ``cuda``; by default the CPU.

``standin`` is a second device for machines without a GPU (:mod:`standin`). Inputs of the tests are made on the CPU and results are compared
there, within the bounds that hold between any two orders of operations (:mod:`rounding`).
"""

from __future__ import annotations

import functools
import os

import standin
import torch
from torch import Tensor, nn

from fedray.training.engine import Engine, LocalJob, LocalResult


def _chosen() -> torch.device:
    name = os.environ.get("FEDRAY_TEST_DEVICE", "cpu")
    if name.startswith(standin.NAME):
        standin.register()
    return torch.device(name if name == "cpu" or ":" in name else f"{name}:0")


DEVICE = _chosen()
#: Whether the device's numbers are the CPU's to the last bit.
EXACT = DEVICE.type in ("cpu", standin.NAME)


def there(engine: Engine) -> Engine:
    """An engine that trains on the device a model and records that lie on the CPU; the model comes back."""
    if DEVICE.type == "cpu":
        return engine

    @functools.wraps(engine)
    def run(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        result = engine(model.to(DEVICE), x.to(DEVICE), y.to(DEVICE), job)
        model.to("cpu")
        return result

    return run
