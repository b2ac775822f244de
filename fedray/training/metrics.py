"""Metrics over a whole evaluation set: (outputs [n, ...], targets [n]), on the CPU, to one number.

Classes are read off the outputs as the largest of [n, classes], or the sign of one logit ([n] or [n, 1]).
A metric may say what it is for and which way is better, as attributes of the function: ``task`` (classes, two classes or
values) and ``lower_is_better``; without, it is taken for any task, and more is better. NaN means: not defined for these records.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fedray.errors import ConfigError
from fedray.training.engine import LossFn

#: (outputs [n, ...], targets [n]) -> float. ``mean_loss`` alone is given the run's loss as well.
MetricFn = Callable[..., float]

#: What is learned, and what a metric is for: any number of classes, two, a real number that is predicted by one output, several labels of
#: which each holds or does not, the order in which events happen, or the next token at each position.
Task = Literal["classes", "two classes", "values", "labels", "survival", "tokens"]

#: Bins of the confidence in a calibration error, as in the paper.
CALIBRATION_BINS = 15


def measures(task: Task | None, lower_is_better: bool = False) -> Callable[[MetricFn], MetricFn]:
    """Sets a metric's attributes: what it is for, and which way is better."""

    def mark(metric: MetricFn) -> MetricFn:
        vars(metric).update(task=task, lower_is_better=lower_is_better)
        return metric

    return mark


def lower_is_better(metric: MetricFn) -> bool:
    """Whether less of it is better."""
    return bool(getattr(metric, "lower_is_better", False))


@measures("classes")
def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Part of the records whose class is right."""
    return int((predicted(outputs) == _labels("accuracy", targets)).sum()) / len(targets)


@measures(None, lower_is_better=True)
def mean_loss(outputs: Tensor, targets: Tensor, loss: LossFn) -> float:
    """Mean of the run's loss over the records."""
    return float(loss(outputs, targets).double().mean())


@measures("classes")
def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Mean over the classes of the part of their records that are right.

    Classes without records do not count.
    """
    hits, _, actual = _counts("balanced_accuracy", outputs, targets)
    present = actual > 0
    return float((hits[present] / actual[present]).mean())


@measures("classes")
def f1(outputs: Tensor, targets: Tensor) -> float:
    """Macro F1: mean over the classes of the harmonic mean of precision and recall.

    Classes that are neither in the targets nor predicted do not count.
    """
    hits, claimed, actual = _counts("f1", outputs, targets)
    present = (claimed + actual) > 0
    return float((2 * hits[present] / (claimed + actual)[present]).mean())


@measures("two classes")
def precision(outputs: Tensor, targets: Tensor) -> float:
    """Part of the records predicted as the second of two classes that are of it; NaN where none is predicted as it."""
    claimed, actual = predicted(outputs) == 1, _labels("precision", targets) == 1
    return int((claimed & actual).sum()) / int(claimed.sum()) if claimed.any() else math.nan


@measures("two classes")
def binary_f1(outputs: Tensor, targets: Tensor) -> float:
    """F1 of the second of two classes: harmonic mean of precision and recall; NaN where no record is of it and none is predicted as it."""
    claimed, actual = predicted(outputs) == 1, _labels("binary_f1", targets) == 1
    named = int(claimed.sum()) + int(actual.sum())
    return 2 * int((claimed & actual).sum()) / named if named else math.nan


@measures("two classes")
def auc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve of two classes; NaN where only one is present.

    The score is the one logit, or the second of two outputs less the first. Equal scores count one half.

    Source: Hanley and McNeil 1982, The Meaning and Use of the Area under a ROC Curve.

    Raises:
        ConfigError: outputs for more than two classes.
    """
    positive = _labels("auc", targets) == 1
    return area_under_roc(_score("auc", outputs), positive)


@measures("two classes")
def average_precision(outputs: Tensor, targets: Tensor) -> float:
    """Mean of the precision at each record of the second class, of those that score as high or higher; NaN where there is none.

    The score is that of :func:`auc`. It says more than the area under the ROC curve where one class is rare: a model that knows nothing
    reaches the rare class's share of the records.

    Source: Davis and Goadrich 2006, The Relationship Between Precision-Recall and ROC Curves (without interpolation between scores)

    Raises:
        ConfigError: outputs for more than two classes.
    """
    positive = _labels("average_precision", targets) == 1
    _, place = torch.unique(_score("average_precision", outputs), return_inverse=True)
    hits = torch.bincount(place, weights=positive.double()).flip(0)
    precision = hits.cumsum(0) / torch.bincount(place).flip(0).cumsum(0)
    return float((precision * hits).sum() / hits.sum()) if positive.any() else math.nan


@measures("classes", lower_is_better=True)
def calibration_error(outputs: Tensor, targets: Tensor) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, the mean over the records of 15 bins of equal width.

    The confidence is the largest probability of a class, of softmax over the outputs or of the logistic function of one logit.

    Source: Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks, equation 3
    """
    right = predicted(outputs) == _labels("calibration_error", targets)
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        confidence = outputs.reshape(-1).double().abs().sigmoid()
    else:
        confidence = outputs.double().softmax(1).amax(1)
    gaps = torch.bincount((confidence * CALIBRATION_BINS).ceil().long() - 1, weights=right.double() - confidence)
    return float(gaps.abs().sum()) / len(targets)


@measures("values", lower_is_better=True)
def mae(outputs: Tensor, targets: Tensor) -> float:
    """Mean absolute error of a regression."""
    return float(_errors("mae", outputs, targets).abs().mean())


@measures("values", lower_is_better=True)
def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Root of the mean squared error of a regression, in units of the target."""
    return math.sqrt(float(_errors("rmse", outputs, targets).square().mean()))


@measures("values")
def r2(outputs: Tensor, targets: Tensor) -> float:
    """Part of the targets' variance that a regression explains; NaN where they are all equal."""
    spread = float((targets.double() - targets.double().mean()).square().sum())
    return 1 - float(_errors("r2", outputs, targets).square().sum()) / spread if spread else math.nan


METRICS: dict[str, MetricFn] = {
    "accuracy": accuracy,
    "loss": mean_loss,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "precision": precision,
    "binary_f1": binary_f1,
    "auc": auc,
    "average_precision": average_precision,
    "calibration_error": calibration_error,
    "mae": mae,
    "rmse": rmse,
    "r2": r2,
}


def area_under_roc(score: Tensor, positive: Tensor) -> float:
    """The probability that a positive record scores above another, equal scores counting one half; NaN where there is one kind only.

    Args:
        score: [n].
        positive: bool [n].
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return math.nan
    _, place, count = torch.unique(score.double(), return_inverse=True, return_counts=True)
    rank = (count.cumsum(0).double() - (count - 1) / 2)[place]
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def confusion(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Number of records of each class (rows) that are predicted as each class (columns), int64 ``[classes, classes]``.

    Args:
        outputs: as for :func:`predicted`.
        targets: int64 ``[n]``, below ``classes``.
        classes: number of classes.
    """
    return torch.bincount(targets * classes + predicted(outputs), minlength=classes**2).reshape(classes, classes)


def predicted(outputs: Tensor) -> Tensor:
    """Class of every record, int64 [n], of outputs [n, classes], or [n] or [n, 1] (one logit)."""
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        return (outputs.reshape(-1) > 0).long()
    return outputs.argmax(1)


def _score(metric: str, outputs: Tensor) -> Tensor:
    """How much each record looks like one of the second class, float64 [n]."""
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        return outputs[:, 1].double() - outputs[:, 0].double()
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        return outputs.reshape(-1).double()
    raise ConfigError(f"evaluation.metrics: {metric} is for two classes, but the model gives outputs of shape {tuple(outputs.shape[1:])}.")


def _labels(metric: str, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        raise ConfigError(f"evaluation.metrics: {metric} is for classes, but the data has real-valued targets; use rmse, mae or loss.")
    return targets


def _counts(metric: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each class: records that are right, records predicted as it, records that are it; float64."""
    actual, claimed = _labels(metric, targets), predicted(outputs)
    classes = int(torch.maximum(actual.max(), claimed.max())) + 1
    hits = torch.bincount(actual[actual == claimed], minlength=classes)
    return hits.double(), torch.bincount(claimed, minlength=classes).double(), torch.bincount(actual, minlength=classes).double()


def _errors(metric: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.numel() != len(targets):
        raise ConfigError(f"evaluation.metrics: {metric} is for regressions, but a record's outputs have shape {tuple(outputs.shape[1:])}.")
    return outputs.reshape(-1).double() - targets.double()
