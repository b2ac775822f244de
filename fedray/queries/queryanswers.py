"""The answers of a query, from the noised sums of its clients; nothing here sees a record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.errors import ConfigError
from fedray.queries.preparedquery import PreparedQuery, nothing_held_out
from fedray.queries.queryhost import ClientAnswer
from fedray.queries.statistic import GRID, NoisedSums, PublicFacts

#: Clients up to which each client's own answers are given too.
_LISTED = 20
CONFIDENCE = 0.95


def answers_of(prepared: PreparedQuery, given: Sequence[ClientAnswer]) -> dict[str, Any]:
    """All answers as JSON data: ``answers`` over all clients, and ``by_client`` where they are few.

    The answers of single clients follow from what the clients sent, which is noised already, and cost nothing more.

    Raises:
        ConfigError: the clients' records have different columns, or a statistic is of no record.
    """
    columns = given[0].columns
    odd = next((one for one in given if one.columns != columns), None)
    if odd is not None:
        raise ConfigError(f"data: clients '{given[0].client}' and '{odd.client}' have different columns; name them with data.features.")
    return {
        "confidence": CONFIDENCE,
        "intervals": "each interval holds the answer without noise with this probability; what other records would have given is not in it",
        "columns": list(columns),
        "labels": [str(label) for label in prepared.labels],
        "answers": _answers(prepared, given, columns),
        "by_client": {one.client: _answers(prepared, [one], columns, empty=True) for one in given} if 1 < len(given) <= _LISTED else {},
    }


def _answers(prepared: PreparedQuery, given: Sequence[ClientAnswer], columns: tuple[str, ...], empty: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    bounds = {} if prepared.plan is None else {one.name: one for one in prepared.plan.sums}
    classes = len(prepared.labels) or None
    facts = PublicFacts(columns, classes, tuple(map(str, prepared.labels)))
    for one in prepared.asked:
        records = sum(each.records[one.part] for each in given)
        if not records:
            if empty:
                continue
            raise nothing_held_out()
        total = np.array([sum(values) for values in zip(*(each.sums[one.name] for each in given), strict=True)], dtype=np.float64)
        bound = bounds.get(one.name)
        std = 0.0 if bound is None else math.sqrt(bound.variance * len(given)) / GRID
        answer = one.statistic.answer(facts, NoisedSums(total / GRID, std, records, CONFIDENCE))
        found[one.name] = {"kind": one.kind, "of": one.part, "records": records, "noise_std": std, **finite(answer)}
    return found


def finite(value: Any) -> Any:
    """JSON data in which null stands for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
