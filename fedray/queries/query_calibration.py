"""The statistic ``calibration``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fedray.errors import ConfigError
from fedray.queries.statistic import (
    GRID,
    Integers,
    NoisedSums,
    PublicFacts,
    RecordBatch,
    Statistic,
    bin_of,
    edges_of,
    interval,
    on_grid,
    rows,
)
from fedray.queries.verdicts import predicted, probabilities_of


@dataclass(frozen=True)
class CalibrationQuery(Statistic):
    """How far a model's confidence is from how often it is right, and the expected calibration error.

    The model is that of the run in `judged`. A record counts in the bin of its most probable class's probability: 1, whether the class is
    right, and that probability. Noise raises the error, which is a sum of absolute values. By default of the held-out records.

    Args:
        bins: number of bins of equal width between 0 and 1.

    Source: Guo, Pleiss, Sun & Weinberger 2017, On Calibration of Modern Neural Networks, equation 3
    """

    bins: int = 10
    records: ClassVar[Literal["train", "held_out"]] = "held_out"
    judges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= 1000:
            raise ConfigError(f"bins: should be between 1 and 1000, but is {self.bins}.")

    def size(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return 3 * self.bins

    def squared_sensitivity(self, classes: int | None) -> int:
        """See :class:`Statistic`."""
        return 3 * GRID**2

    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """See :class:`Statistic`."""
        found = probabilities_of(batch, where)
        confidence, right = found.max(axis=1), predicted(found) == batch.y
        made, at = np.zeros((len(found), 3, self.bins), dtype=np.int64), np.arange(len(found))
        made[at, :, bin_of(confidence, 0.0, 1.0, self.bins)] = np.stack(
            [np.full(len(found), GRID), GRID * right.astype(np.int64), on_grid(confidence)], axis=1
        )
        return made.reshape(len(found), 3 * self.bins)

    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """See :class:`Statistic`."""
        counts, right, confidence = noised.values.reshape(3, self.bins)
        margin = noised.margin()
        whole = np.where(counts > 0, counts, math.nan)
        gaps = np.abs(right - confidence)
        error = float(gaps.sum()) / noised.records
        wide = noised.margin(self.bins) * math.sqrt(2.0) * self.bins / noised.records  # a gap is of two noised values
        return {
            "edges": rows(edges_of(0.0, 1.0, self.bins)),
            "counts": rows(counts),
            "count_margin": margin,
            "accuracy": [_part(v) for v in right / whole],
            "confidence": [_part(v) for v in confidence / whole],
            "expected_calibration_error": error,
            "expected_calibration_error_interval": interval(error, wide, 0.0, 1.0),
        }


def _part(value: float) -> float | None:
    """A part between 0 and 1; None where the noised count is not positive."""
    return None if math.isnan(value) else min(1.0, max(0.0, float(value)))


QUERIES = {"calibration": CalibrationQuery}
