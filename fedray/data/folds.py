"""Reads a column that says which records are the test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedray.data.labels import missing_values
from fedray.data.rows import key as label_key
from fedray.errors import DataError

Cell = str | int | float
TestFold = Cell | Sequence[Cell]


def check_fold(fold: str | None, test_fold: TestFold | None, test: object = None) -> None:
    """Check that the settings of folds and test sets do not contradict each other.

    Raises:
        DataError: they do.
    """
    if fold is None and test_fold is not None:
        raise DataError("data.test_fold: is a value of the column data.fold, which is not given; name it, or leave this out.")
    if fold is not None and test is not None:
        raise DataError("data.test: contradicts data.fold; each says which records are the test set, keep one.")


def test_rows(cells: npt.ArrayLike, fold: str, test_fold: TestFold | None, where: str) -> npt.NDArray[np.bool_]:
    """Return which rows are the test set, bool ``[n]``.

    Args:
        cells: the column, ``[n]``.
        fold: name of the column.
        test_fold: the column's values that mean the test set; None: the column holds "train" and "test".
        where: the source, for messages.

    Raises:
        DataError: a missing cell, another value than "train" and "test" without ``test_fold``, or no record for training.
    """
    array = np.asarray(cells).astype(object)
    missing = missing_values(array)
    if missing.any():
        raise DataError(f"{where}: {int(missing.sum())} of {len(array)} records say nothing in '{fold}' (data.fold); fill it in.")
    if test_fold is None:
        words = np.array([str(value).strip().lower() for value in array], dtype=object)
        odd = sorted({str(v) for v, word in zip(array, words, strict=True) if word not in ("train", "test")})
        if odd:
            raise DataError(
                f"{where}: column '{fold}' (data.fold) has the value '{odd[0]}' besides train and test; say which are the test set with data.test_fold."
            )
        tested = words == "test"
    else:
        named = [test_fold] if isinstance(test_fold, str | int | float) else test_fold
        keys = {label_key(value) for value in named}
        tested = np.array([label_key(value) in keys for value in array], dtype=np.bool_)
    if tested.all():
        raise DataError(f"{where}: no record is for training by column '{fold}' (data.fold).")
    return np.asarray(tested, dtype=np.bool_)


def need_test(tested: npt.NDArray[np.bool_], fold: str, where: str) -> None:
    """Check that a whole source has a record of the test fold.

    Raises:
        DataError: it has none.
    """
    if not tested.any():
        raise DataError(f"{where}: no record is of the test set by column '{fold}' (data.fold); check data.test_fold.")
