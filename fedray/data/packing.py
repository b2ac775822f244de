"""Packs a dict of arrays into one array, see :mod:`fedray.inputs`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.data.source import feature_array, gather
from fedray.data.table import frame_features
from fedray.errors import DataError
from fedray.inputs import MOST_TOKENS, Input, described


def pack(values: Mapping[str, Any], where: str, known: Sequence[Input] = ()) -> tuple[npt.NDArray[np.float32], tuple[Input, ...]]:
    """Pack the inputs of records, sorted by name.

    Args:
        values: name to array ``[n, ...]`` or pandas frame. Floats stay, uint8 images become 0..1, other integers are tokens.
        where: the source, for messages.
        known: the inputs that there should be; default: any.

    Returns:
        Float32 ``[n, sum of sizes]``, and the inputs in the order in which they stand there.

    Raises:
        DataError: no inputs, names that are no keywords, arrays of different lengths, values that cannot be features, or inputs other than
            those known.
    """
    if not values:
        raise DataError(f"{where}: holds no inputs; give a dict of name to array.")
    arrays: list[npt.NDArray[np.float32]] = []
    inputs: list[Input] = []
    for name in sorted(values):
        if not isinstance(name, str) or not name.isidentifier():
            raise DataError(f"{where}: the input {name!r} cannot be an argument of the model; use a name of letters, digits and '_'.")
        own = f"{where} (input {name})"
        array = feature_array(_plain(values[name], own), own)
        tokens = array.dtype == np.int64
        if tokens and len(array) and not 0 <= array.min() <= array.max() < MOST_TOKENS:
            raise DataError(f"{own}: holds a token number outside 0 to {MOST_TOKENS - 1}; number tokens from 0.")
        inputs.append(Input(name, tuple(array.shape[1:]), bool(tokens)))
        arrays.append(gather(array, np.arange(len(array))).astype(np.float32, copy=False).reshape(len(array), -1))
        if len(arrays[-1]) != len(arrays[0]):
            raise DataError(
                f"{where}: {len(arrays[0])} records of input {inputs[0].name}, but {len(array)} of {name}; they must be equally many."
            )
    if known and tuple(inputs) != tuple(known):
        raise DataError(f"{where}: has the inputs {described(inputs)}, but others have {described(known)}; they must agree.")
    return np.concatenate(arrays, axis=1), tuple(inputs)


def _plain(values: Any, where: str) -> Any:
    pandas = sys.modules.get("pandas")
    return frame_features(values, where)[0] if pandas is not None and isinstance(values, pandas.DataFrame) else values
