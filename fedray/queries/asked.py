"""What a query asks for, and what a client gives: the sums of its records' contributions with noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from fedray import components
from fedray.data.records import ClientData, Records
from fedray.errors import ConfigError, DataError, FedrayError
from fedray.privacy.integersums import bounded_rows
from fedray.privacy.queryplan import NoisedSum
from fedray.queries.statistic import Integers, PublicFacts, RecordBatch, Statistic
from fedray.queries.verdicts import probabilities
from fedray.queryconfig import QueryConfig

Part = Literal["train", "held_out"]

_CELLS = 1 << 22  # of the contributions that are in memory at once


@dataclass(frozen=True)
class Asked:
    """One statistic of a query.

    Attributes:
        name: in the config.
        kind: of statistic.
        statistic: with its arguments.
        weight: share of the budget.
        part: of a client's records.
    """

    name: str
    kind: str
    statistic: Statistic
    weight: float
    part: Part

    @property
    def where(self) -> str:
        """Beginning of errors about it."""
        return f"queries.{self.name}"


def asked_of(config: QueryConfig) -> list[Asked]:
    """The statistics of a config, in its order.

    Raises:
        ConfigError: a kind is not known, or an argument is wrong.
    """
    found = []
    for name, choice in config.queries.items():
        part = components.find_callable(components.QUERIES, choice.kind)
        path = f"queries.{name}"
        arguments = components.check_arguments(part, choice.arguments, path)
        try:
            made = part(**arguments)
        except FedrayError as error:
            raise ConfigError(f"{path}.{error}") from None
        if not isinstance(made, Statistic):
            raise ConfigError(f"{path}.kind: '{choice.kind}' is no subclass of fedray.queries.statistic.Statistic; name one.")
        if made.judges and config.judged is None:
            raise ConfigError(f"{path}.kind: {choice.kind} judges a model; set judged=RUN_DIR to a finished run.")
        found.append(Asked(name, choice.kind, made, choice.weight, choice.records or made.records))
    if config.judged is not None and not any(one.statistic.judges for one in found):
        raise ConfigError("judged: no statistic of this config judges a model, so it would do nothing; take it out.")
    return found


def bounds_of(asked: Sequence[Asked], classes: int | None) -> list[tuple[str, int, int, float]]:
    """Of each statistic its name, number of values, squared sensitivity in grid units and weight; see :class:`fedray.privacy.queryplan.QueryPlan`.

    Raises:
        ConfigError: a statistic does not go with the targets.
    """
    found = []
    for one in asked:
        try:
            size, squared = one.statistic.size(classes), one.statistic.squared_sensitivity(classes)
        except ConfigError as error:
            raise ConfigError(f"{one.where}.{error}") from None
        if size < 1 or squared < 1:
            raise ConfigError(f"{one.where}: has {size} values and the squared sensitivity {squared}; both should be at least 1.")
        found.append((one.name, size, squared, one.weight))
    return found


def facts_of(data: ClientData, labels: Sequence[object]) -> PublicFacts:
    """What is public about a client's records.

    Raises:
        DataError: the records are not flat, or have several targets.
    """
    if data.train.x.ndim != 2 or data.inputs:
        raise DataError(
            "queries: are of flat records (columns of numbers), but these have other shapes; judge a model without columns instead."
        )
    if data.train.y.ndim != 1:
        raise DataError("queries: are of records with one target each, but these have several.")
    columns = data.columns or tuple(map(str, range(data.train.x.shape[1])))
    return PublicFacts(columns, data.classes, tuple(map(str, labels)))


def judged_facts_of(data: ClientData, labels: Sequence[object]) -> PublicFacts:
    """:func:`facts_of` for statistics of a model's outputs alone, whose records may have any shape."""
    if data.train.y.ndim != 1:
        raise DataError("queries: are of records with one target each, but these have several.")
    return PublicFacts((), data.classes, tuple(map(str, labels)))


def records_of(data: ClientData, part: Part) -> Records:
    """One part of a client's records, which may be empty."""
    if part == "train":
        return data.train
    return data.train.slice(0, 0) if data.test is None else data.test


def summed(one: Asked, facts: PublicFacts, records: Records, bound: NoisedSum | None, model: nn.Module | None) -> Integers:
    """The sum of the records' contributions to a statistic, int64 ``[size]``.

    A contribution above the bound counts as nothing, whatever the statistic's code does.

    Args:
        one: the statistic.
        facts: of the records.
        records: of one client.
        bound: the public constants; None if nothing is protected.
        model: the judged model; needed if the statistic judges one.

    Raises:
        ConfigError: contributions have another form than ``[n, size]`` integers.
    """
    size = one.statistic.size(facts.classes)
    total, step = np.zeros(size, dtype=np.int64), max(1, _CELLS // (size + 1))
    for start in range(0, len(records), step):
        block = records.slice(start, min(len(records), start + step))
        flat = block.x.reshape(len(block), -1) if facts.columns else np.zeros((len(block), 0))
        judged = probabilities(model, torch.from_numpy(np.array(block.x))) if model is not None and one.statistic.judges else None
        batch = RecordBatch(flat.astype(np.float64), block.y.astype(np.float64), judged)
        rows = one.statistic.contributions(facts, batch, one.where)
        if rows.shape != (len(block), size) or rows.dtype != np.int64:
            raise ConfigError(f"{one.where}: contributions are {rows.dtype} {list(rows.shape)}; should be int64 {[len(block), size]}.")
        total += (rows if bound is None else bounded_rows(rows, bound.squared_sensitivity)).sum(axis=0)
    return total
