"""Defines sources of records, and checks the arrays of every source.

A source is a function ``source(where, **arguments) -> Whole | Silos`` that reads no records: ``where`` is the part of ``data.source`` after
the kind, the arguments are the other keys of the data section. :class:`Whole` loads all records at once; :class:`Silos` knows the names of
its clients without reading their records, so that each client loads only its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.data.labels import label_array, missing_values, number_classes, plain_array
from fedray.data.records import Features, Indices, Label, Targets
from fedray.data.whose import person_codes
from fedray.errors import DataError
from fedray.inputs import Input

#: Texts of missing values, which name no client.
_NO_CLIENT = frozenset(("nan", "NaN", "None", "NaT", "<NA>", "null", "NULL"))
_BLOCK = 8192  # rows that are converted or checked at once, so that little scratch memory is needed

#: Features of a source: float32, int64 tokens, or uint8 images (0..255), which :func:`gather` converts to float32 in 0..1.
RawFeatures = Features | npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Raw:
    """A source's records, checked, in the source's own order.

    Attributes:
        x: ``[n, *shape]`` float32, int64 or uint8.
        y: ``[n]`` int64 classes 0..C-1, or float32 in regression; ``[n, ...]`` if a record has several targets.
        classes: number C of classes; None in regression.
        test: features and targets of the source's own test set, or None.
        groups: int64 ``[n]``, each record's natural client as an index into ``group_names``; None without natural clients.
        group_names: names of the natural clients.
        columns: names of the features of a table.
        class_labels: the source's own label of each class, in class order; empty in regression.
        declared: whether the classes were declared, and not found in the records.
        divided_by: divisor by which the source has divided the user's values.
        test_groups: int64, each test record's natural client, -1 for a client without training records; None if it is not known.
        absent: names in ``data.drop`` that are no columns of a silo's table.
        inputs: the inputs that stand side by side in ``x``; empty if a record is one array.
        persons: whose each record is, int64 ``[n]``; None if it is not known.
        dropped: number of records that were left out because of missing cells.
    """

    x: RawFeatures
    y: Targets
    classes: int | None
    test: tuple[RawFeatures, Targets] | None = None
    groups: Indices | None = None
    group_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    class_labels: Sequence[Label] = ()
    declared: bool = False
    divided_by: float = 1.0
    test_groups: Indices | None = None
    absent: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    persons: Indices | None = None
    dropped: int = 0

    @property
    def scale(self) -> float:
        """Total divisor between the user's values and the features."""
        return 255.0 if self.x.dtype == np.uint8 else self.divided_by


@dataclass(frozen=True)
class Whole:
    """A source that is read as a whole."""

    load: Callable[[], Raw]


@dataclass(frozen=True)
class Silos:
    """A source in which each client has its own place.

    Attributes:
        names: names of the clients, found without reading a record.
        load: reads the records of one client; a test set in its result belongs to that client.
        classes: declared number of classes, because no process reads all silos; None in regression.
        class_labels: the source's own label of each class, in class order; empty in regression.
        test: reads the driver's test set as ``x`` and ``y`` of its result; None without such a set.
    """

    names: tuple[str, ...]
    load: Callable[[str], Raw]
    classes: int | None
    class_labels: Sequence[Label]
    test: Callable[[], Raw] | None = None


Source = Whole | Silos


def existing(path: str | Path, where: str) -> Path:
    """Return ``path`` with ``~`` expanded.

    Args:
        path: of a file or a folder.
        where: the config key that names the path, for messages.

    Raises:
        DataError: the path does not exist.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{where}: there is no file or folder '{found}' (looked from {Path.cwd()}); give its path in data.source.")
    return found


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Check that client names are different and can be file names (of ledgers, reports); returns them.

    Raises:
        DataError: a name cannot be used, two names are alike, or there are no names.
    """
    if not names:
        raise DataError(f"{where}: holds no clients.")
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{where}: the client name '{twice}' stands twice; client names must differ.")
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(" ".join(name.split()), name)
        if other != name:
            raise DataError(f"{where}: the client names {other!r} and {name!r} differ in spaces only; make them one.")
        if not name or len(name) > 200 or name.startswith(".") or not name.isprintable() or any(c in "/\\" for c in name):
            raise DataError(f"{where}: {name!r} cannot be a client's name (it serves as a file name); use letters, digits, '-' and '_'.")
    return tuple(names)


def group_codes(values: npt.ArrayLike, where: str) -> tuple[Indices, tuple[str, ...]]:
    """Number natural clients, given as one value per record.

    Returns:
        The number of each record's client, int64 ``[n]``, and the clients' names in order (a whole number as ``7``, not ``7.0``).

    Raises:
        DataError: not one value per record, a missing value, or a value that cannot be a client's name.
    """
    array = plain_array(values, "clients", where)
    if array.ndim != 1:
        raise DataError(f"{where}: the client of each record should be one value a record, but has shape {array.shape}.")
    missing = missing_values(array)
    if array.dtype.kind in "OUT":
        missing |= np.array([isinstance(value, str) and value in _NO_CLIENT for value in array], dtype=np.bool_)
    if missing.any():
        raise DataError(
            f"{where}: {int(missing.sum())} records say of no client that they are its, the first is record {int(missing.argmax()) + 1}."
        )
    if array.dtype.kind == "f" and (np.abs(array) >= 2**53).any():
        raise DataError(
            f"{where}: the clients are numbers of more than 15 digits, kept as floats, of which several are one; make them text."
        )
    if array.dtype.kind in "OUST":
        array = np.array([value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in array])
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
    test_groups: npt.ArrayLike | None = None,
    classes: int | None = None,
    labels: Sequence[Label] | None = None,
    class_labels: Sequence[Label] | None = None,
    columns: tuple[str, ...] = (),
    inputs: tuple[Input, ...] = (),
    persons: npt.ArrayLike | None = None,
    test_persons: npt.ArrayLike | None = None,
) -> Raw:
    """Check a source's arrays and number its classes.

    With ``classes``, labels must be the integers 0..classes-1 and are kept; with ``labels``, a label's class is its position in that list.
    Otherwise float targets mean regression, and integer or text labels that are not 0..C-1 are numbered in sorted order, over the training
    and the test set together.

    Args:
        where: the source, for messages.
        x: ``[n, *shape]``; floats become float32, uint8 are images, other integers become int64 tokens.
        y: ``[n]``, or numbers ``[n, ...]`` for several targets per record, which are classes only with ``classes``.
        test: features and labels of the source's own test set.
        groups: the natural client of each record, of any type; with ``group_names``, an index into these.
        group_names: names of the natural clients.
        test_groups: the natural client of each test record, in the form of ``groups``.
        classes: declared number of classes.
        labels: declared labels, in class order.
        class_labels: with ``classes``, the meaning of each class; default: its number.
        columns: names of the features of a table.
        inputs: the inputs that stand side by side in ``x``.
        persons: whose each record is, of any type.
        test_persons: whose each test record is; with persons and a test set of the source.

    Raises:
        DataError: no records, lengths or shapes that do not fit, values that are not finite, labels out of range.
    """
    features, targets = checked_pair(x, y, where, labels)
    pairs = [(features, targets)]
    if test is not None:
        pairs.append(checked_pair(*test, f"{where} (test set)", labels))
        if pairs[1][0].shape[1:] != features.shape[1:]:
            raise DataError(
                f"{where}: training records have shape {features.shape[1:]}, test records {pairs[1][0].shape[1:]}; they must agree."
            )
        if pairs[1][0].dtype != features.dtype:
            raise DataError(
                f"{where}: training records are {features.dtype}, test records {pairs[1][0].dtype}, which are read in different ways "
                "(uint8 as images 0..255, other integers as tokens); make them of one type."
            )
    numbered = number_classes([pair[1] for pair in pairs], where, classes, labels, class_labels)
    codes: Indices | None = None
    names: tuple[str, ...] = ()
    if groups is not None:
        if group_names is not None:
            codes, names = np.asarray(groups, dtype=np.int64), check_names(group_names, where)
        else:
            codes, names = group_codes(groups, where)
        if len(codes) != len(features):
            raise DataError(f"{where}: {len(codes)} client keys for {len(features)} records; there must be one each.")
    test_codes = _test_codes(test_groups, names, group_names is not None, where) if test_groups is not None and groups is not None else None
    if test_codes is not None and len(test_codes) != len(pairs[-1][0]):
        raise DataError(f"{where}: {len(test_codes)} client keys for {len(pairs[-1][0])} test records; there must be one each.")
    own_test = (pairs[1][0], numbered.targets[1]) if test is not None else None
    return Raw(
        features,
        numbered.targets[0],
        numbered.classes,
        own_test,
        codes,
        names,
        columns,
        numbered.class_labels,
        numbered.declared,
        test_groups=test_codes,
        inputs=inputs,
        persons=None if persons is None else person_codes(persons, test_persons, len(features), where),
    )


def _test_codes(groups: npt.ArrayLike, names: tuple[str, ...], coded: bool, where: str) -> Indices:
    """Return the numbers of the test records' clients among the training records' clients, -1 for other clients."""
    if coded:
        return np.asarray(groups, dtype=np.int64)
    codes, found = group_codes(groups, f"{where} (test set)")
    place = {name: k for k, name in enumerate(names)}
    return np.array([place.get(name, -1) for name in found], dtype=np.int64)[codes]


def gather(x: RawFeatures, index: Indices) -> Features:
    """Copy rows ``index`` of ``x`` to a new C-contiguous array; uint8 images become float32 in 0..1."""
    dtype = np.float32 if x.dtype == np.uint8 else x.dtype
    out: Features = np.empty((len(index), *x.shape[1:]), dtype=dtype)
    for start in range(0, len(index), _BLOCK):
        rows = x[index[start : start + _BLOCK]]
        if x.dtype == np.uint8:
            np.divide(rows, np.float32(255), out=out[start : start + _BLOCK], dtype=np.float32)
        else:
            out[start : start + _BLOCK] = rows
    return out


def feature_array(values: npt.ArrayLike, where: str) -> RawFeatures:
    """Check features and convert them to float32, int64 (tokens) or uint8 (images) ``[n, ...]``.

    Raises:
        DataError: no values, values that are not finite, or a type that cannot be features.
    """
    array = plain_array(values, "features", where)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 0 or 0 in array.shape[1:]:
        raise DataError(f"{where}: features of shape {array.shape} hold no values; expected [records, ...].")
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind in "iu" and array.dtype.itemsize == 2 and array.ndim > 2:
        raise DataError(
            f"{where}: records of shape {array.shape[1:]} and type {array.dtype} are taken for 16-bit images; "
            "give them as floats 0..1, such as (x / 65535).astype('float32')."
        )
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


def checked_pair(
    x: npt.ArrayLike, y: npt.ArrayLike, where: str, known: Sequence[Label] | None = None
) -> tuple[RawFeatures, npt.NDArray[Any]]:
    """Check features and labels that belong together.

    Returns:
        The features, and the labels as :func:`fedray.data.labels.label_array` returns them.

    Raises:
        DataError: no records, not one label per record, or values that cannot be used.
    """
    features, targets = feature_array(x, where), label_array(y, where, known)
    if len(features) != len(targets):
        raise DataError(f"{where}: {len(features)} records but {len(targets)} labels; there must be one each.")
    if len(features) == 0:
        raise DataError(f"{where}: holds no records.")
    return features, targets
