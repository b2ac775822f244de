"""Converts tables (CSV, Parquet, Hugging Face) to features and labels.

Only the config decides how a column is converted, never the data, so that all silos, each of which reads only its own file, get the same
features in the same order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedray.components import nearest
from fedray.data.labels import positions_in
from fedray.data.records import Label
from fedray.data.rows import key as label_key
from fedray.data.source import Raw, build
from fedray.errors import DataError

Cell = str | int | float
MissingRows = Literal["drop", "refuse"]
_EXACT = 2**53  # beyond it a float is no longer one whole number
#: Names that pandas and Arrow give to a column without a name, which most often holds row numbers.
_NAMELESS = re.compile(r"\s*|Unnamed: \d+(\.\d+)*|__index_level_\d+__")


@dataclass(frozen=True)
class Table:
    """How a table is read; the attributes are the arguments of :func:`fedray.data.source_csv.csv`."""

    label: str | Sequence[str]
    label_threshold: float | None = None
    labels: Sequence[Cell] | None = None
    classes: int | None = None
    regression: bool = False
    features: Sequence[str] | None = None
    drop: Sequence[str] = ()
    missing_rows: MissingRows = "refuse"
    categories: Mapping[str, Sequence[Cell]] | None = None
    drop_first: bool = False
    silo: str | None = None
    person: str | None = None
    names: Sequence[str] | None = None  # meanings of the classes, if the source knows them

    def __post_init__(self) -> None:
        ways = {
            "label_threshold": self.label_threshold is not None,
            "labels": self.labels is not None,
            "classes": self.classes is not None,
            "regression": self.regression,
        }
        given = [name for name, is_given in ways.items() if is_given]
        if not isinstance(self.label, str) and given:
            raise DataError(
                f"data.{given[0]}: is for one label, but data.label names several columns, whose numbers are taken as they are."
            )
        if not isinstance(self.label, str) and len(set(self.label)) < max(2, len(self.label)):
            raise DataError("data.label: a list should name two or more columns, each once; give a single one as text.")
        if len(given) > 1:
            raise DataError(f"data.{given[1]}: contradicts data.{given[0]}; each says how labels are read, keep one.")
        if self.labels is not None and len({label_key(v) for v in self.labels}) < max(2, len(self.labels)):
            raise DataError("data.labels: should list two or more different values, in class order.")
        for column, allowed in (self.categories or {}).items():
            if len({label_key(v) for v in allowed}) < max(2 if self.drop_first else 1, len(allowed)):
                raise DataError(f"data.categories.{column}: should list different values, two or more with drop_first.")
        if self.features is not None and (len(set(self.features)) < len(self.features) or not self.features):
            raise DataError("data.features: should name each column once, and at least one.")
        taken = {*self.label_columns, self.silo, self.person} & set(self.features or ())
        if taken:
            raise DataError(f"data.features: '{taken.pop()}' is the label, the silo or the person column, not a feature.")
        if self.person is not None and self.person in (*self.label_columns, *self.drop):
            raise DataError(f"data.person: '{self.person}' is the label or in data.drop; name the column that says whose each record is.")

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label's column, or several of which each is a target."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)

    @property
    def declared(self) -> bool:
        """Whether the config declares the classes, or that the targets are numbers."""
        ways = (self.label_threshold, self.labels, self.classes)
        return self.regression or not isinstance(self.label, str) or any(v is not None for v in ways)

    @property
    def declared_classes(self) -> int | None:
        """Number of declared classes; None in regression."""
        if self.label_threshold is not None:
            return 2
        return len(self.labels) if self.labels is not None else self.classes

    @property
    def class_labels(self) -> Sequence[Label]:
        """The meaning of each declared class; empty in regression, or without a declaration."""
        if self.label_threshold is not None:
            return f"{self.label} <= {self.label_threshold:g}", f"{self.label} > {self.label_threshold:g}"
        return tuple(self.labels) if self.labels is not None else self.names or range(self.classes or 0)


@dataclass(frozen=True)
class Column:
    """A feature column of a table.

    Attributes:
        name: name of the column.
        values: the allowed values of a column of categories; None for numbers.
        first: how many of the first values have no feature.
    """

    name: str
    values: tuple[Cell, ...] | None = None
    first: int = 0


def raw_columns(encoded: Sequence[str], arguments: Mapping[str, Any]) -> list[Column]:
    """Return the feature columns of the table, in order.

    Args:
        encoded: names of the features.
        arguments: the source's arguments; ``categories`` and ``drop_first`` say which features belong to one column.
    """
    categories, first = dict(arguments.get("categories") or {}), int(bool(arguments.get("drop_first")))
    left, columns = list(encoded), []
    while left:
        name = next((c for c, values in categories.items() if left[: len(values) - first] == _feature_names(c, values, first)), None)
        column = Column(left[0]) if name is None else Column(name, tuple(categories.pop(name)), first)
        columns.append(column)
        del left[: 1 if column.values is None else len(column.values) - first]
    return columns


def _feature_names(column: str, values: Sequence[Cell], first: int) -> list[str]:
    return [f"{column}={value}" for value in values[first:]]


def shape_tables(train: Any, test: Any | None, table: Table, where: str, index: Collection[str] = (), of_silo: bool = False) -> Raw:
    """Convert pandas frames (missing cells are NaN) to records.

    Args:
        train: the training frame.
        test: the source's own test frame, or None.
        table: how to read both frames.
        where: the source, for messages.
        index: columns that number or name the rows, which are features only if ``data.features`` names them.
        of_silo: whether the frames belong to one silo, which may lack columns in ``data.drop``.

    Raises:
        DataError: a column is missing or has no name, or a cell is missing, no number or no allowed value.
    """
    headers = [str(c) for c in train.columns]
    absent = tuple(name for name in table.drop if name not in headers) if of_silo else ()
    table = replace(table, drop=[name for name in table.drop if name not in absent])
    x, y, groups, persons, columns = _shape(train, table, where, index)
    own_test = test_groups = test_persons = None
    dropped = len(train) - len(x)
    if test is not None:
        same = table if table.features is not None else replace(table, features=_features(train, table), drop=())
        said = [str(c) for c in test.columns]
        same = replace(same, silo=table.silo if table.silo in said else None, person=table.person if table.person in said else None)
        x_test, y_test, test_groups, test_persons, _ = _shape(test, same, f"{where} (test set)", index)
        own_test = (x_test, y_test)
        dropped += len(test) - len(x_test)
    made = build(
        where,
        x,
        y,
        test=own_test,
        groups=groups,
        test_groups=test_groups,
        classes=table.declared_classes,
        class_labels=table.class_labels or None,
        columns=columns,
        persons=persons,
        test_persons=test_persons,
    )
    return replace(made, absent=absent, dropped=dropped)


def frame_features(frame: Any, where: str, order: Sequence[str] = ()) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Convert a pandas frame of features without a label.

    Args:
        frame: the features.
        where: the source, for messages.
        order: expected names of the columns, in the order of the result; default: the frame's own.

    Returns:
        Features, float32 ``[n, columns]``, and the columns' names.

    Raises:
        DataError: a column has no name, exists twice or is not in ``order``, or a cell is missing or no number.
    """
    frame, headers = _headed(frame, where)
    _refuse_index(headers, headers, (), where)
    different = sorted(set(headers) ^ set(order)) if order else []
    if different:
        raise DataError(f"{where}: column '{different[0]}' is in one table of features only; give all the same columns.")
    frame = _without_missing(frame, headers, "refuse", where)
    names = tuple(order) or tuple(headers)
    return np.stack([_numbers(frame[name], name, where, "leave it out") for name in names], axis=1).astype(np.float32), names


def _headed(frame: Any, where: str) -> tuple[Any, list[str]]:
    """The frame with its columns' names as text, and these, no two alike."""
    headers = [str(c) for c in frame.columns]
    twice = [name for name, count in Counter(headers).items() if count > 1]
    if twice:
        raise DataError(f"{where}: the column '{twice[0]}' is there more than once; rename one.")
    return frame.set_axis(headers, axis=1), headers


def _shape(frame: Any, table: Table, where: str, index: Collection[str]) -> tuple[npt.NDArray[np.float32], Any, Any, Any, tuple[str, ...]]:
    frame, headers = _headed(frame, where)
    silo, person = ([name] if name is not None else [] for name in (table.silo, table.person))
    named = (("label", table.label_columns), ("silo", silo), ("person", person), ("drop", table.drop), ("features", table.features or ()))
    for argument, names in named:
        for name in names:
            _require(name, headers, f"data.{argument}", where)
    features = _features(frame, table)
    if table.features is None:
        _refuse_index(features, headers, index, where)
    for name in table.categories or {}:
        _require(name, features, f"data.categories.{name}", where, "feature")
    if not features:
        raise DataError(f"{where}: no feature columns are left beside the label; check data.drop and data.features.")
    frame = _without_missing(frame, [*features, *table.label_columns, *silo, *person], table.missing_rows, where)
    parts: list[npt.NDArray[np.float32]] = []
    columns: list[str] = []
    for name in features:
        if table.categories and name in table.categories:
            allowed = table.categories[name]
            codes = _codes(frame[name], allowed, name, f"data.categories.{name}", where)
            first = 1 if table.drop_first else 0
            parts.append((codes[:, None] == np.arange(first, len(allowed))).astype(np.float32))
            columns += _feature_names(name, allowed, first)
        else:
            parts.append(_numbers(frame[name], name, where, "leave it out with data.drop")[:, None].astype(np.float32))
            columns.append(name)
    groups, persons = (frame[name[0]].to_numpy() if name else None for name in (silo, person))
    return np.concatenate(parts, axis=1), _labels(frame, table, where), groups, persons, tuple(columns)


def _features(frame: Any, table: Table) -> list[str]:
    return list(
        table.features or [str(h) for h in frame.columns if str(h) not in {*table.label_columns, table.silo, table.person, *table.drop}]
    )


def _require(name: str, present: Sequence[str], path: str, where: str, what: str = "column") -> None:
    if name not in present:
        raise DataError(f"{where}: there is no {what} '{name}' ({path}); it has {', '.join(present)}.{nearest(name, present)}")


def _refuse_index(features: Sequence[str], headers: Sequence[str], index: Collection[str], where: str) -> None:
    """Refuse row numbers as a feature, because they say nothing about other rows."""
    for name in features:
        if name in index or _NAMELESS.fullmatch(name):
            named = (
                f"'{name}' is the index of the rows"
                if name in index
                else f"{headers.index(name) + 1} has no name (pandas calls it '{name}')"
            )
            raise DataError(
                f"{where}: column {named}, which is most often row numbers written along; leave it out with data.drop=['{name}'], "
                "or name the features with data.features."
            )


def _without_missing(frame: Any, used: list[str], missing_rows: MissingRows, where: str) -> Any:
    if len(frame) == 0:
        raise DataError(f"{where}: holds no records.")
    missing = frame[used].isna()
    rows = missing.any(axis=1).to_numpy()
    if not rows.any():
        return frame
    if missing_rows == "refuse":
        row = int(np.argmax(rows))
        column = next(name for name in used if missing[name].to_numpy()[row])
        raise DataError(
            f"{where}: {int(rows.sum())} of {len(frame)} records have missing cells, the first is record {row + 1} in column '{column}'; "
            "set data.missing_rows=drop, or leave columns out with data.drop."
        )
    if rows.all():
        raise DataError(
            f"{where}: every record has a missing cell, so data.missing_rows=drop leaves none; leave columns out with data.drop."
        )
    return frame[~rows]


def _codes(series: Any, allowed: Sequence[Cell], name: str, path: str, where: str) -> npt.NDArray[np.int64]:
    """Return the position of each cell in ``allowed``."""
    codes, found = series.factorize()
    return positions_in(
        allowed,
        found,
        codes,
        lambda value, record, listed: (
            f"{where}: column '{name}' has the value '{value}' in record {record}, but {path} lists only {listed}."
        ),
    )


def _numbers(series: Any, name: str, where: str, remedy: str) -> npt.NDArray[np.float64]:
    import pandas as pd

    kind = series.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return _numbers(series.astype(kind.categories.dtype), name, where, remedy)
    if kind.kind in "mMc" or isinstance(kind, pd.PeriodDtype | pd.IntervalDtype):
        what = "complex numbers" if kind.kind == "c" else "dates, times or intervals"
        raise DataError(f"{where}: column '{name}' holds {what} ({kind}), which are no feature; make numbers of them, or {remedy}.")
    # pandas reads texts such as "nan" and "inf" as numbers; here such a cell is no number.
    values = np.asarray(pd.to_numeric(series, errors="coerce"), dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{where}: column '{name}' has the cell '{series.iloc[row]}' (record {row + 1}), which is not a number; "
            f"list it in data.missing or the column in data.categories, or {remedy}."
        )
    return values


def _labels(frame: Any, table: Table, where: str) -> Any:
    """Return classes if the labels' values are declared, float32 in regression, several columns as float32 ``[n, columns]``,
    and otherwise the labels as they are."""
    import pandas as pd

    if not isinstance(table.label, str):
        values = [_numbers(frame[name], name, where, "take it out of data.label") for name in table.label]
        return np.stack(values, axis=1).astype(np.float32)
    series = frame[table.label]
    if table.labels is not None:
        return _codes(series, table.labels, table.label, "data.labels", where)
    if table.label_threshold is not None:
        return (_numbers(series, table.label, where, "use data.labels") > table.label_threshold).astype(np.int64)
    if table.regression:
        return _numbers(series, table.label, where, "choose another label").astype(np.float32)
    if not pd.api.types.is_numeric_dtype(series):
        return series.to_numpy()
    values = series.to_numpy()
    if values.dtype.kind == "f":
        if not (values == np.floor(values)).all():
            raise DataError(
                f"{where}: the label '{table.label}' has values that are not whole numbers; "
                "set data.regression=true, or make classes with data.label_threshold."
            )
        if not (np.abs(values) < _EXACT).all():
            odd = values[~(np.abs(values) < _EXACT)][0]
            raise DataError(f"{where}: the label '{table.label}' has the value {odd:g}, which no class number can be; clean the data.")
        return values.astype(np.int64)
    return values
