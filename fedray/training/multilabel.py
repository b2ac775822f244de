"""Several labels a record, of which each holds or does not: targets [n, k] of 0 and 1, one output a label."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fedray.errors import ConfigError
from fedray.training.losses import declared
from fedray.training.metrics import area_under_roc, measures


@declared(targets=("n", "outputs"), task="labels")
def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of a logit for each label, the mean over a record's labels: outputs [n, k], targets [n, k] from 0 to 1."""
    losses = functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
    return losses.mean(1)


@measures("labels")
def micro_f1(outputs: Tensor, targets: Tensor) -> float:
    """F1 over all labels of all records: harmonic mean of precision and recall; NaN where no label holds and none is predicted."""
    predicted, actual = outputs > 0, _holds("micro_f1", outputs, targets)
    claimed = float(predicted.sum() + actual.sum())
    return 2 * float((predicted & actual).sum()) / claimed if claimed else math.nan


@measures("labels")
def mean_auroc(outputs: Tensor, targets: Tensor) -> float:
    """Mean over the labels of the area under the ROC curve, of labels that hold for some records and not for others; NaN where there are none.

    Source: Hanley and McNeil 1982, The Meaning and Use of the Area under a ROC Curve
    """
    actual = _holds("mean_auroc", outputs, targets)
    areas = torch.tensor([area_under_roc(outputs[:, k], actual[:, k]) for k in range(outputs.shape[1])], dtype=torch.float64)
    return float(areas.nanmean())


def _holds(metric: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Bool [n, k].

    Raises:
        ConfigError: the shapes differ.
    """
    if outputs.shape != targets.shape:
        raise ConfigError(
            f"evaluation.metrics: {metric} needs an output for each label, but outputs have shape {tuple(outputs.shape[1:])} and targets "
            f"{tuple(targets.shape[1:])}."
        )
    return targets > 0.5


LOSSES = {"bce": bce}
METRICS = {"micro_f1": micro_f1, "mean_auroc": mean_auroc}
