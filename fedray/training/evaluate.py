"""Evaluation of a model on held-out records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from fedray import components
from fedray.errors import ConfigError, DataError
from fedray.models.build import evaluating
from fedray.training.engine import LossFn
from fedray.training.metrics import MetricFn, mean_loss


def find_metrics(names: Iterable[str]) -> dict[str, MetricFn]:
    """Name to metric, in order; a user's ``python:module:attribute`` goes by its attribute's name.

    Raises:
        ConfigError: an unknown metric, not a function, or two of the same name.
    """
    found: dict[str, MetricFn] = {}
    for name in names:
        metric = components.find(components.METRICS, name)
        if not callable(metric):
            raise ConfigError(f"evaluation.metrics: '{name}' is a {type(metric).__name__}; name a function of (outputs, targets).")
        short = name.rpartition(":")[2]
        if short in found:
            raise ConfigError(f"evaluation.metrics: two metrics are called '{short}'; name each once.")
        found[short] = cast(MetricFn, metric)
    return found


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    metrics: Mapping[str, MetricFn],
    loss: LossFn,
    batch_size: int = 1000,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Each metric over all records, in evaluation mode and without gradients.

    Args:
        model: on ``device``; every module is afterwards in the mode it was in.
        x: records [n, ...], on any device.
        y: targets [n].
        metrics: name to metric, see :func:`find_metrics`.
        loss: the run's loss, for the metric ``loss``.
        batch_size: records on the device at once; metrics are taken over all outputs together, so it
            changes no metric by more than the rounding of the outputs.

    Raises:
        DataError: there are no records.
        ConfigError: a metric does not suit the data, or did not return a number.
    """
    if not len(x):
        raise DataError("evaluation: there are no records to evaluate on; hold some out with data.holdout.fraction.")
    with evaluating(model):
        outputs = torch.cat([model(batch.to(device)).cpu() for batch in torch.split(x, batch_size)])
        targets = y.cpu()
        return {name: _number(name, outputs, targets, metric, loss) for name, metric in metrics.items()}


def _number(name: str, outputs: Tensor, targets: Tensor, metric: MetricFn, loss: LossFn) -> float:
    value = mean_loss(outputs, targets, loss) if metric is mean_loss else metric(outputs, targets)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"evaluation.metrics: '{name}' returned a {type(value).__name__} that is not one number.") from error
