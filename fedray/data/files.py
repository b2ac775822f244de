"""Which files of a folder a source reads, and what their names say: whose they are, and of which fold."""

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
    """The folder's ``.csv`` files (in whatever case that is written) except the test set's, in order of their names.

    Raises:
        DataError: there are none, one whose name says that it is a test set, or a table in another form, which would be left out.
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
    """The file of the client ``name`` in a folder; where there is none, what it should be called.

    Raises:
        DataError: two files of that name, which differ in case.
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
    """Training and test files of a folder and the folders in it, each in order of their names; of a file, itself.

    A name that has the word "test" (or "testing") is of the test set, one with "train" ("training") of the training set; a
    file without either is of the fold that the folder it lies in is named for. Words end where letters do, so that
    ``latest.parquet`` is no test set. If no name has such a word, all files are training files; if some say "test" and none
    "train", those that say nothing are. Files of a "validation" ("valid", "val", "dev") are left out beside the others.

    Args:
        path: a file or a folder.
        test: the test set's file, if it is named by the config; the folder's own test files are left out then.
        together: all files are one table, whatever their names say.

    Raises:
        DataError: no files, none for training, or one that may be either.
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
    """The columns that folders between ``root`` and the file give, as in ``year=2024/part.parquet``; without a fold's name."""
    found: dict[str, str | None] = {}
    if not root.is_dir() or not file.is_relative_to(root):
        return found
    for part in file.relative_to(root).parts[:-1]:
        match = _HIVE.fullmatch(part)
        if match and match[2].lower() not in _FOLDS:
            found[unquote(match[1])] = None if match[2] == _NULL else unquote(match[2])
    return found


def _hidden(file: Path, root: Path) -> bool:
    """Names that writers of tables keep for notes of their own."""
    return file.is_dir() or any(part.startswith((".", "_")) for part in file.relative_to(root).parts)


def _fold(file: Path) -> Fold | None:
    """By the file's own name, else by the nearest folder's that says it."""
    for k, part in enumerate((file.name, *reversed(file.parts[:-1]))):
        folds = {_FOLDS[word] for word in _words(part) if word in _FOLDS}
        if len(folds) == 1:
            return folds.pop()
        if len(folds) > 1 and k == 0:
            raise DataError(f"data.source: '{file}' may be of the training or of the test set by its name; rename it.")
    return None


def _words(name: str) -> Sequence[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
