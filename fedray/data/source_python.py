"""The user's own data, by import path."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedray.components import check_arguments, import_path
from fedray.data.records import Records
from fedray.data.source import Raw, Silos, Source, Whole, build, check_names
from fedray.errors import DataError, FedrayError

_SHAPES = "(x, y), (x, y, x_test, y_test), or a dict of client name to (x, y)"


def python(where: str, **arguments: Any) -> Source:
    """Your own function or class, as python:package.module:name; other keys of the data section are its arguments.

    A function returns ``(x, y)``, ``(x, y, x_test, y_test)``, or a dict of client name to ``(x, y)`` (natural
    clients). ``x`` is ``[n, ...]`` (floats; uint8 images 0..255, which become 0..1; other integers are tokens), ``y`` is ``[n]``
    integers or text (classes) or floats (regression).

    A class is a source with one place a client: its instances have ``clients() -> list[str]``, which reads no
    records, ``load(client) -> (x, y)``, called only where that client lives, and ``classes`` (a number, or
    None in regression).

    Raises:
        ConfigError: it cannot be imported, or does not take the arguments.
        DataError: what it returns is none of the above.
    """
    made = import_path(f"python:{where}", "data.source")
    name = f"python:{where}"
    if not callable(made):
        raise DataError(f"{name}: is neither a function nor a class; it should return {_SHAPES}.")
    checked = check_arguments(made, arguments, "data")
    if not inspect.isclass(made):
        return Whole(lambda: _whole(made(**checked), name))
    silos: Any = made(**checked)
    if not (callable(getattr(silos, "clients", None)) and callable(getattr(silos, "load", None)) and hasattr(silos, "classes")):
        raise DataError(f"{name}: a class needs clients(), load(client) and classes; a function returns {_SHAPES}.")
    classes = silos.classes
    if classes is not None and not isinstance(classes, int):
        raise DataError(f"{name}: classes should be a whole number, or None in regression, but is {classes!r}.")
    names = check_names([str(n) for n in _call(name, silos.clients)], name)
    return Silos(names, lambda client: _silo(_call(name, silos.load, client), name, client, classes), classes)


def _call(name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call the user's code; what it raises becomes one sentence (the traceback is chained to it)."""
    try:
        return function(*arguments, **named)
    except FedrayError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise DataError(f"{name}: failed with {type(error).__name__}: {lines[0]}.") from error


def _pair(value: Any, where: str, expected: str) -> tuple[Any, Any]:
    if isinstance(value, Records):
        return value.x, value.y
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"{where}: should give {expected}, but gave {_what(value)}.")
    return value[0], value[1]


def _what(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _silo(value: Any, name: str, client: str, classes: int | None) -> Raw:
    where = f"{name} (client {client})"
    x, y = _pair(value, where, "(x, y)")
    if classes is None:
        try:
            y = np.asarray(y, dtype=np.float32)
        except (TypeError, ValueError):
            raise DataError(f"{where}: classes is None (regression), but a target is not a number.") from None
    return build(where, x, y, classes=classes)


def _whole(value: Any, name: str) -> Raw:
    if isinstance(value, Mapping):
        if not value:
            raise DataError(f"{name}: gave an empty dict; it should have a (x, y) for each client.")
        pairs = {str(client): _pair(pair, f"{name} (client {client})", "(x, y)") for client, pair in value.items()}
        features: list[Any] = []
        targets: list[Any] = []
        for client, (x, y) in pairs.items():
            checked = build(f"{name} (client {client})", x, y)
            if features and (checked.x.shape[1:] != features[0].shape[1:] or checked.x.dtype != features[0].dtype):
                raise DataError(
                    f"{name}: client {client} has records of {checked.x.shape[1:]} {checked.x.dtype}, "
                    f"others {features[0].shape[1:]} {features[0].dtype}."
                )
            features.append(checked.x)
            targets.append(np.asarray(y).reshape(-1))
        codes = np.repeat(np.arange(len(pairs)), [len(x) for x in features])
        return build(name, np.concatenate(features), np.concatenate(targets), groups=codes, group_names=list(pairs))
    if isinstance(value, tuple | list) and len(value) == 4:
        return build(name, value[0], value[1], test=(value[2], value[3]))
    x, y = _pair(value, name, _SHAPES)
    return build(name, x, y)


SOURCES = {"python": python}
