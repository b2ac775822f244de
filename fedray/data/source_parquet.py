"""Parquet files: image sets as on the Hugging Face hub, or plain tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.data.arrow import ArrowColumns, Only, joined, shape_arrow
from fedray.data.files import hive_keys, parquet_files
from fedray.data.folds import TestFold, check_fold
from fedray.data.source import Raw, Source, Whole, existing
from fedray.data.table import Cell, MissingRows, Table
from fedray.errors import DataError

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")


def parquet(
    where: str,
    *,
    label: str | Sequence[str] | None = None,
    image: str | None = None,
    test: str | None = None,
    silo: str | None = None,
    person: str | None = None,
    fold: str | None = None,
    test_fold: TestFold | None = None,
    only: Only | None = None,
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

    In a folder (and the folders in it), files with the word "test" in their or their folder's name are the test set and files
    with "train" the training set; if none has either, all files are training data. Files of a "validation" are left out then.
    Parts are joined in the order of their names, their columns by name. Folders such as ``site=north`` give a column.

    Args:
        where: a file or a folder.
        label: the label's column; null = label, labels, target or class, whichever is there; or several columns of numbers, each a target.
        image: the column of encoded images (binary, or a struct with bytes); null = the first such column, if any.
        test: a file with the test set, instead of the folder's.
        silo: column that names each record's client, for the natural partition; in the test set, too, with data.holdout.at=clients.
        person: column that says whose each record is; no feature. A person is held out, and dealt to a client, with all its records.
        fold: the column that says which records are the test set, whatever files they are in.
        test_fold: that column's values that mean the test set; null = it holds "train" and "test".
        only: column to the values of which a record has one, such as {character: [0, 1]}; other records are left out, of the test set, too.
        classes: labels are the integers 0..classes-1 and stay what they are; null = as the file names its classes, else those found.
        label_threshold: tables: the class is 1 where the label is above this, else 0.
        labels: the label's values in class order.
        regression: tables: the label is a number to predict.
        features: tables: feature columns, in this order; null = all others.
        drop: tables: columns left out.
        missing_rows: tables: drop records with missing cells, or refuse them.
        categories: tables: column to its allowed values, which become one 0/1 feature each.
        drop_first: tables: leave out the first value's feature.

    Raises:
        DataError: a file, column, image or cell that is not as declared.
    """
    check_fold(fold, test_fold, test)
    table = Table(
        label or "label",
        label_threshold,
        labels,
        classes,
        regression,
        features,
        drop,
        missing_rows,
        categories,
        drop_first,
        silo,
        person,
    )
    columns = ArrowColumns(image, label, table, fold, test_fold, only)

    def load() -> Raw:
        root, name = existing(where, "data.source"), f"parquet:{where}"
        unread = [column for column in drop if column not in (*([label] if isinstance(label, str) else label or ()), silo, person, fold)]
        train_files, test_files = parquet_files(root, existing(test, "data.test") if test is not None else None, fold is not None)
        return shape_arrow(
            _read(train_files, root, name, unread), _read(test_files, root, name, unread) if test_files else None, columns, name
        )

    return Whole(load)


def _read(files: list[Path], root: Path, where: str, drop: Sequence[str]) -> Any:
    """Join the files to one table with the columns of the first file and of the folders' names; files may lack columns in ``drop``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, keys = [], [hive_keys(file, root) for file in files]
    for file, own in zip(files, keys, strict=True):
        try:
            tables.append(pq.ParquetFile(file).read())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{where}: '{file}' cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
        different = set(own) ^ set(keys[0]) or set(own) & set(tables[-1].schema.names)
        if different:
            raise DataError(
                f"{where}: the column '{min(different)}', which folders give as {min(different)}=VALUE, is not given by all of them, "
                f"or is in '{file}' besides; make it one or the other."
            )
    whole = [key for key in keys[0] if all(_WHOLE.fullmatch(own[key] or "0") for own in keys)]
    for i, own in enumerate(keys):
        for key, value in own.items():
            cells = pa.nulls(len(tables[i])) if value is None else pa.array([int(value) if key in whole else value] * len(tables[i]))
            tables[i] = tables[i].append_column(key, cells.cast(pa.int64() if key in whole else pa.string()))
    for name in drop:
        held = [name in table.schema.names for table in tables]
        if any(held):  # the column is not read, so it may have any type
            tables = [
                (t.drop_columns(name) if has else t).append_column(name, pa.nulls(len(t))) for t, has in zip(tables, held, strict=True)
            ]
    return joined(tables, [str(file) for file in files], where)


SOURCES = {"parquet": parquet}
