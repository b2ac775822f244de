"""Describes the parts that a config can name from their docstrings and signatures, for ``fedray list``."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

from fedray.components import Room, nearest
from fedray.errors import ConfigError, shortened

_ENDS = re.compile(r"^(Args|Attributes|Raises|Returns|Source):")
#: Characters of a default that fit on a line.
_LONGEST_DEFAULT = 40
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "anything"}


@dataclass(frozen=True)
class Argument:
    """A key of a part's section: its name, its type in words, its default as in a config, and its meaning."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """A part: the config key that names it, the section of its arguments, its name, its description, its arguments and its source."""

    path: str
    section: str
    name: str
    text: str
    arguments: Sequence[Argument]
    source: str


def describe(room: Room, name: str) -> Description:
    """Describe a part of a room.

    Raises:
        ConfigError: the room has no part with this name.
    """
    parts = room.parts()
    if name not in parts:
        raise ConfigError(f"list: there is no '{name}' for {room.path}; choose from {', '.join(sorted(parts))}.{nearest(name, parts)}")
    part = parts[name]
    lines = (inspect.getdoc(part) or "").splitlines()
    end = next((n for n, line in enumerate(lines) if _ENDS.match(line)), len(lines))
    source = ""
    for n, line in enumerate(lines):
        if line.startswith("Source:"):
            rest = lines[n + 1 :]
            more = next((k for k, text in enumerate(rest) if not text.startswith(" ")), len(rest))
            source = " ".join([line.removeprefix("Source:").strip(), *(text.strip() for text in rest[:more])])
    return Description(room.path, room.section, name, "\n".join(lines[:end]).strip(), _arguments(room, part), source)


def _arguments(room: Room, part: Any) -> list[Argument]:
    if not room.keys or not callable(part):
        return []
    try:
        own = inspect.isclass(part) and not is_dataclass(part)
        hints = typing.get_type_hints(part.__init__ if own else part)  # a dataclass's __init__ does not know its base classes' modules
    except (NameError, TypeError):
        hints = {}
    meanings = _meanings(part)
    borrowed = re.search(r"[Oo]ther arguments are those of the (\w+) source", inspect.getdoc(part) or "")
    if borrowed is not None and borrowed[1] in room.parts():
        meanings = _meanings(room.parts()[borrowed[1]]) | meanings
    found = []
    for name, parameter in inspect.signature(part).parameters.items():
        if name in room.own or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = "needed" if parameter.default is parameter.empty else f"default {_default(parameter.default)}"
        found.append(Argument(name, in_words(hints.get(name, Any)), default, meanings.get(name, "")))
    return found


def _meanings(part: Any) -> dict[str, str]:
    """Return the entries under ``Args`` or ``Attributes`` in the docstrings of a part and its base classes, by argument."""
    found: dict[str, str] = {}
    for owner in part.__mro__ if inspect.isclass(part) else (part,):
        inside, name = False, ""
        for line in inspect.cleandoc(owner.__doc__ or "").splitlines():
            entry = re.match(r"^    (\w+): (.*)$", line)
            if not line.startswith(" "):
                inside = line in ("Args:", "Attributes:") or (inside and not line)
            elif inside and entry is not None:
                name = entry[1] if entry[1] not in found else ""
                found.setdefault(entry[1], entry[2])
            elif inside and name and line.startswith("      ") and found[name] and line.strip() not in found[name]:
                found[name] = f"{found[name]} {line.strip()}"
    return found


def _default(value: Any) -> str:
    return shortened(json.dumps(list(value) if isinstance(value, tuple) else value, default=str), _LONGEST_DEFAULT)


def in_words(hint: Any) -> str:
    """Return a type in the words of people who write configs."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _NAMES:
        return _NAMES[hint]
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"map of {in_words(inner[0])} to {in_words(inner[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of ({in_words(inner[0])})" if typing.get_args(inner[0]) else f"list of {in_words(inner[0])}"
    return str(getattr(hint, "__name__", hint))
