"""What a source is, and the checks that every source's arrays go through.

A source is a function ``source(where, **arguments) -> Whole | Silos`` that opens nothing yet:
``where`` is what follows the kind in ``data.source``, the arguments are the other keys of the data
section. :class:`Whole` loads everything at once; :class:`Silos` knows its clients by name without
reading any of their records, so that each client can load its own and nobody else's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.data.records import Features, Indices, Targets
from fedray.errors import DataError

_BLOCK = 8192  # rows converted or checked at once: keeps scratch memory small beside the data

#: Features as a source holds them: float32, int64 tokens, or uint8 images (0..255, made 0..1 when gathered).
RawFeatures = Features | npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Raw:
    """A source's records, checked, in the source's own order.

    Attributes:
        x: ``[n, *shape]`` float32, int64 or uint8.
        y: ``[n]`` int64 classes 0..C-1, or float32 in regression.
        classes: C, or None in regression.
        test: features and targets of the source's own test set, or None.
        groups: int64 ``[n]``, the natural client of each record as an index into ``group_names``; None if there are none.
        group_names: names of the natural clients.
        columns: names of the features of a table.
    """

    x: RawFeatures
    y: Targets
    classes: int | None
    test: tuple[RawFeatures, Targets] | None = None
    groups: Indices | None = None
    group_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    """A source that is read as a whole."""

    load: Callable[[], Raw]


@dataclass(frozen=True)
class Silos:
    """A source with one place a client.

    Attributes:
        names: the clients; found without reading a record.
        load: reads one client's records, and no other's.
        classes: number of classes of the task, declared (no one reads all silos); None in regression.
    """

    names: tuple[str, ...]
    load: Callable[[str], Raw]
    classes: int | None


Source = Whole | Silos


def existing(path: str | Path, where: str) -> Path:
    """``path`` with ``~`` expanded.

    Raises:
        DataError: nothing lies there.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{where}: there is no file or folder '{found}' (looked from {Path.cwd()}); give its path in data.source.")
    return found


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Client names are used as file names (ledgers, reports): none empty, twice there, or with a path in it.

    Raises:
        DataError: a name that will not do, or no name at all.
    """
    if not names:
        raise DataError(f"{where}: holds no clients.")
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{where}: the client name '{twice}' stands twice; client names must differ.")
    for name in names:
        if not name or len(name) > 200 or name.startswith(".") or not name.isprintable() or any(c in "/\\" for c in name):
            raise DataError(f"{where}: {name!r} cannot be a client's name (it serves as a file name); use letters, digits, '-' and '_'.")
    return tuple(names)


def group_codes(values: npt.ArrayLike, where: str) -> tuple[Indices, tuple[str, ...]]:
    """Natural clients from one value a record: codes ``[n]`` and the sorted names (whole numbers as ``7``, not ``7.0``)."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{where}: the client of each record should be one value a record, but has shape {array.shape}.")
    if array.dtype.kind in "OUST":
        array = array.astype(str)
    found, codes = np.unique(array, return_inverse=True)
    names = [str(int(v)) if isinstance(v, np.number) and float(v).is_integer() else str(v) for v in found]
    return codes.astype(np.int64), check_names(names, where)


def build(
    where: str,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    test: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    groups: npt.ArrayLike | None = None,
    group_names: Sequence[str] | None = None,
    classes: int | None = None,
    columns: tuple[str, ...] = (),
) -> Raw:
    """Check a source's arrays and number its classes.

    Integer or text labels that are not 0..C-1 already are numbered in sorted order, over training and
    test set together; with ``classes`` given they must be 0..classes-1 and stay as they are. Float
    targets mean regression, unless ``classes`` is given.

    Args:
        where: the source, for messages.
        x: ``[n, *shape]``; floats become float32, uint8 are images, other integers become int64 tokens.
        y: ``[n]``.
        test: the same for the source's own test set.
        groups: the natural client of each record, any values; or codes, with ``group_names``.
        group_names: names of the codes in ``groups``.
        classes: declared number of classes.
        columns: names of the features of a table.

    Raises:
        DataError: no records, lengths or shapes that do not fit, values that are not finite, labels out of range.
    """
    features, targets = _features(x, where), _targets(y, where)
    _check_pair(features, targets, where)
    pairs = [(features, targets)]
    if test is not None:
        pairs.append((_features(test[0], f"{where} (test set)"), _targets(test[1], f"{where} (test set)")))
        _check_pair(*pairs[1], f"{where} (test set)")
        if pairs[1][0].shape[1:] != features.shape[1:]:
            raise DataError(
                f"{where}: training records have shape {features.shape[1:]}, test records {pairs[1][0].shape[1:]}; they must agree."
            )
    numbered, found = _number_classes([pair[1] for pair in pairs], classes, where)
    codes: Indices | None = None
    names: tuple[str, ...] = ()
    if groups is not None:
        if group_names is not None:
            codes, names = np.asarray(groups, dtype=np.int64), check_names(group_names, where)
        else:
            codes, names = group_codes(groups, where)
        if len(codes) != len(features):
            raise DataError(f"{where}: {len(codes)} client keys for {len(features)} records; there must be one each.")
    own_test = (pairs[1][0], numbered[1]) if test is not None else None
    return Raw(features, numbered[0], found, own_test, codes, names, columns)


def gather(x: RawFeatures, index: Indices) -> Features:
    """Rows ``index`` of ``x`` as a new C-contiguous array; uint8 images become float32 in 0..1."""
    dtype = np.float32 if x.dtype == np.uint8 else x.dtype
    out: Features = np.empty((len(index), *x.shape[1:]), dtype=dtype)
    for start in range(0, len(index), _BLOCK):
        rows = x[index[start : start + _BLOCK]]
        if x.dtype == np.uint8:
            np.divide(rows, np.float32(255), out=out[start : start + _BLOCK], dtype=np.float32)
        else:
            out[start : start + _BLOCK] = rows
    return out


def _array(values: npt.ArrayLike, what: str, where: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: the {what} are not one array ({error}); all records need the same shape.") from None


def _features(values: npt.ArrayLike, where: str) -> RawFeatures:
    array = _array(values, "features", where)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 0 or 0 in array.shape[1:]:
        raise DataError(f"{where}: features of shape {array.shape} hold no values; expected [records, ...].")
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind in "iu":
        return array.astype(np.int64, copy=False)
    if kind not in "fb":
        raise DataError(f"{where}: features are of type {array.dtype}, which is not a number type; convert them to float32.")
    with np.errstate(over="ignore"):
        features = array.astype(np.float32, copy=False)
    for start in range(0, len(features), _BLOCK):
        finite = np.isfinite(features[start : start + _BLOCK])
        if not finite.all():
            row = start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
            raise DataError(
                f"{where}: record {row + 1} has a feature that is not finite (NaN, infinite or beyond float32); clean the data."
            )
    return features


def _targets(values: npt.ArrayLike, where: str) -> npt.NDArray[Any]:
    array = _array(values, "labels", where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{where}: labels have shape {array.shape}; expected one label a record, [records].")
    if array.dtype.kind in "OT":
        try:
            array = array.astype(str)
        except (ValueError, TypeError):
            raise DataError(f"{where}: labels of type {array.dtype} are neither numbers nor text.") from None
    if array.dtype.kind not in "biufU":
        raise DataError(f"{where}: labels are of type {array.dtype}; expected integers, text, or floats (regression).")
    return array


def _check_pair(x: RawFeatures, y: npt.NDArray[Any], where: str) -> None:
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} records but {len(y)} labels; there must be one each.")
    if len(x) == 0:
        raise DataError(f"{where}: holds no records.")


def _number_classes(labels: list[npt.NDArray[Any]], classes: int | None, where: str) -> tuple[list[Targets], int | None]:
    if classes is not None and classes < 2:
        raise DataError(f"data.classes: {classes} is below 2.")
    floats = any(y.dtype.kind == "f" for y in labels)
    if floats:
        if not all(y.dtype.kind in "iuf" and np.isfinite(y).all() for y in labels):
            raise DataError(f"{where}: a label is not a finite number; clean the data.")
        if classes is None:
            return [y.astype(np.float32) for y in labels], None
        if not all((y == np.floor(y)).all() for y in labels):
            raise DataError(f"{where}: data.classes={classes} is given, but the labels are not whole numbers.")
        labels = [y.astype(np.int64) for y in labels]
    if len({y.dtype.kind == "U" for y in labels}) > 1:
        raise DataError(f"{where}: labels are text in one of training and test set and numbers in the other.")
    if classes is not None:
        for y in labels:
            if y.dtype.kind == "U" or y.min() < 0 or y.max() >= classes:
                odd = y[0] if y.dtype.kind == "U" else y[(y < 0) | (y >= classes)][0]
                raise DataError(f"{where}: found the label '{odd}', but data.classes={classes} asks for integers 0 to {classes - 1}.")
        return [y.astype(np.int64) for y in labels], classes
    found = np.unique(np.concatenate([np.unique(y) for y in labels]))
    if found.dtype.kind != "U" and found[0] == 0 and found[-1] == len(found) - 1:
        return [y.astype(np.int64) for y in labels], len(found)
    return [np.searchsorted(found, y).astype(np.int64) for y in labels], len(found)
