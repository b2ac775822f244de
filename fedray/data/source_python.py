"""The user's own function or class as a source, by import path."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedray.components import check_arguments, import_path
from fedray.data.labels import label_array
from fedray.data.packing import pack
from fedray.data.records import Indices, Label, Records
from fedray.data.source import Raw, RawFeatures, Silos, Source, Whole, build, check_names, checked_pair
from fedray.data.table import frame_features
from fedray.errors import DataError, blaming
from fedray.inputs import Input, described

_PARTS = "(x, y), (x, y, persons) or (x, y, x_test, y_test)"
_SHAPES = f"{_PARTS}, or a dict of client name to these"
_TEST = "test"


def python(where: str, *, classes: int | Literal["own"] | None = "own", labels: Sequence[Label] | None = None, **arguments: Any) -> Source:
    """Your own function or class, as python:package.module:name; other keys of the data section are its arguments.

    A function returns ``(x, y)``, ``(x, y, persons)`` with one value a record that says whose it is, ``(x, y, x_test, y_test)``, or
    a dict of client name to these (natural clients). In such a dict the entry ``"test"`` is no client but the driver's test set ``(x, y)``; clients' own test sets are evaluated on at the
    driver, all together, or at the clients with data.holdout.at=clients. ``x`` is ``[n, ...]`` (floats; uint8 images 0..255,
    which become 0..1; other integers are tokens) or a pandas frame of numbers, or a dict of input name to these, which the model
    takes as keyword arguments; ``y`` is ``[n]`` integers or text (classes) or
    floats (regression), or ``[n, ...]`` numbers where a record has several targets.

    A class is a source with one place a client: its instances have ``clients() -> list[str]``, which reads no
    records, ``load(client) -> (x, y)``, ``(x, y, persons)`` or ``(x, y, x_test, y_test)``, called only where that client lives, perhaps
    ``test() -> (x, y)``, the driver's test set, and ``classes`` (a number, or None in regression; not needed where the config
    declares them).

    Args:
        where: package.module:name.
        classes: labels are the integers 0..classes-1 and stay what they are; null = regression (of a class); own = as the class
            says, or of a function those found, numbered in sorted order. Given to the function or class, too, if it takes it.
        labels: the labels in class order, instead of classes; given on in the same way.
        arguments: what the function or class takes.

    Raises:
        ConfigError: it cannot be imported, or does not take the arguments.
        DataError: what it returns is none of the above.
    """
    made = import_path(f"python:{where}", "data.source")
    name = f"python:{where}"
    if not callable(made):
        raise DataError(f"{name}: is neither a function nor a class; it should return {_SHAPES}.")
    try:
        taken: Mapping[str, Any] = inspect.signature(made).parameters
    except ValueError:  # some functions that are written in C
        taken = {}
    given: dict[str, Any] = ({"classes": classes} if classes != "own" else {}) | ({"labels": labels} if labels is not None else {})
    checked = check_arguments(made, {**arguments, **{k: v for k, v in given.items() if k in taken}}, "data")
    count = None if classes == "own" else classes
    if not inspect.isclass(made):
        return Whole(lambda: _whole(_call(name, made, **checked), name, count, labels))
    silos: Any = _call(name, made, **checked)
    if not (callable(getattr(silos, "clients", None)) and callable(getattr(silos, "load", None))):
        raise DataError(f"{name}: a class needs clients(), load(client) and classes; a function returns {_SHAPES}.")
    clients = _call(name, silos.clients)
    if not isinstance(clients, Iterable) or isinstance(clients, str):
        raise DataError(f"{name}: clients() should give the clients' names, but gave {_what(clients)}.")
    names = check_names([str(n) for n in clients], name)
    if labels is None and count is None:
        if classes == "own" and not hasattr(silos, "classes"):
            raise DataError(f"{name}: says nothing of its classes; give it the attribute classes, or set data.classes or data.labels.")
        count = getattr(silos, "classes", None)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise DataError(f"{name}: classes should be a whole number above 0, or None in regression, but is {count!r}.")
    found = len(labels) if labels is not None else count
    stand_for = tuple(labels) if labels is not None else range(count or 0)
    return Silos(
        names,
        lambda client: _silo(_call(name, silos.load, client), f"{name} (client {client})", count, labels),
        found,
        stand_for,
        (lambda: _silo(_call(name, silos.test), f"{name} (test set)", count, labels)) if callable(getattr(silos, "test", None)) else None,
    )


def _call(name: str, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """Call the user's code; its errors become one sentence, with the original error as the cause."""
    with blaming(name, DataError):
        return function(*arguments, **named)


def _pair(value: Any, where: str, expected: str) -> tuple[Any, Any]:
    if isinstance(value, Records):
        return value.x, value.y
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"{where}: should give {expected}, but gave {_what(value)}.")
    return value[0], value[1]


def _what(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _parts(value: Any, where: str, expected: str = _PARTS) -> tuple[tuple[Any, Any], tuple[Any, Any] | None, Any]:
    """Return the training set, the test set and the persons; the test set is None for ``(x, y)``, the persons where they are not given."""
    if isinstance(value, tuple | list) and len(value) == 4:
        return (value[0], value[1]), (value[2], value[3]), None
    if isinstance(value, tuple | list) and len(value) == 3:
        return (value[0], value[1]), None, value[2]
    if isinstance(value, Records):
        return (value.x, value.y), None, value.persons
    return _pair(value, where, expected), None, None


def _silo(value: Any, where: str, classes: int | None, labels: Sequence[Label] | None) -> Raw:
    train, test, persons = _parts(value, where)
    if classes is None and labels is None:
        train = train[0], _numbers(train[1], where)
        test = None if test is None else (test[0], _numbers(test[1], f"{where} (test set)"))
    return _built(where, train, test, classes=classes, labels=labels, persons=persons)


def _built(where: str, train: tuple[Any, Any], test: tuple[Any, Any] | None, **more: Any) -> Raw:
    """Call :func:`fedray.data.source.build` for features in any form; the test set must have the training set's form."""
    x, form = _formed(train[0], None, where)
    if test is not None:
        test = _formed(test[0], form, f"{where} (test set)")[0], test[1]
    return build(where, x, train[1], test=test, **form._asdict(), **more)


class _Form(NamedTuple):
    """The meaning of an array of features: the names of its columns, or several inputs that stand side by side."""

    columns: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()


def _formed(x: Any, known: _Form | None, where: str) -> tuple[Any, _Form]:
    """Return features as one array, and their form, which must be the known one; a frame's columns are put in its order."""
    if isinstance(x, Mapping):
        x, inputs = pack(x, where, known.inputs if known is not None else ())
        form = _Form(inputs=inputs)
    else:
        form = _Form(known.columns if known is not None else ())
        pandas = sys.modules.get("pandas")  # if pandas is not imported, no value is a frame
        if pandas is not None and isinstance(x, pandas.DataFrame):
            x, columns = frame_features(x, where, form.columns)
            form = _Form(columns)
    if known is not None and form.inputs != known.inputs:
        one, several = (where, "others") if form.inputs == () else ("other parts", where)
        raise DataError(
            f"{where}: records are one array in {one}, but have the inputs {described(form.inputs or known.inputs)} in {several}."
        )
    return x, form


def _numbers(targets: Any, where: str) -> npt.NDArray[np.float32]:
    array = label_array(targets, where)
    if array.dtype.kind == "U":
        raise DataError(f"{where}: classes is None (regression), but a target is not a number.")
    return array.astype(np.float32)


def _whole(value: Any, name: str, classes: int | None, labels: Sequence[Label] | None) -> Raw:
    if isinstance(value, Mapping):
        return _mapping(value, name, classes, labels)
    train, test, persons = _parts(value, name, _SHAPES)
    return _built(name, train, test, classes=classes, labels=labels, persons=persons)


def _mapping(value: Mapping[Any, Any], name: str, classes: int | None, labels: Sequence[Label] | None) -> Raw:
    clients = [client for client in value if client != _TEST]
    if not clients:
        raise DataError(f"{name}: gave a dict without a client; it should have a (x, y) for each.")
    names = check_names([str(client) for client in clients], name)
    pairs = [_parts(value[client], f"{name} (client {own})") for client, own in zip(clients, names, strict=True)]
    tested = [own for own, (_, test, _) in zip(names, pairs, strict=True) if test is not None]
    if tested and (_TEST in value or len(tested) < len(names)):
        other = f"there is '{_TEST}', too" if _TEST in value else f"client {next(own for own in names if own not in tested)} has none"
        raise DataError(f"{name}: client {tested[0]} has a test set of its own, but {other}; give each client one, or none.")
    wheres = [f"{name} (client {own})" for own in names]
    unsaid = [own for own, (*_, persons) in zip(names, pairs, strict=True) if persons is None]
    if 0 < len(unsaid) < len(names):
        raise DataError(f"{name}: client {unsaid[0]} does not say whose its records are, others do; give each client persons, or none.")
    train, groups, form = _stacked([train for train, *_ in pairs], wheres, labels)
    test, test_groups = None, None
    if tested:
        tests = [test for _, test, _ in pairs if test is not None]
        test, test_groups, _ = _stacked(tests, [f"{where} (test set)" for where in wheres], labels, form)
    elif _TEST in value:
        x, y = _pair(value[_TEST], f"{name} ({_TEST})", "(x, y)")
        test = _formed(x, form, f"{name} ({_TEST})")[0], y
    more: dict[str, Any] = {"groups": groups, "group_names": names, "test_groups": test_groups, "classes": classes, "labels": labels}
    if not unsaid:
        more["persons"] = np.concatenate([np.asarray(persons).astype(object) for *_, persons in pairs])
    return build(name, train[0], train[1], test=test, columns=form.columns, inputs=form.inputs, **more)


def _stacked(
    pairs: Sequence[tuple[Any, Any]], wheres: Sequence[str], labels: Sequence[Label] | None, form: _Form | None = None
) -> tuple[tuple[Any, Any], Indices, _Form]:
    """Return the clients' records one after the other, the number of each record's client, and the form of their features."""
    features: list[RawFeatures] = []
    targets: list[npt.NDArray[Any]] = []
    for (features_of, labels_of), where in zip(pairs, wheres, strict=True):
        formed, form = _formed(features_of, form, where)
        x, y = checked_pair(formed, labels_of, where, labels)
        if features and (x.shape[1:] != features[0].shape[1:] or x.dtype != features[0].dtype):
            raise DataError(f"{where}: has records of {x.shape[1:]} {x.dtype}, others {features[0].shape[1:]} {features[0].dtype}.")
        if targets and y.shape[1:] != targets[0].shape[1:]:
            raise DataError(f"{where}: has targets of shape {y.shape[1:]}, others of {targets[0].shape[1:]}; they must agree.")
        if targets and labels is None and (y.dtype.kind in "fU" or targets[0].dtype.kind in "fU") and y.dtype.kind != targets[0].dtype.kind:
            raise DataError(f"{where}: has labels of {y.dtype}, others of {targets[0].dtype}; make them of one type.")
        features.append(x)
        targets.append(y)
    groups = np.repeat(np.arange(len(features)), [len(x) for x in features])
    return (np.concatenate(features), np.concatenate(targets)), groups, form or _Form()


SOURCES = {"python": python}
