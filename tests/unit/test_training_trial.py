"""A trial that ends its process, or never ends, is no trial; the process that asked for it lives."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedray.errors import ConfigError
from fedray.training import trial
from fedray.training.coupling import batch_needs
from fedray.training.losses import Loss
from fedray.training.trial import tried


def leaves(outputs: Tensor, targets: Tensor) -> Tensor:
    if (targets == 2).any():
        os._exit(5)
    return functional.cross_entropy(outputs, targets, reduction="none")


def well(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def refuse() -> int:
    raise ConfigError("no")


def test_a_trial_answers_for_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.zeros(1000, 1000).matmul(torch.zeros(1000, 1000))  # this process has had threads
    assert tried(lambda: float((torch.ones(500, 500) @ torch.ones(500, 500)).sum()), otherwise=0.0) == 500.0**3
    assert tried(lambda: os._exit(3), otherwise=None) is None
    with pytest.raises(ConfigError, match="no"):
        tried(refuse, otherwise=0)
    with pytest.raises(ZeroDivisionError):
        tried(lambda: 1 // 0, otherwise=0)
    monkeypatch.setattr(trial, "_PATIENCE", 0.05)
    assert tried(lambda: time.sleep(1000), otherwise=None) is None


def test_a_loss_that_ends_its_process_is_taken_for_one_that_wants_whole_batches() -> None:
    targets = np.arange(30) % 3
    assert batch_needs(nn.Linear(4, 3), Loss(leaves, "leaves"), (4,), False, 3, targets).whole is not None
    assert batch_needs(nn.Linear(4, 3), Loss(well, "well"), (4,), False, 3, targets).whole is None
