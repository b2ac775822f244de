"""Encodes raw rows of a table for a model that was trained on that table.

A model in MLflow contains this file (``code/fedray_rows.py``), so that the model predicts where fedray is not installed. So the file imports
nothing of fedray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

FILE = "columns.json"
_EXACT = 2**53  # beyond it a float is no longer one whole number
_EXACT_FLOAT32 = 2**24


def key(value: Any) -> str | int | float:
    """Return the value by which labels and cells are compared: ``1``, ``1.0`` and ``"1"`` are equal; whole numbers are compared exactly."""
    try:
        number = int(value) if isinstance(value, Integral) else float(value)
        if not math.isfinite(number):
            return str(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    if isinstance(value, str) and abs(number) >= _EXACT:
        try:
            return int(value)
        except ValueError:  # such as 1e30
            pass
    return number


def codes(values: list[Any]) -> list[float]:
    """Return the numbers that encode the values of a column of categories in the model's input.

    Numbers encode themselves; texts, and numbers that are equal to others in float32 (20240101), are numbered from 0.
    """
    keys = [key(value) for value in values]
    numbers = [float(k) for k in keys if not isinstance(k, str) and abs(k) < _EXACT_FLOAT32]
    if len({np.float32(number) for number in numbers}) == len(keys):
        return numbers
    return [float(n) for n in range(len(keys))]


class RowEncoder:
    """Encodes named columns as the model's input.

    Args:
        columns: ``name`` of each column and, for a column of categories, its allowed ``values``.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        self.columns = columns

    def __call__(self, frame: Any) -> Any:
        """Encode a pandas frame, which may have further columns in any order, as float32 ``[rows, columns]``.

        Raises:
            ValueError: a column is missing, or a cell is missing, no number, or no allowed value.
        """
        import pandas as pd

        if isinstance(frame, Mapping):
            frame = pd.DataFrame(frame)
        if not isinstance(frame, pd.DataFrame | pd.Series):
            raise ValueError(f"the rows should be a pandas frame with named columns, but are a {type(frame).__name__}.")
        frame = frame if isinstance(frame, pd.DataFrame) else frame.to_frame().T
        twice = [c["name"] for c in self.columns if list(frame.columns).count(c["name"]) > 1]
        if twice:
            raise ValueError(f"the rows have the column {twice[0]!r} more than once.")
        absent = [c["name"] for c in self.columns if c["name"] not in frame]
        if absent:
            raise ValueError(f"the rows lack the columns {', '.join(map(repr, absent))}.")
        encoded = np.empty((len(frame), len(self.columns)), dtype=np.float32)
        for n, column in enumerate(self.columns):
            cells, values = frame[column["name"]], column.get("values")
            encoded[:, n] = _numbers(cells, column["name"]) if values is None else _categories(cells, column["name"], values)
        return encoded


def _numbers(cells: Any, name: str) -> Any:
    import pandas as pd

    if getattr(cells.dtype, "kind", "O") in "mM":
        raise ValueError(f"column {name!r} holds dates or times ({cells.dtype}), but the model knows it as numbers.")
    with np.errstate(over="ignore"):
        numbers = np.asarray(pd.to_numeric(cells, errors="coerce"), dtype=np.float64).astype(np.float32)
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise ValueError(f"column {name!r} has {cells.iloc[row]!r} in row {row + 1}, which is not a number; leave such rows out.")
    return numbers


def _categories(cells: Any, name: str, values: list[Any]) -> Any:
    code = dict(zip(map(key, values), codes(values), strict=True))
    positions, found = cells.factorize()
    for n, value in enumerate(found):
        if key(value) not in code:
            row = int(np.argmax(positions == n))
            raise ValueError(f"column {name!r} has {value!r} in row {row + 1}, but the model knows only {', '.join(map(str, values))}.")
    if (positions < 0).any():
        raise ValueError(f"column {name!r} has a missing cell in row {int(np.argmax(positions < 0)) + 1}; leave such rows out.")
    return np.array([code[key(value)] for value in found], dtype=np.float64)[positions]


class _Predictor:
    """The model for MLflow: predicts a frame of outputs, with the same index, from a frame of rows."""

    def __init__(self, folder: Path) -> None:
        import mlflow.pytorch

        root = next(parent for parent in folder.parents if (parent / "MLmodel").exists())
        self._model = mlflow.pytorch.load_model(str(root))
        self._encode = RowEncoder(json.loads((folder / FILE).read_text(encoding="utf-8")))

    def predict(self, data: Any, params: Any = None) -> Any:
        """Return the outputs ``[rows, outputs]``."""
        import pandas as pd
        import torch

        frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data)
        with torch.no_grad():
            outputs = self._model(torch.from_numpy(self._encode(frame))).numpy()
        return pd.DataFrame(outputs, index=frame.index)


def _load_pyfunc(path: str) -> _Predictor:
    """Load the model; called by ``mlflow.pyfunc.load_model`` with the folder of the model's data."""
    return _Predictor(Path(path).absolute())
