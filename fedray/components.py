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
from functools import cache, partial
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from fedray.errors import ConfigError, blaming, raised, shortened


@dataclass(frozen=True)
class Room:
    """A kind of part.

    Attributes:
        package: the package whose modules hold the parts.
        table: name of the modules' tables of parts.
        path: dotted config key that names a part.
        own: arguments that the program passes itself: by position, so that the user's own part may call them otherwise.
        keys: whether configs pass further arguments, by keys of the section.
        named: whether the program passes ``own`` by name, each only to a part that takes it.
        text: whether a config may give the part's name alone in place of its section, which then is at ``path``.
    """

    package: str
    table: str
    path: str
    own: tuple[str, ...] = ()
    keys: bool = True
    named: bool = False
    text: bool = False

    @property
    def section(self) -> str:
        """Dotted config key of the section that holds the part's arguments."""
        return self.path if self.text else self.path.rpartition(".")[0]

    @property
    def call(self) -> str:
        """What a part is, as the object of ``name ...``."""
        return "a function or class that makes one" if self.named or not self.own else f"a function of ({', '.join(self.own)})"

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


MODELS = Room("fedray.models", "MODELS", "model.kind", ("input_shape", "outputs"), named=True)
ADAPTERS = Room("fedray.models", "ADAPTERS", "model.adapters.kind", ("model",))
SOURCES = Room("fedray.data", "SOURCES", "data.source", ("where",))
PARTITIONERS = Room("fedray.data", "PARTITIONERS", "data.partition.kind", ("labels", "groups", "draws"))
TRANSFORMS = Room("fedray.data", "TRANSFORMS", "data.normalize.kind")
ALGORITHMS = Room("fedray.algorithms", "ALGORITHMS", "algorithm.kind")
SERVERS = Room("fedray.algorithms", "SERVERS", "server.kind")
COMPRESSIONS = Room("fedray.updates", "COMPRESSIONS", "compression.kind")
BOUNDS = Room("fedray.updates", "BOUNDS", "bound.kind")
DOWNLOADS = Room("fedray.updates", "DOWNLOADS", "download.kind")
PROTOCOLS = Room("fedray.secure", "PROTOCOLS", "secure.kind")
AGGREGATORS = Room("fedray.aggregation", "AGGREGATORS", "aggregation.kind")
ATTACKS = Room("fedray.attacks", "ATTACKS", "attack.kind")
MECHANISMS = Room("fedray.privacy.mechanisms", "MECHANISMS", "privacy.mechanism.kind")
SAMPLERS = Room("fedray.rounds", "SAMPLERS", "cohort.kind", ("population", "coins"))
PACINGS = Room("fedray.rounds", "PACINGS", "pacing.kind")
LOSSES = Room("fedray.training", "LOSSES", "training.loss", ("outputs", "targets"), text=True)
METRICS = Room("fedray.training", "METRICS", "evaluation.metrics", ("outputs", "targets"), keys=False)
SCHEDULES = Room("fedray.training", "SCHEDULES", "training.schedule.kind", ("round", "rounds"))
QUERIES = Room("fedray.queries", "QUERIES", "queries.kind")
ENGINES = Room("fedray.training", "ENGINES", "training.engine", ("model", "x", "y", "job"), keys=False)

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
    "downloads": DOWNLOADS,
    "aggregators": AGGREGATORS,
    "attacks": ATTACKS,
    "protocols": PROTOCOLS,
    "cohorts": SAMPLERS,
    "pacings": PACINGS,
    "mechanisms": MECHANISMS,
    "losses": LOSSES,
    "metrics": METRICS,
    "schedules": SCHEDULES,
    "engines": ENGINES,
    "queries": QUERIES,
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


def is_own(name: str) -> bool:
    """Whether a config names a part of the user's own."""
    return name.startswith("python:")


def find_callable(room: Room, name: str) -> Callable[..., Any]:
    """Return the part with this name, which can be called; the user's own, if it takes what the program passes by position.

    Raises:
        ConfigError: no such part exists, or it cannot be called so.
    """
    part = find(room, name)
    if not callable(part):
        raise ConfigError(f"{room.path}: '{name}' is a {type(part).__name__}; name {room.call}.")
    if is_own(name) and room.own and not room.named:
        _check_call(room, name, part)
    return part  # type: ignore[no-any-return]


def configured(room: Room, name: str, given: Mapping[str, Any]) -> partial[Any]:
    """Return the part with this name as a function of what the program passes by position alone: the config's arguments are checked and bound.

    Args:
        room: the kind of part.
        name: of the part.
        given: the keys and values of its section beside the name.

    Raises:
        ConfigError: as :func:`find_callable` and :func:`check_arguments`.
    """
    part = find_callable(room, name)
    return partial(part, **check_arguments(part, given, room.section, own=_taking(room, part)))


def made(room: Room, name: str, given: Mapping[str, Any]) -> Any:
    """Return what the part with this name makes of the config's arguments alone.

    Args:
        room, name, given: as of :func:`configured`.

    Raises:
        ConfigError: as :func:`configured`, or the part fails.
    """
    factory = configured(room, name, given)
    with blaming(f"{room.path}: making '{name}'"):
        return factory()


def _taking(room: Room, part: Callable[..., Any]) -> list[str]:
    """The names of the parameters of a part that take what the program passes by position."""
    try:
        parameters = inspect.signature(part).parameters.values()
    except ValueError:  # some functions that are written in C
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(room.own)]


def _check_call(room: Room, name: str, part: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(part).parameters
    except ValueError:
        return
    taking, wanted = _taking(room, part), f"({', '.join(room.own)})"
    if len(taking) < len(room.own) and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        raise ConfigError(
            f"{room.path}: '{name}' takes ({', '.join(map(str, parameters.values()))}), but is called with {wanted}; write it so."
        )
    if room.keys:
        return
    for p in parameters.values():
        if p.name not in taking and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise ConfigError(f"{room.path}: '{name}' needs {p.name} besides {wanted}, which a config cannot give; give it a default.")


def import_path(name: str, path: str) -> Any:
    """Import ``python:package.module:attribute``; ``path`` is the config key that names it, for messages."""
    if name in _PROVIDED:
        return _PROVIDED[name]
    module, _, attribute = name.removeprefix("python:").partition(":")
    if not module or not attribute:
        raise ConfigError(f"{path}: '{name}' should read python:package.module:name.")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):  # and not one that the user's imports
            raise ConfigError(f"{path}: cannot import '{module}' ({error}); is it on PYTHONPATH or beside the config?") from error
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
        hints = typing.get_type_hints(factory, include_extras=True)
    except Exception:  # whatever reading the user's annotations raises
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
    except PydanticUserError:  # an annotation that says nothing of values
        return value
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
