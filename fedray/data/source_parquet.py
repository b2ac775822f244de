"""Parquet files: image sets as on the Hugging Face hub, or plain tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.data.arrow import ArrowColumns, image_column, shape_arrow
from fedray.data.source import Raw, Source, Whole, existing
from fedray.data.table import Cell, MissingRows, Table
from fedray.errors import DataError


def parquet(
    where: str,
    *,
    label: str | None = None,
    image: str | None = None,
    test: str | None = None,
    silo: str | None = None,
    classes: int | None = None,
    label_threshold: float | None = None,
    labels: Sequence[Cell] | None = None,
    regression: bool = False,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing_rows: MissingRows = "refuse",
    categories: Mapping[str, Sequence[Cell]] | None = None,
    drop_first: bool = False,
) -> Source:
    """Parquet: a file or a folder, with a column of encoded images or with plain columns.

    In a folder, files with "train" in their name are the training set and files with "test" the test set;
    if no name has either, all files are training data. Parts are joined in the order of their names.

    Args:
        where: a file or a folder.
        label: the label's column; null = label, labels, target or class, whichever is there.
        image: the column of encoded images (binary, or a struct with bytes); null = the first such column, if any.
        test: a file with the test set, instead of the folder's.
        silo: column that names each record's client, for the natural partition.
        classes: number of classes; null = those found.
        label_threshold: tables: the class is 1 where the label is above this, else 0.
        labels: tables: the label's values in class order.
        regression: tables: the label is a number to predict.
        features: tables: feature columns, in this order; null = all others.
        drop: tables: columns left out.
        missing_rows: tables: drop records with missing cells, or refuse them.
        categories: tables: column to its allowed values, which become one 0/1 feature each.
        drop_first: tables: leave out the first value's feature.

    Raises:
        DataError: a file, column, image or cell that is not as declared.
    """
    options: dict[str, Any] = {
        "label_threshold": label_threshold,
        "labels": labels,
        "regression": regression,
        "features": features,
        "drop": drop,
        "missing_rows": missing_rows,
        "categories": categories,
        "drop_first": drop_first,
    }
    columns = ArrowColumns(image, label, classes, silo, options)
    Table(label=label or "label", classes=classes, silo=silo, **options)  # refuse contradictions before anything is read

    def load() -> Raw:
        train_files, test_files = _files(existing(where, "data.source"))
        if test is not None:
            test_files = [existing(test, "data.test")]
        name = f"parquet:{where}"
        return shape_arrow(_read(train_files, columns, name), _read(test_files, columns, name) if test_files else None, columns, name)

    return Whole(load)


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    if not path.is_dir():
        return [path], []
    files = sorted(path.rglob("*.parquet"))
    train = [f for f in files if "train" in f.name.lower()]
    test = [f for f in files if "test" in f.name.lower() and f not in train]
    if not train and not test:
        train = files
    if not train:
        what = "files with 'test' in their name, but none with 'train'" if test else "no .parquet files"
        raise DataError(f"data.source: the folder '{path}' holds {what}.")
    return train, test


def _read(files: list[Path], columns: ArrowColumns, where: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        tables = [pq.read_table(file) for file in files]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
    try:
        joined = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(f"{where}: its files have different columns ({str(error).splitlines()[0]}).") from None
    image_column(joined.schema, columns, where)
    return joined


SOURCES = {"parquet": parquet}
