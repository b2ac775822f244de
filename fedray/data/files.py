"""Finds the files of a folder that a source reads, with their clients and folds by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from fedray.errors import DataError

Fold = Literal["train", "test", "other"]

_FOLDS: dict[str, Fold] = dict.fromkeys(("train", "training", "trainset", "traindata"), "train")
_FOLDS |= dict.fromkeys(("test", "testing", "testset", "testdata"), "test")
_FOLDS |= dict.fromkeys(("validation", "valid", "val", "dev"), "other")
_PARQUET = re.compile(r".*\.(parquet|parq|pq)(\.(gz|gzip|snappy|zstd|brotli|lz4))?", re.IGNORECASE)
_LEFT_OUT = re.compile(r".*\.(tsv|xlsx?|ods|parquet|csv\.(gz|bz2|xz|zip|zst))", re.IGNORECASE)
_HIVE = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NULL = "__HIVE_DEFAULT_PARTITION__"


def csv_files(folder: Path, test: Path | None = None) -> list[Path]:
    """Return the folder's ``.csv`` files (also ``.CSV``) except the test set's, in order of their names.

    Raises:
        DataError: the folder has no such file, a file that its name calls a test set, or a table in another format, which would be ignored.
    """
    entries = sorted(path for path in folder.iterdir() if not path.is_dir())
    left_out = [path.name for path in entries if _LEFT_OUT.fullmatch(path.name)]
    if left_out:
        raise DataError(f"data.source: '{left_out[0]}' in the folder '{folder}' is no plain .csv file; convert it, or move it elsewhere.")
    files = [path for path in entries if path.suffix.lower() == ".csv"]
    if test is not None and test.exists():
        files = [path for path in files if not path.samefile(test)]
    if not files:
        raise DataError(f"data.source: the folder '{folder}' holds no .csv files.")
    said = {_FOLDS.get(word): path.name for path in files for word in _words(path.stem)}
    tested = said.get("test") if "train" in said else next((path.name for path in files if path.stem.lower() == "test"), None)
    if tested is not None:
        raise DataError(
            f"data.source: each file of the folder '{folder}' is a client, but '{tested}' looks like a test set; "
            "name it in data.test, and of a single training file that in data.source; or rename the clients, or list them in data.silos."
        )
    return files


def csv_file(folder: Path, name: str) -> Path:
    """Return the path of a client's file in a folder; the expected path if the file does not exist.

    Raises:
        DataError: two files of the client exist, whose names differ in case.
    """
    expected = folder / f"{name}.csv"
    if not folder.is_dir():
        return expected
    found = [path for path in folder.iterdir() if path.stem == name and path.suffix.lower() == ".csv" and not path.is_dir()]
    if len(found) > 1:
        listed = " and ".join(sorted(path.name for path in found))
        raise DataError(f"data.source: the folder '{folder}' holds {listed} for the client '{name}'; leave one.")
    return found[0] if found else expected


def parquet_files(path: Path, test: Path | None = None, together: bool = False) -> tuple[list[Path], list[Path]]:
    """Return the training and the test files of a folder and its subfolders, in order of their names; for a file the file itself.

    A file with the word "test" (or "testing") in its name belongs to the test set, one with "train" ("training") to the training set; a
    file with neither word belongs to the fold in the name of its nearest folder. Words consist of letters only, so that ``latest.parquet``
    is no test set. If no name has such a word, all files are training files; if some names have "test" and none has "train", the files
    without a word are training files. Files of a "validation" ("valid", "val", "dev") set are left out beside the others.

    Args:
        path: a file or a folder.
        test: the test set's file, if the config names it; the folder's own test files are then left out.
        together: whether all files are one table, whatever their names are.

    Raises:
        DataError: the folder has no files or none for training, or a file may belong to either set.
    """
    if not path.is_dir():
        return [path], [test] if test is not None else []
    files = [file for file in sorted(path.rglob("*")) if _PARQUET.fullmatch(file.name) and not _hidden(file, path)]
    if test is not None:
        files = [file for file in files if not file.samefile(test)]
    folds = [None if together else _fold(file.relative_to(path)) for file in files]
    trained = "train" in folds
    train = [f for f, fold in zip(files, folds, strict=True) if fold == ("train" if trained else None)]
    tested = [f for f, fold in zip(files, folds, strict=True) if fold == "test"]
    unnamed = [f for f, fold in zip(files, folds, strict=True) if fold is None]
    if not trained and not tested:
        train = files
    if trained and unnamed:
        raise DataError(
            f"data.source: '{unnamed[0].relative_to(path)}' says neither train nor test in its name, as others in '{path}' do; "
            "rename it, or move it elsewhere."
        )
    if not train:
        what = "files with 'test' in their name, but none for training" if tested else "no .parquet files"
        raise DataError(f"data.source: the folder '{path}' holds {what}.")
    return train, [test] if test is not None else tested


def hive_keys(file: Path, root: Path) -> dict[str, str | None]:
    """Return the columns in the names of the folders between ``root`` and the file, as in ``year=2024/part.parquet``, without folds."""
    found: dict[str, str | None] = {}
    if not root.is_dir() or not file.is_relative_to(root):
        return found
    for part in file.relative_to(root).parts[:-1]:
        match = _HIVE.fullmatch(part)
        if match and match[2].lower() not in _FOLDS:
            found[unquote(match[1])] = None if match[2] == _NULL else unquote(match[2])
    return found


def _hidden(file: Path, root: Path) -> bool:
    """Return whether the path is a folder, or has a name that writers of tables use for their own metadata."""
    return file.is_dir() or any(part.startswith((".", "_")) for part in file.relative_to(root).parts)


def _fold(file: Path) -> Fold | None:
    """Return the fold in the file's own name, else in the name of its nearest folder that names one."""
    for k, part in enumerate((file.name, *reversed(file.parts[:-1]))):
        folds = {_FOLDS[word] for word in _words(part) if word in _FOLDS}
        if len(folds) == 1:
            return folds.pop()
        if len(folds) > 1 and k == 0:
            raise DataError(f"data.source: '{file}' may be of the training or of the test set by its name; rename it.")
    return None


def _words(name: str) -> Sequence[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
