"""Converts a source's labels to classes.

A label is the source's own value (``"ill"``, ``20``, ``True``); a class is its number 0..C-1, which is the index of the model's output. The
number and the order of the classes are either declared (by the config, or as a public fact of the source) or found, in which case the
labels that occur are numbered in sorted order. The label of each class is kept in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.data.records import Federation, Label, Targets
from fedray.data.rows import key as label_key
from fedray.errors import DataError

#: Texts of missing labels.
_MISSING_TEXT = frozenset(
    ("", "nan", "-nan", "NaN", "NAN", "-NaN", "None", "NaT", "<NA>", "NA", "N/A", "n/a", "#N/A", "#NA", "null", "NULL", "Null")
)
_KINDS = ((bool | np.bool_, np.bool_), (Integral, np.int64), (Real, np.float64), (str, np.str_))


@dataclass(frozen=True, eq=False)
class Classified:
    """Labels as classes.

    Attributes:
        targets: one array for each given array, ``[n]`` int64 classes, or float32 in regression; ``[n, ...]`` if a record has several
            targets.
        classes: number C of classes; None in regression.
        class_labels: the label of each class, in class order; empty in regression.
        declared: whether the classes were declared, and not found in the records.
    """

    targets: list[Targets]
    classes: int | None
    class_labels: Sequence[Label]
    declared: bool


def plain_array(values: npt.ArrayLike, what: str, where: str) -> npt.NDArray[Any]:
    """Convert ``values`` to an array.

    Args:
        values: any array-like values.
        what: what they are, for messages.
        where: the source, for messages.

    Raises:
        DataError: rows of different shapes, or masked entries, which an array would show as known values.
    """
    if isinstance(values, np.ma.MaskedArray):
        masked = np.asarray(np.ma.getmaskarray(values), dtype=np.bool_)
        if masked.any():
            rows: npt.NDArray[np.bool_] = np.atleast_1d(masked.any(axis=tuple(range(1, masked.ndim))))
            raise DataError(
                f"{where}: the {what} of {int(rows.sum())} of {len(rows)} records are masked, the first in record {int(rows.argmax()) + 1}; "
                "remove those records or fill them in."
            )
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: the {what} are not one array ({error}); all records need the same shape.") from None


def label_array(values: npt.ArrayLike, where: str, known: Sequence[Label] | None = None) -> npt.NDArray[Any]:
    """Convert a source's labels to booleans, integers, floats or text ``[n]`` without missing values; several
    numbers per record as ``[n, ...]``.

    Args:
        values: ``[n]`` or ``[n, 1]``; numbers ``[n, ...]`` where a record has several targets.
        where: the source, for messages.
        known: the declared labels; a text among them is a label even if it looks like a missing one.

    Raises:
        DataError: missing or masked labels, labels of several types, or of another type.
    """
    array = plain_array(values, "labels", where)
    if array.dtype.kind == "U" and isinstance(values, list | tuple):  # NumPy converts all values to text if one is text
        array = np.asarray(values, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 0 or 0 in array.shape[1:]:
        raise DataError(f"{where}: labels have shape {array.shape}; expected one label for each record, [records].")
    if array.ndim > 1 and array.dtype.kind not in "biuf":
        raise DataError(f"{where}: several labels a record are of type {array.dtype}; expected numbers, [records, ...].")
    if array.dtype.kind in "OTU":
        array = _from_objects(array.astype(object), where, known or ())
    if array.dtype.kind not in "biufU":
        raise DataError(f"{where}: labels are of type {array.dtype}; expected integers, text, or floats (regression).")
    if array.dtype.kind == "f":
        others = tuple(range(1, array.ndim))
        _refuse_missing(np.isnan(array).any(axis=others), where)
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32)).all(axis=others)
        if not finite.all():
            raise DataError(f"{where}: the label of record {int(finite.argmin()) + 1} is not a finite number of float32; clean the data.")
    return array


def missing_values(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which entries are None, NaN, NaT, NA or blank text."""
    if array.dtype.kind in "biu":
        return np.zeros(array.shape, dtype=np.bool_)
    import pandas as pd

    missing = np.asarray(pd.isna(array), dtype=np.bool_)
    if array.dtype.kind in "OTU":
        missing |= np.array([isinstance(value, str) and not value.strip() for value in array.ravel()], dtype=np.bool_).reshape(array.shape)
    return missing


def _from_objects(array: npt.NDArray[Any], where: str, known: Sequence[Label]) -> npt.NDArray[Any]:
    named = {str(value) for value in known}
    text = [isinstance(value, str) and value.strip() in _MISSING_TEXT and value not in named for value in array]
    blank = np.array([isinstance(value, str) for value in array], dtype=np.bool_)
    _refuse_missing((missing_values(array) & ~blank) | np.array(text, dtype=np.bool_), where)
    types = {type(value) for value in array}
    for allowed, dtype in _KINDS:
        if all(issubclass(kind, allowed) for kind in types):
            try:
                return array.astype(dtype)
            except OverflowError:
                raise DataError(f"{where}: a label is beyond 64-bit integers; give such labels as text.") from None
    listed = ", ".join(sorted(kind.__name__ for kind in types))
    raise DataError(f"{where}: labels are of type {listed}; they should all be integers, all text, or all floats (regression).")


def _refuse_missing(missing: npt.NDArray[np.bool_], where: str) -> None:
    if missing.any():
        raise DataError(
            f"{where}: {int(missing.sum())} of {len(missing)} labels are missing (None, NaN, NaT, NA or empty), the first is that of record "
            f"{int(missing.argmax()) + 1}; remove those records (of a CSV file, list the cell in data.missing), or name it in data.labels if it is a label."
        )


def number_classes(
    arrays: list[npt.NDArray[Any]],
    where: str,
    classes: int | None = None,
    labels: Sequence[Label] | None = None,
    class_labels: Sequence[Label] | None = None,
) -> Classified:
    """Number labels as classes; see the module's text.

    Args:
        arrays: results of :func:`label_array`, such as those of a training and a test set.
        where: the source, for messages.
        classes: number of classes, if labels are the integers 0..classes-1.
        labels: all labels in class order, in place of ``classes``.
        class_labels: with ``classes``, the meaning of each class.

    Raises:
        DataError: labels that were not declared, labels of several types, or only one class.
    """
    if classes is not None and labels is not None:
        raise DataError("data.labels: contradicts data.classes; each says how labels are read, keep one.")
    if classes is not None and classes < 2:
        raise DataError(f"data.classes: {classes} is below 2.")
    if (
        labels is None
        and len({{"U": "text", "f": "floats" if classes is None else "integers"}.get(y.dtype.kind, "integers") for y in arrays}) > 1
    ):
        kinds = ", ".join(sorted({str(y.dtype) for y in arrays}))
        raise DataError(f"{where}: labels are of different types in different parts ({kinds}); make them one.")
    if any(y.ndim > 1 for y in arrays):
        return _several(arrays, where, classes, labels, class_labels)
    if labels is not None:
        return Classified([_positions(y, labels, where) for y in arrays], len(labels), tuple(labels), True)
    if any(y.dtype.kind == "f" for y in arrays):
        if classes is None:
            return Classified([y.astype(np.float32) for y in arrays], None, (), True)
        if not all((y == np.floor(y)).all() for y in arrays):
            raise DataError(f"{where}: data.classes={classes} is given, but the labels are not whole numbers.")
        arrays = [y.astype(np.int64) for y in arrays]
    if classes is not None:
        for y in arrays:
            if y.dtype.kind == "U" or (len(y) and (y.min() < 0 or y.max() >= classes)):
                odd = y[0] if y.dtype.kind == "U" else y[(y < 0) | (y >= classes)][0]
                raise DataError(
                    f"{where}: found the label '{odd}', but data.classes={classes} asks for integers 0 to {classes - 1}; "
                    "list other labels in class order in data.labels instead."
                )
        return Classified([y.astype(np.int64) for y in arrays], classes, class_labels or range(classes), True)
    if all(y.dtype.kind == "b" for y in arrays):  # booleans have two known values
        return Classified([y.astype(np.int64) for y in arrays], 2, (False, True), True)
    found = np.unique(np.concatenate([np.unique(y) for y in arrays]))
    if len(found) == 1:
        raise DataError(
            f"{where}: every label is '{found[0]}', and one class alone cannot be learned; "
            "declare those there may be with data.classes or data.labels."
        )
    if found.dtype.kind == "U":
        _refuse_lookalikes(found.tolist(), where)
    if found.dtype.kind != "U" and found[0] == 0 and found[-1] == len(found) - 1:
        return Classified([y.astype(np.int64) for y in arrays], len(found), range(len(found)), False)
    return Classified([np.searchsorted(found, y).astype(np.int64) for y in arrays], len(found), tuple(found.tolist()), False)


def _several(
    arrays: list[npt.NDArray[Any]], where: str, classes: int | None, labels: Sequence[Label] | None, class_labels: Sequence[Label] | None
) -> Classified:
    """Several targets a record: numbers as they are, or with ``classes`` a class each."""
    if len({y.shape[1:] for y in arrays}) > 1:
        shapes = " and ".join(str(shape) for shape in sorted({y.shape[1:] for y in arrays}))
        raise DataError(f"{where}: the targets of a record have shape {shapes} in different parts; they must agree.")
    if labels is not None:
        raise DataError("data.labels: is for one label a record, but each record has several; leave it out.")
    if classes is None:
        return Classified([y.astype(np.float32) for y in arrays], None, (), True)
    shape = arrays[0].shape[1:]
    flat = number_classes([y.reshape(-1) for y in arrays], where, classes, None, class_labels)
    return Classified([y.reshape(-1, *shape) for y in flat.targets], classes, flat.class_labels, True)


def _refuse_lookalikes(found: Sequence[str], where: str) -> None:
    """Refuse two labels that differ only in spaces, which are most likely one label."""
    seen: dict[str, str] = {}
    for label in found:
        other = seen.setdefault(" ".join(label.split()), label)
        if other != label:
            raise DataError(f"{where}: the labels {other!r} and {label!r} differ in spaces only; make them one.")


def _positions(y: npt.NDArray[Any], labels: Sequence[Label], where: str) -> npt.NDArray[np.int64]:
    """Return the position of each label in ``labels``."""
    if len({label_key(v) for v in labels}) < max(2, len(labels)):
        raise DataError("data.labels: should list two or more different values, in class order.")
    found, codes = np.unique(y, return_inverse=True)
    return positions_in(
        labels,
        found.tolist(),
        codes,
        lambda value, record, listed: f"{where}: record {record} has the label '{value}', but data.labels lists only {listed}.",
    )


def positions_in(
    allowed: Sequence[Label], found: Sequence[Any], codes: npt.NDArray[np.int64], sentence: Callable[[Any, int, str], str]
) -> npt.NDArray[np.int64]:
    """Return the position of each record's value among the allowed values, int64 ``[n]``.

    Args:
        allowed: the allowed values, compared by :func:`fedray.data.rows.key`.
        found: the different values that occur.
        codes: position of each record's value in ``found``, ``[n]``.
        sentence: words the error from a value that is not allowed, its first record (from 1) and the list of allowed values.

    Raises:
        DataError: a value is not allowed.
    """
    position = {label_key(value): i for i, value in enumerate(allowed)}
    for i, value in enumerate(found):
        if label_key(value) not in position:
            raise DataError(sentence(value, int(np.argmax(codes == i)) + 1, ", ".join(map(str, allowed))))
    positions: npt.NDArray[np.int64] = np.array([position[label_key(value)] for value in found], dtype=np.int64)[codes]
    return positions


def said_of_labels(federation: Federation) -> list[str]:
    """Return a warning if labels were numbered without being declared and are not 0..C-1 already."""
    labels = list(federation.class_labels)
    if federation.declared or labels == list(range(len(labels))):
        return []
    shown = ", ".join(f"{label!r} is class {k}" for k, label in list(enumerate(labels))[:6])
    return [
        f"data: the labels are numbered in sorted order: {shown}{', ...' if len(labels) > 6 else ''} (class_labels in partition.json); "
        "declare data.classes to keep integers as they are, or data.labels for an order of your own."
    ]


def said_of_one_class(counts: npt.NDArray[np.int64] | None, class_labels: Sequence[Label]) -> list[str]:
    """Return a warning if all records have the same label and the counts may be shown."""
    found = [] if counts is None else np.flatnonzero(counts.sum(axis=0)).tolist()
    if len(found) != 1:
        return []
    return [f"data: every training record has the label {class_labels[found[0]]!r}, so there is nothing to tell apart; check the label."]
