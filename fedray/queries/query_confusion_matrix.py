"""The statistic ``confusion_matrix``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fedray.queries.statistic import GRID, Integers, NoisedSums, PublicFacts, RecordBatch, Statistic, interval, one_hot
from fedray.queries.verdicts import classes_of, predicted, probabilities_of


@dataclass(frozen=True)
class ConfusionMatrixQuery(Statistic):
    """Number of records of each class that a model takes for each class, and its accuracy.

    The model is that of the run in `judged`. A record counts in one cell. By default of the held-out records.
    """

    records: ClassVar[Literal["train", "held_out"]] = "held_out"
    judges: ClassVar[bool] = True

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return classes_of(classes, "confusion_matrix") ** 2

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        classes = classes_of(facts.classes, "confusion_matrix")
        cell = batch.y.astype(np.int64) * classes + predicted(probabilities_of(batch, where))
        return one_hot(cell, classes**2)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        classes = classes_of(facts.classes, "confusion_matrix")
        matrix, margin = noised.values.reshape(classes, classes), noised.margin()
        right, wide = float(np.trace(matrix)) / noised.records, margin * np.sqrt(classes) / noised.records
        return {
            "labels": list(facts.labels),
            "counts": matrix.tolist(),
            "margin": margin,
            "meaning": "counts[i][j]: records of class i that are taken for class j; each count's interval is the count less and plus the margin",
            "accuracy": right,
            "accuracy_interval": interval(right, float(wide), 0.0, 1.0),
        }


QUERIES = {"confusion_matrix": ConfusionMatrixQuery}
