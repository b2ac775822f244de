"""Evaluation of a model on held-out records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from fedray import components
from fedray.errors import ConfigError, DataError, blaming
from fedray.models.build import evaluating
from fedray.training.coupling import apart_in_evaluation
from fedray.training.engine import LossFn
from fedray.training.losses import Loss
from fedray.training.metrics import MetricFn, Task, mean_loss

#: What metrics of several targets are for, and what goes with them.
_TASKS = {"labels": "several labels a record", "survival": "times of events", "tokens": "next tokens"}
_LOSSES = {"labels": "bce", "survival": "cox", "tokens": "next_token"}
_METRICS = {"labels": "micro_f1, mean_auroc or loss", "survival": "c_index or loss", "tokens": "perplexity, token_accuracy or loss"}


def find_metrics(names: Iterable[str]) -> dict[str, MetricFn]:
    """Name to metric, in order; a user's ``python:module:attribute`` goes by its attribute's name.

    Raises:
        ConfigError: an unknown metric, not a function, or two of the same name.
    """
    found: dict[str, MetricFn] = {}
    for name in names:
        metric = components.find_callable(components.METRICS, name)
        _check_said(name, metric)
        short = components.short_name(name)
        if short in found:
            raise ConfigError(f"evaluation.metrics: two metrics are called '{short}'; name each once.")
        found[short] = metric
    return found


def _check_said(name: str, metric: MetricFn) -> None:
    task, lower = getattr(metric, "task", None), getattr(metric, "lower_is_better", False)
    if task is not None and task not in get_args(Task):
        raise ConfigError(
            f"evaluation.metrics: '{name}' has task = {task!r}; give one of {', '.join(map(repr, get_args(Task)))}, or None for any."
        )
    if not isinstance(lower, bool):
        raise ConfigError(f"evaluation.metrics: '{name}' has lower_is_better = {lower!r}; give True or False.")


def check_metrics(metrics: Mapping[str, MetricFn], loss: Loss, classes: int | None, outputs: int) -> None:
    """Refuse metrics that mean nothing for the task.

    Args:
        metrics: name to metric, see :func:`find_metrics`.
        loss: the run's.
        classes: number of classes of the data; None where the targets are real numbers.
        outputs: of the model for a record.

    Raises:
        ConfigError: the first that does not fit, with what does.
    """
    for name, metric in metrics.items():
        task, problem = getattr(metric, "task", None), ""
        several = len(loss.targets) > 1
        if task in _TASKS:
            if not several or loss.task not in (None, task):
                problem = f"{_TASKS[task]}, but training.loss={loss.name} is for others; use loss, or another loss ({_LOSSES[task]})"
        elif task is not None and several:
            problem = f"one target a record, but training.loss={loss.name} takes several; use {_METRICS.get(loss.task or '', 'loss')}"
        elif task in ("classes", "two classes"):
            if classes is None:
                problem = "classes, but the data has real-valued targets; use rmse, mae, r2 or loss"
            elif loss.task == "values":
                problem = f"classes, but training.loss={loss.name} fits a number; use rmse, mae, r2 or loss, or train with cross_entropy"
            elif task == "two classes" and classes != 2:
                problem = f"two classes, but the data has {classes}; use accuracy, balanced_accuracy, f1 or loss"
            elif outputs == 1 and classes != 2:
                problem = f"an output a class, but the model has one output for {classes} classes; use loss"
        elif task == "values" and (outputs != 1 or (classes is not None and loss.task != "values")):
            problem = f"regressions, but the run tells {classes or outputs} classes apart; use accuracy, balanced_accuracy, f1 or loss"
        if problem:
            raise ConfigError(f"evaluation.metrics: {name} is for {problem}.")


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    metrics: Mapping[str, MetricFn],
    loss: LossFn,
    batch_size: int = 1000,
    device: torch.device | str = "cpu",
    failed: dict[str, str] | None = None,
) -> dict[str, float]:
    """Each metric over all records, in evaluation mode and without gradients.

    Args:
        model: on ``device``; every module is afterwards in the mode it was in.
        x: records [n, ...], on any device.
        y: targets [n].
        metrics: name to metric, see :func:`find_metrics`.
        loss: the run's loss, for the metric ``loss``.
        batch_size: records on the device at once; metrics are taken over all outputs together, so it
            changes no metric by more than the rounding of the outputs. A model that gives a record other outputs beside others gets
            all records at once.
        failed: gets the sentence on each metric that could not be taken, whose value is then NaN; None raises the first.

    Raises:
        DataError: there are no records.
        ConfigError: a metric does not suit the data, failed, or did not return a number.
    """
    if not len(x):
        raise DataError("evaluation: there are no records to evaluate on; hold some out with data.holdout.fraction.")
    with evaluating(model):
        outputs, targets = outputs_of(model, x, batch_size, device), y.cpu()
        values: dict[str, float] = {}
        for name, metric in metrics.items():
            try:
                values[name] = _number(name, outputs, targets, metric, loss)
            except ConfigError as error:
                if failed is None:
                    raise
                values[name], failed[name] = math.nan, str(error)
        return values


def outputs_of(model: nn.Module, x: Tensor, batch_size: int, device: torch.device | str) -> Tensor:
    """Outputs [n, ...] on the CPU of a model in evaluation mode; arguments as for :func:`evaluate`."""
    if len(x) > batch_size and not apart_in_evaluation(model, x[:4].to(device)):
        batch_size = len(x)
    return torch.cat([model(batch.to(device)).cpu() for batch in torch.split(x, batch_size)])


def _number(name: str, outputs: Tensor, targets: Tensor, metric: MetricFn, loss: LossFn) -> float:
    with blaming(f"evaluation.metrics: '{name}'"):
        value = mean_loss(outputs, targets, loss) if metric is mean_loss else metric(outputs, targets)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"evaluation.metrics: '{name}' returned a {type(value).__name__}; return one number, NaN where it is not defined."
        ) from error
