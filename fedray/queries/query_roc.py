"""The statistic ``roc``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fedray.errors import ConfigError
from fedray.queries.statistic import (
    GRID,
    Floats,
    Integers,
    NoisedSums,
    PublicFacts,
    RecordBatch,
    Statistic,
    bin_of,
    edges_of,
    interval,
    one_hot,
    rows,
)
from fedray.queries.verdicts import classes_of, probabilities_of


@dataclass(frozen=True)
class RocQuery(Statistic):
    """ROC curve of a model of two classes, and the area under it.

    The model is that of the run in `judged`. Its probabilities of the second class are counted in bins of equal width, for both classes
    apart; a record counts in one. Equal bins count one half in the area. The area's interval is of first order in the noise. By default
    of the held-out records.

    Args:
        bins: number of bins, and thresholds between them.

    Source: Hanley and McNeil 1982, The Meaning and Use of the Area under a ROC Curve
    """

    bins: int = 20
    records: ClassVar[Literal["train", "held_out"]] = "held_out"
    judges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.bins <= 1000:
            raise ConfigError(f"bins: should be between 2 and 1000, but is {self.bins}.")

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        if classes_of(classes, "roc") != 2:
            raise ConfigError(f"roc: is for two classes, but there are {classes}; ask for a confusion_matrix.")
        return 2 * self.bins

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        scores = bin_of(probabilities_of(batch, where)[:, 1], 0.0, 1.0, self.bins)
        return one_hot(scores + self.bins * batch.y.astype(np.int64), 2 * self.bins)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        no, yes = np.maximum(noised.values, 0.0).reshape(2, self.bins)
        area, margin = _area(no, yes, noised.margin())
        return {
            "thresholds": rows(edges_of(0.0, 1.0, self.bins)),
            "true_positive_rate": rows(_above(yes)),
            "false_positive_rate": rows(_above(no)),
            "auc": area,
            "auc_interval": interval(area, margin, 0.0, 1.0) if math.isfinite(area) else [0.0, 1.0],
        }


def _above(counts: Floats) -> Floats:
    """Part of the counts at or above each edge, float64 ``[bins + 1]``; NaN if there are none."""
    total = counts.sum()
    above = np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])
    return above / total if total > 0 else np.full(len(above), math.nan)


def _area(no: Floats, yes: Floats, margin: float) -> tuple[float, float]:
    """The area under the curve, and the half width of its interval for this margin of each count, to first order."""
    negatives, positives = float(no.sum()), float(yes.sum())
    if not (negatives > 0 and positives > 0):
        return math.nan, 0.0
    lower = np.cumsum(no) - no / 2  # negatives below each bin, half of its own
    upper = np.cumsum(yes[::-1])[::-1] - yes / 2
    area = float(yes @ lower) / (negatives * positives)
    by_yes = lower / (negatives * positives) - area / positives
    by_no = upper / (negatives * positives) - area / negatives
    return area, margin * math.sqrt(float(by_yes @ by_yes + by_no @ by_no))


QUERIES = {"roc": RocQuery}
