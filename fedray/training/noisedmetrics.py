"""Metrics from bounded integer sums over records, which can be noised: what a client may tell of its held-out records under privacy.

A metric follows from one of a few statistics. A record contributes an integer vector of bounded L2 norm to each: whether it is right, its cell
of the confusion matrix, the bin of its score, the gap between its confidence and what was right, or a clipped number. All that is released is the sum with noise; every figure is computed from that
and from public constants. A record whose outputs are not finite contributes nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.evaluationconfig import ChargedEvaluation
from fedray.privacy.integersums import GRID, Floats, Integers, bounded_rows, edges_of, on_grid, one_hot, scaled
from fedray.training.alone import outputs_alone
from fedray.training.engine import LossFn
from fedray.training.metrics import CALIBRATION_BINS

_BINS = 20
_BY_CLASS = ("balanced_accuracy", "f1", "precision", "binary_f1")
_BY_SCORE = ("auc", "average_precision")
_BY_LOSS = ("loss", "perplexity")
_LARGEST = 700.0  # whose exponential is finite
_RECORDS = 1024  # whose contributions are in memory at once


@dataclass(frozen=True)
class Seen:
    """What a model makes of some records.

    Attributes:
        outputs: float64 ``[n, outputs]``, or of tokens ``[n, T, outputs]``; finite.
        targets: float64 ``[n]``, or of tokens ``[n, T]``.
        losses: of the run's loss, float64 ``[n]``; may hold what is not finite.
    """

    outputs: Floats
    targets: Floats
    losses: Floats

    @property
    def predicted(self) -> Integers:
        """The class of every record, int64 ``[n]``: the largest output, or the sign of a single one."""
        found = self.outputs[:, 0] > 0 if self.outputs.shape[1] == 1 else np.argmax(self.outputs, axis=1)
        return found.astype(np.int64)


class Counted(ABC):
    """A statistic that metrics follow from. A subclass is a frozen dataclass of public constants.

    Attributes:
        name: of the statistic, in plans and ledgers.
    """

    name: str

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of values of the sum. One record's contribution has the squared L2 norm :data:`GRID` ** 2 at most."""

    @abstractmethod
    def contributions(self, seen: Seen) -> Integers:
        """Each record's contribution, int64 ``[n, size]``; a function of that record alone."""

    @abstractmethod
    def figures(self, values: Floats, records: int) -> dict[str, float]:
        """The metrics, from the noised sum in units of 1, float64 ``[size]``, and the public number of records, which is not 0."""

    def spread(self, noise: float, records: int) -> dict[str, float]:
        """The standard deviation of the noise on the metrics that are linear in the sum, where ``noise`` is that of a value in units of 1."""
        return {}


@dataclass(frozen=True)
class Right(Counted):
    """The number of records whose class is right, for accuracy alone."""

    name: str = "correct"

    @property
    def size(self) -> int:
        """See :class:`Counted`."""
        return 1

    def contributions(self, seen: Seen) -> Integers:
        """See :class:`Counted`."""
        return one_hot(np.where(seen.predicted == seen.targets, 0, -1).astype(np.int64), 1)

    def figures(self, values: Floats, records: int) -> dict[str, float]:
        """See :class:`Counted`."""
        return {"accuracy": _part(float(values[0]) / records)}

    def spread(self, noise: float, records: int) -> dict[str, float]:
        """See :class:`Counted`."""
        return {"accuracy": noise / records}


@dataclass(frozen=True)
class Confused(Counted):
    """The confusion matrix, for accuracy, balanced accuracy, macro F1, and precision and F1 of the second of two classes."""

    classes: int
    name: str = "confusion_matrix"

    @property
    def size(self) -> int:
        """See :class:`Counted`."""
        return self.classes**2

    def contributions(self, seen: Seen) -> Integers:
        """See :class:`Counted`."""
        return one_hot(seen.targets.astype(np.int64) * self.classes + np.minimum(seen.predicted, self.classes - 1), self.size)

    def figures(self, values: Floats, records: int) -> dict[str, float]:
        """See :class:`Counted`. Counts below 0 count as 0; accuracy is of the public number of records."""
        matrix = values.reshape(self.classes, self.classes)
        counts = np.maximum(matrix, 0.0)
        hits, actual, claimed = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
        present, named = actual > 0, (actual + claimed) > 0
        found = {"accuracy": _part(float(np.trace(matrix)) / records)}
        found["balanced_accuracy"] = float((hits[present] / actual[present]).mean()) if present.any() else math.nan
        found["f1"] = float((2 * hits[named] / (actual + claimed)[named]).mean()) if named.any() else math.nan
        if self.classes == 2:
            found["precision"] = float(hits[1] / claimed[1]) if claimed[1] > 0 else math.nan
            found["binary_f1"] = float(2 * hits[1] / (claimed + actual)[1]) if named[1] else math.nan
        return found

    def spread(self, noise: float, records: int) -> dict[str, float]:
        """See :class:`Counted`."""
        return {"accuracy": math.sqrt(self.classes) * noise / records}


@dataclass(frozen=True)
class Scored(Counted):
    """For each of two classes the number of records in each bin of the second one's probability, for the area under the ROC curve and average precision."""

    bins: int
    name: str = "scores"

    @property
    def size(self) -> int:
        """See :class:`Counted`."""
        return 2 * self.bins

    def contributions(self, seen: Seen) -> Integers:
        """See :class:`Counted`."""
        out = seen.outputs
        logit = out[:, 0] if out.shape[1] == 1 else out[:, 1] - out[:, 0]
        score = np.searchsorted(self._edges, logit, side="right").astype(np.int64)
        return one_hot(score + self.bins * seen.targets.astype(np.int64), self.size)

    @property
    def _edges(self) -> Floats:
        """The inner edges of the bins, as logits: comparing logits is exact, and computing probabilities would not be."""
        inner = edges_of(0.0, 1.0, self.bins)[1:-1]
        return np.log(inner / (1.0 - inner))

    def figures(self, values: Floats, records: int) -> dict[str, float]:
        """See :class:`Counted`. Equal bins count one half."""
        no, yes = np.maximum(values, 0.0).reshape(2, self.bins)
        area = float(yes @ (np.cumsum(no) - no / 2))
        pairs = float(no.sum()) * float(yes.sum())
        hits, above = yes[::-1], np.cumsum((no + yes)[::-1])  # from the highest scores down
        precision = np.divide(np.cumsum(hits), above, out=np.zeros_like(hits), where=above > 0)
        return {
            "auc": area / pairs if pairs > 0 else math.nan,
            "average_precision": float(precision @ hits) / float(hits.sum()) if hits.sum() > 0 else math.nan,
        }


@dataclass(frozen=True)
class Calibrated(Counted):
    """For each bin of the confidence the sum of what was right less the confidence, for the calibration error."""

    name: str = "calibration"

    @property
    def size(self) -> int:
        """See :class:`Counted`."""
        return CALIBRATION_BINS

    def contributions(self, seen: Seen) -> Integers:
        """See :class:`Counted`. Each record's confidence is computed by itself, so that it does not depend on those beside it."""
        confidence = np.array([_confidence(row) for row in seen.outputs.tolist()], dtype=np.float64)
        index = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
        gap = on_grid(scaled((seen.predicted == seen.targets) - confidence, -1.0, 1.0))
        return np.where(one_hot(index, self.size) > 0, gap[:, None], np.int64(0))

    def figures(self, values: Floats, records: int) -> dict[str, float]:
        """See :class:`Counted`. The noise of each bin adds to it."""
        return {"calibration_error": _part(float(np.abs(values).sum()) / records)}


@dataclass(frozen=True)
class ClippedMean(Counted):
    """The sum of a number of each record that is clipped between 0 and a bound.

    It is the record's loss, its absolute or its squared error, or the part of its tokens that is right. The mean loss gives a perplexity,
    because a run's records have equally many tokens.
    """

    name: str
    bound: float

    @property
    def size(self) -> int:
        """See :class:`Counted`."""
        return 1

    def contributions(self, seen: Seen) -> Integers:
        """See :class:`Counted`. An infinite number counts as the bound, and one that is none as the middle."""
        values = seen.losses
        if self.name == "token_accuracy":
            values = (np.argmax(seen.outputs, axis=2)[:, : seen.targets.shape[1]] == seen.targets).mean(axis=1)
        elif self.name != "loss":
            errors = np.abs(seen.outputs[:, 0] - seen.targets)
            values = errors if self.name == "mae" else errors * errors
        return on_grid(scaled(values, 0.0, self.bound))[:, None]

    def figures(self, values: Floats, records: int) -> dict[str, float]:
        """See :class:`Counted`."""
        mean = min(self.bound, max(0.0, self.bound / 2 * (1.0 + float(values[0]) / records)))
        if self.name == "loss":
            return {"loss": mean, "perplexity": math.exp(mean) if mean < _LARGEST else math.inf}
        return {self.name: math.sqrt(mean) if self.name == "rmse" else mean}

    def spread(self, noise: float, records: int) -> dict[str, float]:
        """See :class:`Counted`."""
        return {} if self.name == "rmse" else {self.name: self.bound / 2 * noise / records}


def counted_for(metrics: Sequence[str], section: ChargedEvaluation, classes: int | None) -> list[Counted]:
    """The statistics that metrics follow from, in the order of the metrics.

    Args:
        metrics: names, as the config has them.
        section: the bounds.
        classes: number of classes; None in regression.

    Raises:
        ConfigError: a metric follows from no bounded sum, lacks its bound, or a key of the section has no effect.
    """
    found: dict[str, Counted] = {}
    for metric in metrics:
        one = _counted(metric, metrics, section, classes)
        found.setdefault(one.name, one)
    for key, of in (("loss_bound", _BY_LOSS), ("error_bound", ("mae", "rmse")), ("bins", _BY_SCORE)):
        if getattr(section, key) is not None and not set(of) & set(metrics):
            raise ConfigError(f"evaluation.charged.{key}: is for {' and '.join(of)}, which evaluation.metrics does not name; take it out.")
    return list(found.values())


def _counted(metric: str, metrics: Sequence[str], section: ChargedEvaluation, classes: int | None) -> Counted:
    if metric in _BY_SCORE:
        return Scored(section.bins or _BINS)
    if metric == "calibration_error":
        return Calibrated()
    if metric == "token_accuracy":
        return ClippedMean(metric, 1.0)
    if metric in ("accuracy", *_BY_CLASS):
        if metric == "accuracy" and not set(_BY_CLASS) & set(metrics):
            return Right()
        return Confused(classes or 2)
    key = {**dict.fromkeys(_BY_LOSS, "loss_bound"), "mae": "error_bound", "rmse": "error_bound"}.get(metric)
    if key is None:
        allowed = ("accuracy", *_BY_CLASS, *_BY_SCORE, "calibration_error", *_BY_LOSS, "token_accuracy", "mae")
        raise ConfigError(
            f"evaluation.metrics: {metric} is no function of bounded sums over records, to which noise could be added; with evaluation.charged use "
            f"{', '.join(allowed)} or rmse, or let the driver evaluate {metric} on public records."
        )
    limit = getattr(section, key)
    if limit is None:
        raise ConfigError(
            f"evaluation.charged.{key}: is needed for {metric}, because noise is added by the most that one record can count; give a public bound, or "
            f"take {metric} out of evaluation.metrics."
        )
    return ClippedMean("loss" if metric in _BY_LOSS else metric, limit**2 if metric == "rmse" else limit)


def sums_over(counted: Sequence[Counted], model: nn.Module, x: Tensor, y: Tensor, loss: LossFn) -> dict[str, Integers]:
    """The sum of the records' contributions to each statistic, int64 ``[size]`` by its name, **without noise**.

    Each record is given to the model and to the loss alone. A contribution above the bound counts as nothing, whatever the code does.

    Args:
        counted: the statistics.
        model: in evaluation mode.
        x, y: records [n, ...] and their targets [n], on the CPU.
        loss: the run's.
    """
    totals = {one.name: np.zeros(one.size, dtype=np.int64) for one in counted}
    for start in range(0, len(x), _RECORDS):
        seen = _seen(model, x[start : start + _RECORDS], y[start : start + _RECORDS], loss)
        for one in counted:
            totals[one.name] += bounded_rows(one.contributions(seen), GRID**2).sum(axis=0)
    return totals


def _seen(model: nn.Module, x: Tensor, y: Tensor, loss: LossFn) -> Seen:
    outputs, losses, kept = list[Floats](), list[float](), list[int]()
    with torch.no_grad():
        for k, out in enumerate(outputs_alone(model, x)):
            row = out.double()[0]
            if torch.isfinite(row).all():
                kept.append(k)
                outputs.append(row.numpy() if row.ndim > 1 else row.reshape(-1).numpy())
                losses.append(float(loss(out, y[k : k + 1]).double().reshape(-1)[0]))
    made = np.stack(outputs) if outputs else np.zeros((0, *[1] * y.ndim))
    return Seen(made, y[kept].double().numpy(), np.array(losses, dtype=np.float64))


def figures_of(counted: Sequence[Counted], sums: Mapping[str, Sequence[int]], records: int, metrics: Sequence[str]) -> dict[str, float]:
    """The metrics from the noised sums over all records, in the order of the metrics.

    Args:
        counted: the statistics.
        sums: of each statistic by name, in grid units.
        records: public number of records.
        metrics: names.
    """
    found: dict[str, float] = {}
    for one in counted:
        found |= one.figures(np.array(sums[one.name], dtype=np.float64) / GRID, records)
    return {name: found[name] for name in metrics}


def spreads_of(counted: Sequence[Counted], variances: Mapping[str, float], records: int, metrics: Sequence[str]) -> dict[str, float]:
    """The standard deviation of the noise on each metric that is linear in its sum.

    Args:
        counted: the statistics.
        variances: of the noise on a value of each statistic's total, by name, in squared grid units.
        records: public number of records.
        metrics: names.
    """
    found: dict[str, float] = {}
    for one in counted:
        found |= one.spread(math.sqrt(variances[one.name]) / GRID, records)
    return {name: found[name] for name in metrics if name in found}


def _confidence(outputs: Sequence[float]) -> float:
    """The largest probability of a class, by a record's outputs alone."""
    if len(outputs) == 1:
        return 1.0 / (1.0 + math.exp(-abs(outputs[0])))
    largest = max(outputs)
    return 1.0 / math.fsum(math.exp(output - largest) for output in outputs)


def _part(value: float) -> float:
    return min(1.0, max(0.0, value))
