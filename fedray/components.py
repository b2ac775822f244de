"""Finds the parts that a config names.

A room (a package such as ``fedray.models``) offers its parts as dictionaries: each module in the package may define the room's table
(``MODELS = {"softmax": softmax}``), and the room is their union. To add a part is to add one file. In place of a built-in part a config may
name the user's own as ``python:package.module:attribute``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedray.errors import ConfigError, raised, shortened


@dataclass(frozen=True)
class Room:
    """A kind of part.

    Attributes:
        package: the package whose modules hold the parts.
        table: name of the modules' tables of parts.
        path: dotted config key that names a part.
        own: arguments of a part that the program passes itself; None if configs pass no arguments.
    """

    package: str
    table: str
    path: str
    own: tuple[str, ...] | None = ()

    def parts(self) -> dict[str, Any]:
        """Return the parts of all modules of the package by name."""
        return _parts(self.package, self.table)


@cache
def _parts(package: str, table: str) -> dict[str, Any]:
    root = importlib.import_module(package)
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(root.__path__):
        parts = vars(importlib.import_module(f"{package}.{info.name}")).get(table)
        if isinstance(parts, dict):  # a module may also import the Room of that name
            found.update(parts)
    return found


MODELS = Room("fedray.models", "MODELS", "model.kind", ("input_shape", "outputs"))
ADAPTERS = Room("fedray.models", "ADAPTERS", "model.adapters.kind", ("model",))
SOURCES = Room("fedray.data", "SOURCES", "data.source", ("where",))
PARTITIONERS = Room("fedray.data", "PARTITIONERS", "data.partition.kind", ("labels", "groups", "draws"))
TRANSFORMS = Room("fedray.data", "TRANSFORMS", "data.normalize.kind")
ALGORITHMS = Room("fedray.algorithms", "ALGORITHMS", "algorithm.kind")
SERVERS = Room("fedray.algorithms", "SERVERS", "server.kind")
COMPRESSIONS = Room("fedray.updates", "COMPRESSIONS", "compression.kind")
BOUNDS = Room("fedray.updates", "BOUNDS", "bound.kind")
AGGREGATORS = Room("fedray.aggregation", "AGGREGATORS", "aggregation.kind", ("total",))
MECHANISMS = Room("fedray.privacy.mechanisms", "MECHANISMS", "privacy.mechanism.kind")
SAMPLERS = Room("fedray.rounds", "SAMPLERS", "cohort.kind", ("population", "coins"))
LOSSES = Room("fedray.training", "LOSSES", "training.loss", None)
METRICS = Room("fedray.training", "METRICS", "evaluation.metrics", None)
SCHEDULES = Room("fedray.training", "SCHEDULES", "training.schedule.kind", ("round", "rounds"))
ENGINES = Room("fedray.training", "ENGINES", "training.engine", None)

_PROVIDED: dict[str, Any] = {}


def provide(parts: Mapping[str, Any]) -> None:
    """Make the caller's objects (``fedray.run(model=...)``) available in this process, by names of the form ``python:provided:NAME``."""
    _PROVIDED.update(parts)


ROOMS: Mapping[str, Room] = {
    "models": MODELS,
    "adapters": ADAPTERS,
    "data": SOURCES,
    "partitioners": PARTITIONERS,
    "normalizers": TRANSFORMS,
    "algorithms": ALGORITHMS,
    "servers": SERVERS,
    "compressions": COMPRESSIONS,
    "bounds": BOUNDS,
    "aggregators": AGGREGATORS,
    "cohorts": SAMPLERS,
    "mechanisms": MECHANISMS,
    "losses": LOSSES,
    "metrics": METRICS,
    "schedules": SCHEDULES,
    "engines": ENGINES,
}


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return the sentence `` Did you mean 'x'?`` for the most similar allowed name, or an empty string."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


def short_name(name: str) -> str:
    """Return a part's name for metrics: its own, or the attribute of ``python:module:attribute``."""
    return name.rpartition(":")[2]


def find(room: Room, name: str) -> Any:
    """Return the part with this name; ``python:module:attribute`` is imported.

    Raises:
        ConfigError: no such part exists; the sentence names the config key and the allowed names.
    """
    if name.startswith("python:"):
        return import_path(name, room.path)
    parts = room.parts()
    if name not in parts:
        raise ConfigError(
            f"{room.path}: '{name}' is not known; use one of {', '.join(sorted(parts))}, or python:module:name.{nearest(name, parts)}"
        )
    return parts[name]


def import_path(name: str, path: str) -> Any:
    """Import ``python:package.module:attribute``; ``path`` is the config key that names it, for messages."""
    if name in _PROVIDED:
        return _PROVIDED[name]
    module, _, attribute = name.removeprefix("python:").partition(":")
    if not module or not attribute:
        raise ConfigError(f"{path}: '{name}' should read python:package.module:name.")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: cannot import '{module}' ({error}); is it on PYTHONPATH or beside the config?") from error
    except Exception as error:
        raise ConfigError(f"{path}: importing '{module}' failed with {raised(error)}.") from error
    if not hasattr(imported, attribute):
        raise ConfigError(f"{path}: module '{module}' has no '{attribute}'.{nearest(attribute, vars(imported))}")
    return getattr(imported, attribute)


def check_arguments(factory: Callable[..., Any], given: Mapping[str, Any], path: str, own: Iterable[str] = ()) -> dict[str, Any]:
    """Check config arguments against a factory's annotated keyword parameters.

    Args:
        factory: the function or class whose parameters are checked.
        given: keys and values from the config.
        path: dotted config key of the section, for messages, e.g. ``model``.
        own: parameters that the caller passes itself.

    Returns:
        The arguments, converted to the annotated types.

    Raises:
        ConfigError: unknown, missing or mistyped arguments, each with its path; or a factory whose parameters cannot be known.
    """
    name = getattr(factory, "__name__", str(factory))
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some functions that are written in C
        raise ConfigError(
            f"{path}: what arguments {name} takes cannot be known; name a function or class that is written in Python."
        ) from None
    parameters = {
        n: p for n, p in signature.parameters.items() if n not in set(own) and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in given:
        if key not in parameters and not open_ended:
            allowed = ", ".join(sorted(parameters)) or "none"
            raise ConfigError(f"{path}.{key}: unknown argument of {name} (it takes {allowed}).{nearest(key, parameters)}")
    try:
        hints = typing.get_type_hints(factory)
    except (NameError, TypeError):
        hints = {}
    checked: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if key not in given:
            if parameter.default is parameter.empty:
                raise ConfigError(f"{path}.{key}: {name} needs it; add {path}.{key}=VALUE.")
            continue
        checked[key] = _convert(hints.get(key), given[key], f"{path}.{key}")
    return checked | {k: v for k, v in given.items() if k not in parameters}


def _convert(hint: Any, value: Any, path: str) -> Any:
    if hint is None or hint is Any:
        return value
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value, strict=False)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {shortened(repr(value))}.") from None


@dataclass(frozen=True)
class Listing:
    """One row of ``fedray list``."""

    name: str
    summary: str
    source: str


def listing(room: Room) -> list[Listing]:
    """Return the parts of a room, each with the first line of its docstring and the line ``Source: ...``."""
    rows = []
    for name, part in sorted(room.parts().items()):
        text = inspect.getdoc(part) or ""
        lines = text.splitlines() or [""]
        source = next((line.removeprefix("Source:").strip() for line in lines if line.startswith("Source:")), "")
        rows.append(Listing(name, lines[0].rstrip("."), source))
    return rows
