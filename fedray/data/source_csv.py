"""CSV files: a folder with one file per silo, or one file."""

from __future__ import annotations

import csv as csvfile
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedray.components import nearest
from fedray.data.files import csv_file, csv_files
from fedray.data.folds import TestFold, check_fold, need_test, test_rows
from fedray.data.source import Raw, Silos, Source, Whole, check_names, existing
from fedray.data.table import Cell, MissingRows, Table, shape_tables
from fedray.errors import DataError

_WHOLE = re.compile(r"-?\d{1,18}(\.0+)?")


def csv(
    where: str,
    *,
    label: str | Sequence[str],
    label_threshold: float | None = None,
    labels: Sequence[Cell] | None = None,
    classes: int | None = None,
    regression: bool = False,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: Sequence[Cell] = ("", "?"),
    missing_rows: MissingRows = "refuse",
    categories: Mapping[str, Sequence[Cell]] | None = None,
    drop_first: bool = False,
    silo: str | None = None,
    person: str | None = None,
    silos: Sequence[str] | None = None,
    test: str | None = None,
    fold: str | None = None,
    test_fold: TestFold | None = None,
    delimiter: str = ",",
) -> Source:
    """CSV with a header line: a folder with one file per silo, or one file.

    In a folder every client reads only its own file ``NAME.csv``; the driver reads at most the files' names. The classes of a folder must
    be declared (label_threshold, labels, classes or regression), because no process reads all silos; several
    labels need no declaration.

    Args:
        where: a folder of .csv files, one per client and with the client's name; or one file.
        label: the label's column, or several columns of numbers, one for each target, such as [event, time] or a 0/1 column per label.
        label_threshold: the class is 1 where the label is above this, else 0.
        labels: the label's values in class order.
        classes: labels are the integers 0..classes-1 already.
        regression: the label is a number to predict.
        features: feature columns, in this order; null = all others.
        drop: columns to leave out; in a folder, some files may lack them.
        missing: cells that mean "not known".
        missing_rows: drop records with a missing cell in a column that is used, or refuse the file. How many are dropped is told without
            privacy only.
        categories: column to its allowed values, which become one 0/1 feature each.
        drop_first: leave out the first value's feature.
        silo: one file only: the column that names each record's client, for the natural partition.
        person: the column that says whose each record is; no feature. A person is held out, and dealt to a client, with all its records.
        silos: a folder only: the clients' names, so that the driver need not see the folder at all.
        test: a file with the test set, which the driver evaluates on; or of a folder, another folder with a file of the same name
            for each client, its own test set.
        fold: the column that says which records are the test set, each client's own.
        test_fold: that column's values that mean the test set; null = it holds "train" and "test".
        delimiter: between cells.

    Raises:
        DataError: a file, column or cell that is not as declared.
    """
    table = Table(label, label_threshold, labels, classes, regression, features, drop, missing_rows, categories, drop_first, silo, person)
    if len(delimiter) != 1:
        raise DataError(f"data.delimiter: should be one character, but is {delimiter!r}.")

    check_fold(fold, test_fold, test)
    folder = Path(where).expanduser()

    def read(path: Path, argument: str) -> Any:
        return _read(existing(path, argument), [str(m) for m in missing], delimiter, silo, person)

    def load(path: Path, test_file: Path | None, of_silo: bool) -> Raw:
        train, own, tested = read(path, "data.source"), None, None
        if test_file is not None:
            own = read(test_file, "data.test")
        if fold is not None:
            if fold not in train.columns:
                raise DataError(f"{path}: there is no column '{fold}' (data.fold).{nearest(fold, [str(c) for c in train.columns])}")
            tested = test_rows(train[fold].to_numpy(), fold, test_fold, str(path))
            if not of_silo:
                need_test(tested, fold, str(path))
            train = train.drop(columns=fold)
            train, own = train[~tested], train[tested] if tested.any() else None
        raw = shape_tables(train, own, table, str(path), of_silo=of_silo)
        return replace(raw, test=(raw.x[:0], raw.y[:0])) if tested is not None and own is None else raw

    if silos is None and not existing(folder, "data.source").is_dir():
        return Whole(partial(load, folder, Path(test).expanduser() if test is not None else None, False))
    if silo is not None:
        raise DataError("data.silo: names the client column of a single file; in a folder each file is a client, leave it out.")
    if not table.declared:
        raise DataError(
            "data: a folder of silos needs its classes declared, as no one reads all files; "
            "give one of label_threshold, labels, classes, regression."
        )
    tests = Path(test).expanduser() if test is not None else None
    own_tests = tests if tests is not None and (tests.is_dir() or (silos is not None and tests.suffix.lower() != ".csv")) else None
    central = tests if own_tests is None else None
    names = list(silos) if silos is not None else sorted(file.stem for file in csv_files(folder, central))
    return Silos(
        check_names(names, f"csv:{where}"),
        lambda name: load(csv_file(folder, name), csv_file(own_tests, name) if own_tests is not None else None, True),
        table.declared_classes,
        table.class_labels,
        partial(load, central, None, True) if central is not None else None,
    )


def _read(path: Path, missing: list[str], delimiter: str, silo: str | None, person: str | None) -> Any:
    import pandas as pd

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csvfile.reader(file, delimiter=delimiter), [])
        other = next((c for c in ";\t|," if c in header[0] and c != delimiter), None) if len(header) == 1 else None
        if other is not None:
            raise DataError(
                f"{path}: the header is the one column '{header[0]}'; set data.delimiter={other!r} if that separates the cells."
            )
        twice = {name for name in header if name.strip() and header.count(name) > 1}
        if twice:
            raise DataError(f"{path}: the column '{twice.pop()}' stands twice in the header; rename one.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                # As numbers, 01 and 1 would be one client, and long numbers too.
                dtype={name: str for name in (silo, person) if name is not None},
                sep=delimiter,
                na_values=missing,
                keep_default_na=False,
                low_memory=False,
                index_col=False,
                encoding="utf-8-sig",
                float_precision="round_trip",
            )
            if silo in table.columns:
                table[silo] = _client_names(table[silo], path)
            return table
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: is empty; expected a header line and records.") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, csvfile.Error) as error:
        raise DataError(f"{path}: is not a regular table ({str(error).strip()}); check data.delimiter and the line it names.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; convert it.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None


def _client_names(cells: Any, where: Path) -> Any:
    """Convert a column of text to whole numbers if all cells are whole numbers, so that clients are in numerical order.

    Raises:
        DataError: two different texts are the same number.
    """
    import pandas as pd

    known = cells.dropna().unique().tolist()
    if not all(_WHOLE.fullmatch(cell) for cell in known):
        return cells
    number = {cell: int(cell.partition(".")[0]) for cell in known}
    first: dict[int, str] = {}
    for cell in known:
        if first.setdefault(number[cell], cell) != cell:
            raise DataError(
                f"{where}: '{first[number[cell]]}' and '{cell}' in column '{cells.name}' are one client or two; write them alike."
            )
    padded = any(cell[0] == "0" and cell[1:2].isdigit() for cell in known)
    return cells if padded else pd.array([number.get(cell, pd.NA) for cell in cells], dtype="Int64")


SOURCES = {"csv": csv}
