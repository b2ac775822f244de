"""Converts Arrow tables (Parquet files, Hugging Face data sets) to records: images or plain columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedray.components import nearest
from fedray.data.folds import TestFold, need_test, test_rows
from fedray.data.images import decode_images
from fedray.data.source import Raw, build
from fedray.data.table import Cell, Table, shape_tables
from fedray.errors import DataError

Only = Mapping[str, Annotated[Sequence[Cell], Field(min_length=1)]]

_USUAL_LABELS = ("label", "labels", "target", "class")
_TABLES_ONLY = ("label_threshold", "regression", "features", "drop", "missing_rows", "categories", "drop_first")


@dataclass(frozen=True)
class ArrowColumns:
    """The meaning of an Arrow table's columns.

    Attributes:
        image: column of encoded images (binary, or a struct with ``bytes`` as on the Hugging Face hub); None: the first such column,
            or a plain table where no column is one.
        label: the label's column, or several columns of numbers, one for each target; None: the one with a usual name (label, labels, target, class).
        table: how a plain table is read, except for the label's column; an image set uses its ``classes``, ``labels``, ``silo`` and ``person``.
        fold: column that says which records are the test set.
        test_fold: that column's values that mean the test set; None: the column holds "train" and "test".
        only: column to the values of which a record has one; others are left out before anything else is read.
    """

    image: str | None
    label: str | Sequence[str] | None
    table: Table
    fold: str | None = None
    test_fold: TestFold | None = None
    only: Only | None = None


def image_column(schema: Any, columns: ArrowColumns, where: str) -> str | None:
    """Return the image column by ``columns.image`` or by its type; None for a plain table.

    Raises:
        DataError: the named column is not there or holds no encoded images.
    """
    import pyarrow as pa

    def encoded(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    if columns.image is not None:
        _require(columns.image, schema.names, "data.image", where)
        if not encoded(schema.field(columns.image).type):
            raise DataError(f"{where}: column '{columns.image}' (data.image) holds {schema.field(columns.image).type}, not encoded images.")
        return columns.image
    if columns.table.features is not None:
        return None
    return next((name for name in schema.names if encoded(schema.field(name).type)), None)


def shape_arrow(train: Any, test: Any | None, columns: ArrowColumns, where: str) -> Raw:
    """Convert the Arrow table of a training set, and that of a test set or None, to records.

    Raises:
        DataError: columns, images or labels that are not as declared.
    """
    for column, values in (columns.only or {}).items():
        train = _only(train, column, values, where)
        test = None if test is None else _only(test, column, values, f"{where} (test set)")
    image = image_column(train.schema, columns, where)
    if columns.fold is not None:
        _require(columns.fold, train.schema.names, "data.fold", where)
        tested = test_rows(train.column(columns.fold).to_pandas().to_numpy(), columns.fold, columns.test_fold, where)
        need_test(tested, columns.fold, where)
        train = train.drop_columns(columns.fold)
        train, test = train.filter(~tested), train.filter(tested)
    label = columns.label or next((name for name in _USUAL_LABELS if name in train.schema.names), None)
    if label is None:
        raise DataError(
            f"{where}: no column is called {', '.join(_USUAL_LABELS)}; "
            f"name the label's with data.label (there are {', '.join(train.schema.names)})."
        )
    table = replace(columns.table, label=label)
    names = _class_names(train.schema, label) if table.classes is None and isinstance(label, str) else None
    if image is None:
        if not table.declared and names is not None:
            table = replace(table, classes=len(names), names=names)
        own_frame = test.to_pandas(ignore_metadata=True) if test is not None else None
        return shape_tables(train.to_pandas(ignore_metadata=True), own_frame, table, where, _index_columns(train.schema))
    given = {name: getattr(table, name) for name in _TABLES_ONLY}
    unused = [name for name, value in given.items() if value is not None and value is not False and value not in ("refuse", (), [], {})]
    if unused:
        raise DataError(f"data.{unused[0]}: is for tables, but {where} holds images in column '{image}'; leave it out.")
    groups = _values(train, table.silo, "data.silo", where) if table.silo is not None else None
    persons = _values(train, table.person, "data.person", where) if table.person is not None else None
    x, y = _images(train, image, where), _targets(train, label, where)
    own_test = test_groups = test_persons = None
    if test is not None:
        named = f"{where} (test set)"
        own_test = (_images(test, image, named), _targets(test, label, named))
        if table.silo is not None and table.silo in test.schema.names:
            test_groups = _values(test, table.silo, "data.silo", named)
        if table.person is not None and table.person in test.schema.names:
            test_persons = _values(test, table.person, "data.person", named)
    known = names if table.labels is None else None
    classes = table.classes if known is None else len(known)
    return build(
        where,
        x,
        y,
        test=own_test,
        groups=groups,
        test_groups=test_groups,
        classes=classes,
        labels=table.labels,
        class_labels=known,
        persons=persons,
        test_persons=test_persons,
    )


def _only(table: Any, column: str, values: Sequence[Cell], where: str) -> Any:
    """The rows whose column has one of the values."""
    import pyarrow as pa
    from pyarrow import compute

    _require(column, table.schema.names, "data.only", where)
    kind = _plain_kind(table.schema.field(column).type)
    try:
        wanted = pa.array(values).cast(kind)
    except (pa.ArrowException, TypeError):
        raise DataError(
            f"{where}: data.only.{column} names {list(values)}, but the column holds {kind}; give values of that type."
        ) from None
    kept = table.filter(compute.is_in(table.column(column).cast(kind), value_set=wanted))
    if not kept.num_rows:
        raise DataError(f"{where}: no record has one of the values of data.only.{column}, {list(values)}.")
    return kept


def joined(tables: Sequence[Any], names: Sequence[str], where: str) -> Any:
    """Join tables by the names of their columns, in the order of the first table; a column's number types become the widest of them.

    Args:
        tables: at least one table.
        names: names of the tables, for messages.
        where: the source, for messages.

    Raises:
        DataError: a column is not in all tables, or holds different kinds of values.
    """
    import pyarrow as pa

    first = tables[0].schema.names
    for table, name in zip(tables, names, strict=True):
        different = sorted(set(table.schema.names) ^ set(first))
        if different or len(set(table.schema.names)) < len(table.schema.names):
            what = f"column '{different[0]}' is in one only" if different else "a column stands twice"
            raise DataError(f"{where}: '{names[0]}' and '{name}' have different columns ({what}); write them alike.")
    for column in first:
        kinds = [_plain_kind(table.schema.field(column).type) for table in tables]
        known = [kind for kind in kinds if not pa.types.is_null(kind)]
        for kind, name in zip(kinds, names, strict=True):
            if not (pa.types.is_null(kind) or kind == known[0] or (_is_number(kind) and _is_number(known[0]))):
                raise DataError(
                    f"{where}: column '{column}' holds {known[0]} in '{names[kinds.index(known[0])]}', but {kind} in '{name}'; write them alike."
                )
    tables = [table.select(first) for table in tables]
    plain = [table.cast(pa.schema([(f.name, _plain_kind(f.type)) for f in table.schema])) if len(tables) > 1 else table for table in tables]
    try:
        whole = pa.concat_tables(plain, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{where}: its files cannot be joined ({str(error).splitlines()[0]}); write them alike.") from None
    return whole.replace_schema_metadata(tables[0].schema.metadata)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _plain_kind(kind: Any) -> Any:
    """Return the type of a dictionary's values, and the large type for text and bytes."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain_kind(kind.value_type)
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary(kind) else kind


def _index_columns(schema: Any) -> list[str]:
    """Return the columns that were the index of a pandas frame."""
    return [name for name in (schema.pandas_metadata or {}).get("index_columns", []) if isinstance(name, str)]


def _class_names(schema: Any, label: str) -> list[str] | None:
    """Return the classes' names that the Hugging Face library has stored in a table; None without such names."""
    kept = (schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(kept)["info"]["features"][label] if kept else {}
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return [str(name) for name in names] if names and len(names) > 1 else None


def _require(name: str, present: list[str], path: str, where: str) -> None:
    if name not in present:
        raise DataError(f"{where}: there is no column '{name}' ({path}); it has {', '.join(present)}.{nearest(name, present)}")


def _values(table: Any, name: str, path: str, where: str) -> Any:
    _require(name, table.schema.names, path, where)
    column = table.column(name)
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} records have no '{name}' ({path}); remove them.")
    return column.to_pandas().to_numpy()


def _targets(table: Any, label: str | Sequence[str], where: str) -> Any:
    if isinstance(label, str):
        return _values(table, label, "data.label", where)
    return np.stack([np.asarray(_values(table, name, "data.label", where), dtype=np.float32) for name in label], axis=1)


def _images(table: Any, name: str, where: str) -> Any:
    import pyarrow as pa

    _require(name, table.schema.names, "data.image", where)
    column = table.column(name)
    if pa.types.is_struct(column.type):
        encoded = [_content(row, where, i) for i, row in enumerate(column.to_pylist())]
    else:
        encoded = column.to_pylist()
    return decode_images(encoded, where)


def _content(row: dict[str, Any] | None, where: str, i: int) -> bytes | None:
    if row is None or (row.get("bytes") is None and row.get("path") is None):
        return None
    if row["bytes"] is not None:
        return bytes(row["bytes"])
    try:
        return Path(row["path"]).read_bytes()
    except OSError as error:
        raise DataError(f"{where}: the image of record {i + 1} cannot be read ({error}).") from None
