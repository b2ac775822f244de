"""A judged model's probabilities, one record at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedray.errors import ConfigError
from fedray.queries.statistic import Floats, Integers, RecordBatch
from fedray.training.alone import outputs_alone


def probabilities(model: nn.Module, x: torch.Tensor) -> Floats:
    """The probability of each class, float64 ``[n, classes]``; rows of 0 for outputs that are not finite.

    Every record is given to the model alone, see :mod:`fedray.training.alone`.

    Args:
        model: on the CPU, in evaluation mode.
        x: records ``[n, ...]``.
    """
    found = []
    for given in outputs_alone(model, x):
        out = given.reshape(-1).double()
        if out.numel() == 1:
            one = torch.sigmoid(out)
            out = torch.cat([1.0 - one, one])
        else:
            out = torch.softmax(out, dim=0)
        found.append(out.numpy())
    made = np.stack(found) if found else np.zeros((0, 2))
    made[~np.isfinite(made).all(axis=1)] = 0.0
    return made


def probabilities_of(batch: RecordBatch, where: str) -> Floats:
    """The batch's probabilities.

    Raises:
        ConfigError: no model is judged.
    """
    if batch.probabilities is None:
        raise ConfigError(f"{where}: judges a model; set judged=RUN_DIR to a finished run.")
    return batch.probabilities


def predicted(found: Floats) -> Integers:
    """The most probable class of each record, int64 ``[n]``; the first one of several."""
    best: Integers = np.argmax(found, axis=1).astype(np.int64)
    return best


def classes_of(classes: int | None, kind: str) -> int:
    """The number of classes.

    Raises:
        ConfigError: the targets are real numbers.
    """
    if classes is None:
        raise ConfigError(f"{kind}: is for classes, but the targets are real numbers.")
    return classes
