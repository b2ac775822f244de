"""Arrow tables (Parquet files, Hugging Face data sets) to records: images or plain columns."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.components import nearest
from fedray.data.images import decode_images
from fedray.data.source import Raw, build
from fedray.data.table import Table, shape_tables
from fedray.errors import DataError

_USUAL_LABELS = ("label", "labels", "target", "class")


@dataclass(frozen=True)
class ArrowColumns:
    """Which columns are what.

    Attributes:
        image: column of encoded images (binary, or a struct with ``bytes`` as on the Hugging Face hub);
            None = the first such column if there is one, else a plain table.
        label: the label's column; None = the one with a usual name (label, labels, target, class).
        classes: declared number of classes of an image set.
        silo: column that names each record's client.
        options: the other arguments of :class:`fedray.data.table.Table`, for plain tables.
    """

    image: str | None
    label: str | None
    classes: int | None
    silo: str | None
    options: dict[str, Any]


def image_column(schema: Any, columns: ArrowColumns, where: str) -> str | None:
    """The image column by ``columns.image`` or by its type; None for a plain table.

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
    if columns.options.get("features") is not None:
        return None
    return next((name for name in schema.names if encoded(schema.field(name).type)), None)


def shape_arrow(train: Any, test: Any | None, columns: ArrowColumns, where: str) -> Raw:
    """Arrow tables of a training and perhaps a test set to records.

    Raises:
        DataError: columns, images or labels that are not as declared.
    """
    image = image_column(train.schema, columns, where)
    label = columns.label or next((name for name in _USUAL_LABELS if name in train.schema.names), None)
    if label is None:
        raise DataError(
            f"{where}: no column is called {', '.join(_USUAL_LABELS)}; "
            f"name the label's with data.label (there are {', '.join(train.schema.names)})."
        )
    if image is None:
        table = Table(label=label, classes=columns.classes, silo=columns.silo, **columns.options)
        return shape_tables(train.to_pandas(), test.to_pandas() if test is not None else None, table, where)
    labels = columns.options.get("labels")
    unused = [name for name, value in columns.options.items() if name != "labels" and _says_something(value)]
    if unused:
        raise DataError(f"data.{unused[0]}: is for tables, but {where} holds images in column '{image}'; leave it out.")
    groups = _values(train, columns.silo, "data.silo", where) if columns.silo is not None else None
    x, y = _images(train, image, where), _values(train, label, "data.label", where)
    own_test = None
    if test is not None:
        named = f"{where} (test set)"
        own_test = (_images(test, image, named), _values(test, label, "data.label", named))
    return build(where, x, y, test=own_test, groups=groups, classes=columns.classes, labels=labels)


def _says_something(value: Any) -> bool:
    return not (value is None or value is False or value == "refuse" or (isinstance(value, Sized) and len(value) == 0))


def _require(name: str, present: list[str], path: str, where: str) -> None:
    if name not in present:
        raise DataError(f"{where}: there is no column '{name}' ({path}); it has {', '.join(present)}.{nearest(name, present)}")


def _values(table: Any, name: str, path: str, where: str) -> Any:
    _require(name, table.schema.names, path, where)
    column = table.column(name)
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} records have no '{name}' ({path}); remove them.")
    return column.to_numpy()


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
