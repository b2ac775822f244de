"""Whose each record is: numbers for a column of persons, and the ways in which a person's records stay together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.data.labels import missing_values, plain_array
from fedray.data.records import Indices, Targets
from fedray.data.rows import key
from fedray.errors import DataError


def person_codes(values: npt.ArrayLike, test_values: npt.ArrayLike | None, records: int, where: str) -> Indices:
    """Number the persons of a source.

    Values that differ only in spaces around them, or in how a number is written (7, 7.0 and "07"), are one person: to take two persons for
    one costs data, to take one for two would cost privacy.

    Args:
        values: whose each training record is.
        test_values: whose each test record is; None if there is no test set, or if it does not say so.
        records: number of training records.
        where: the source, for messages.

    Returns:
        int64 ``[records]``.

    Raises:
        DataError: not one value per record, a missing value, or a person with training and test records.
    """
    keys = _keys(values, where)
    if len(keys) != records:
        raise DataError(f"{where}: {len(keys)} persons are given for {records} records; there must be one each (data.person).")
    if test_values is not None:
        both = len(set(keys) & set(_keys(test_values, f"{where} (test set)")))
        if both:
            raise DataError(
                f"{where}: {both} persons (data.person) have records both for training and in the test set, so figures on the test set would "
                "be of persons that the model has seen, and released without protection; leave these persons out of one of the two."
            )
    number = {one: n for n, one in enumerate(dict.fromkeys(keys))}
    return np.array([number[one] for one in keys], dtype=np.int64)


def _keys(values: npt.ArrayLike, where: str) -> list[str]:
    array = plain_array(values, "persons", where)
    if array.ndim != 1:
        raise DataError(f"{where}: the person of each record should be one value a record, but has shape {array.shape} (data.person).")
    missing = missing_values(array)
    if missing.any():
        raise DataError(
            f"{where}: {int(missing.sum())} records do not say whose they are (data.person), the first is record "
            f"{int(missing.argmax()) + 1}; remove them, or give each a person of its own."
        )
    if array.dtype.kind == "f" and (np.abs(array) >= 2**53).any():
        raise DataError(f"{where}: persons are numbers of more than 15 digits, kept as floats, of which several are one; make them text.")
    found, codes = np.unique(array.astype(str) if array.dtype.kind in "OUST" else array, return_inverse=True)
    names = [str(key(value.strip() if isinstance(value, str) else value)).removesuffix(".0") for value in found.tolist()]
    return [names[code] for code in codes]


def units(persons: Indices, labels: Targets) -> tuple[list[Indices], Indices, Targets]:
    """The persons of some records as units that are dealt or held out whole.

    Args:
        persons: whose each record is, int64 ``[n]``.
        labels: of the records, ``[n, ...]``.

    Returns:
        The rows of each person in increasing order; each person's first row, int64 ``[persons]``; and each person's label, the most
        frequent one of classes and otherwise that of the first row.
    """
    _, owners, counts = np.unique(persons, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(owners, kind="stable"), np.cumsum(counts)[:-1])
    first = np.array([own[0] for own in rows], dtype=np.int64)
    chosen = labels[first].copy()
    if labels.ndim == 1 and labels.dtype.kind == "i":
        for k, own in enumerate(rows):
            values, times = np.unique(labels[own], return_counts=True)
            chosen[k] = values[np.argmax(times)]
    return rows, first, chosen


def expanded(rows: Sequence[Indices], chosen: Any) -> Indices:
    """The rows of the chosen persons, sorted."""
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *(rows[k] for k in chosen)]))
