"""What every statistic is made of: bounded integers of each record, and answers from noised sums of them.

How numbers become integers is in :mod:`fedray.privacy.integersums`. A number that is not finite contributes nothing, as if it were the middle
of its bounds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedray.components import nearest
from fedray.errors import ConfigError, DataError
from fedray.privacy.integersums import GRID, Floats, Integers, bin_of, edges_of, on_grid, one_hot, scaled

__all__ = ["GRID", "Floats", "Integers", "bin_of", "edges_of", "on_grid", "one_hot", "scaled"]  # for statistics, a user's own too

Bounds = Mapping[str, tuple[float, float]]

#: Name by which a statistic asks for the record's target.
LABEL = "label"


@dataclass(frozen=True)
class PublicFacts:
    """What is public about the records.

    Attributes:
        columns: names of a record's features; their positions as texts where they have no names.
        classes: number of classes; None in regression.
        labels: the source's own label of each class, as texts.
    """

    columns: tuple[str, ...]
    classes: int | None
    labels: tuple[str, ...] = ()

    def position(self, column: str, where: str) -> int:
        """Position of a feature; raises DataError if there is none of that name."""
        if column not in self.columns:
            raise DataError(
                f"{where}: the records have no column '{column}', only {', '.join(self.columns[:30])}.{nearest(column, self.columns)}"
            )
        return self.columns.index(column)


@dataclass(frozen=True)
class RecordBatch:
    """Some records of one client.

    Attributes:
        x: features, float64 ``[n, columns]``.
        y: targets, float64 ``[n]``.
        probabilities: the judged model's probability of each class, float64 ``[n, classes]``; None if no model is judged.
    """

    x: Floats
    y: Floats
    probabilities: Floats | None = None


@dataclass(frozen=True)
class NoisedSums:
    """A statistic's sums over all records of some clients, with their noise.

    Attributes:
        values: float64 ``[size]``, in units of 1.
        std: standard deviation of the noise on each value; 0 if there is none.
        records: public number of records.
        confidence: probability with which the true values lie in the intervals of an answer.
    """

    values: Floats
    std: float
    records: int
    confidence: float = 0.95

    def margin(self, intervals: int = 1) -> float:
        """Half width of the interval of one value of which ``intervals`` must hold at once, each with the same probability."""
        from scipy.stats import norm

        return float(self.std * norm.isf((1.0 - self.confidence) / (2 * intervals))) if self.std else 0.0


class Statistic(ABC):
    """A kind of statistic with its arguments. A subclass is a frozen dataclass of the arguments, which checks them when it is made.

    Attributes:
        records: the part of a client's records that it is of by default.
        judges: whether it needs a model's outputs.
    """

    records: ClassVar[Literal["train", "held_out"]] = "train"
    judges: ClassVar[bool] = False

    @abstractmethod
    def size(self, classes: int | None) -> int:
        """Number of values of the sum."""

    @abstractmethod
    def squared_sensitivity(self, classes: int | None) -> int:
        """Largest squared L2 norm of one record's contribution, in grid units: a bound that holds for every record that there could be."""

    @abstractmethod
    def contributions(self, facts: PublicFacts, batch: RecordBatch, where: str) -> Integers:
        """Each record's contribution, int64 ``[n, size]``; a function of that record alone."""

    @abstractmethod
    def answer(self, facts: PublicFacts, noised: NoisedSums) -> dict[str, Any]:
        """The answer as JSON data: values, each with an interval; a function of the noised sums and public facts alone."""


def checked_bounds(bounds: Bounds, where: str = "bounds") -> None:
    """Refuse bounds of columns that are not two finite numbers in ascending order.

    Raises:
        ConfigError: names the column.
    """
    if not bounds:
        raise ConfigError(f"{where}: should name a column with its bounds, such as {{age: [0, 100]}}.")
    for column, (low, high) in bounds.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"{where}: of '{column}' should be two finite numbers in ascending order, but are [{low:g}, {high:g}].")


def column_of(facts: PublicFacts, batch: RecordBatch, column: str, where: str) -> Floats:
    """A column's values, float64 ``[n]``; the targets for the name ``label``."""
    if column != LABEL:
        return batch.x[:, facts.position(column, where)]
    if LABEL in facts.columns:
        raise DataError(f"{where}: 'label' is the name of a column and stands for the target too; rename the column.")
    return batch.y


def interval(value: float, margin: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """The interval around a value, cut to what the quantity can be."""
    return [min(high, max(low, value - margin)), max(low, min(high, value + margin))]


def rows(values: Sequence[float] | Floats) -> list[float]:
    """Numbers as JSON data."""
    return [float(v) for v in values]
