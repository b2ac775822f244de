"""Reads a config file, applies ``key.path=value`` overrides, and words its errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, overload

import yaml
from pydantic import BaseModel, ValidationError

from fedray.choices import Section
from fedray.components import nearest
from fedray.config import Config
from fedray.errors import ConfigError, shortened
from fedray.queriedconstants import with_queried_constants

C = TypeVar("C", bound=Config)
S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """Reads numbers and booleans as YAML 1.2: ``1e-5`` is a number, ``on`` and ``08`` are texts."""


_Loader.yaml_implicit_resolvers = {
    key: [
        (tag, pattern)
        for tag, pattern in rules
        if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
    ]
    for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$",
        re.IGNORECASE,
    ),
    list("-+0123456789."),
)


def _no_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise ConfigError(f"{key}: stands twice in the file (line {key_node.start_mark.line + 1}); keep one.")
        seen.add(key)
    return loader.construct_mapping(node, deep=deep)


_Loader.add_constructor("tag:yaml.org,2002:map", _no_duplicates)


def parse_yaml(text: str, what: str) -> Any:
    """Read YAML text as plain data.

    Args:
        text: the YAML text.
        what: what the text is, for messages.

    Raises:
        ConfigError: the text is not YAML, or a key stands twice; the sentence names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{shortened(what)}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{what}: not valid YAML{where}: {getattr(error, 'problem', error)}.") from None
    except (TypeError, RecursionError):
        raise ConfigError(f"{what}: not valid YAML: a key is no text, or lists are too deep.") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise ConfigError(f"{shortened(what)}: not valid YAML ({error}).") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply overrides and validate; see :func:`resolve_config`."""
    return resolve_config(path, overrides)


@overload
def resolve_config(
    config: Config | str | Path | Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, str] | None = None
) -> Config: ...
@overload
def resolve_config(
    config: Config | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    given: Mapping[str, str] | None = None,
    *,
    schema: type[C],
) -> C: ...
def resolve_config(
    config: Config | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    given: Mapping[str, str] | None = None,
    *,
    schema: type[Any] = Config,
) -> Any:
    """Apply overrides to a config and validate the result.

    Args:
        config: a path to a YAML file, plain data, or a validated config.
        overrides: texts ``key.path=value``, whose values are read as YAML; lists are indexed by number.
        given: values that replace the config's own, by dotted key, because the caller of ``fedray.run`` gives the part itself.
        schema: what the config must be: a run's or a query's.

    Raises:
        ConfigError: the config is wrong, with one line for each problem; or an override contradicts ``given``.
    """
    listed = _listed(overrides)
    raw = _read(config)
    for override in listed:
        _apply(raw, override)
    for path, value in (given or {}).items():
        section, _, key = path.partition(".")
        for override in listed:
            name, _, text = override.partition("=")
            if name == path or (name == section and _holds(parse_yaml(text, override), key)):
                raise ConfigError(f"{path}: the override '{override}' contradicts the argument {section}= that gives it; leave one out.")
        _set(raw, path, value)
    with_queried_constants(raw)
    return build_config(raw, schema)


def is_query(config: str | Path) -> bool:
    """Whether a config file asks for statistics instead of training; raises as :func:`resolve_config`."""
    return "queries" in _read(config)


def _listed(overrides: Any) -> list[str]:
    """Return overrides as a list, because an iterator yields its texts only once."""
    listed: list[Any] = list(overrides) if isinstance(overrides, Iterable) and not isinstance(overrides, str | Mapping) else [None]
    if not all(isinstance(text, str) for text in listed):
        raise ConfigError(f"overrides: should be a list of texts such as ['rounds=3'], but is {shortened(repr(overrides))}.")
    return listed


def _holds(value: Any, key: str) -> bool:
    return isinstance(value, Mapping) and key in value


def _read(config: Config | str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the config's plain data as a copy."""
    if isinstance(config, Config | Mapping):
        plain: dict[str, Any] = _plain(config)
        return plain
    if not isinstance(config, str | Path):
        raise ConfigError(f"config: should be a path, a mapping or a Config, but is a {type(config).__name__}.")
    return _read_file(config, "name:, data:, ...")


def _read_file(path: str | Path, keys: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such config file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a config file ({error}).") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: should hold sections ({keys}), but holds {type(raw).__name__}.")
    return raw


def read_section(path: str | Path, schema: type[S]) -> S:
    """Read a file that holds one section, such as a silo's site file.

    Raises:
        ConfigError: the file cannot be read, or is wrong, with one line for each problem, which begins with the file's name.
    """
    raw = _read_file(path, ", ".join(f"{key}:" for key in list(schema.model_fields)[:2]) + ", ...")
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = list(dict.fromkeys(f"{path}: {_sentence(dict(e), schema)}" for e in error.errors()))
        raise ConfigError("\n".join(problems)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):  # keys that were not set get their defaults again, as in a file
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


@overload
def build_config(raw: dict[str, Any]) -> Config: ...
@overload
def build_config(raw: dict[str, Any], schema: type[C]) -> C: ...
def build_config(raw: dict[str, Any], schema: type[Any] = Config) -> Any:
    """Validate plain data; raises as :func:`resolve_config`."""
    if schema is Config and "queries" in raw:
        raise ConfigError("queries: this config asks for statistics and trains nothing; use fedray query CONFIG, or take the section out.")
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = list(dict.fromkeys(_sentence(dict(e), schema) for e in error.errors()))
        raise ConfigError("\n".join(problems)) from None


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting of a config's plain data with its path, such as ``training.lr``; an empty section is a setting."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from flat(entry, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML, from which an equal config is read."""
    without = {"sweep"} if config.sweep is None else None
    return yaml.safe_dump(json.loads(config.model_dump_json(exclude=without)), sort_keys=False, allow_unicode=True)


def _apply(raw: dict[str, Any], override: str) -> None:
    path, sign, value = override.partition("=")
    if not sign or not path:
        raise ConfigError(f"'{override}': an override reads key.path=value.")
    _set(raw, path, parse_yaml(value, override))


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    keys = path.split(".")
    node: Any = raw
    for i, key in enumerate(keys[:-1]):
        node = _step(node, key, ".".join(keys[: i + 1]))
    if isinstance(node, list):
        node[_index(node, keys[-1], path)] = value
    else:
        node[keys[-1]] = value


def _step(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, path)]
    child = node.get(key)
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"{path}: is the value {shortened(repr(child))}, not a section; nothing can be set below it.")
    return child


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(f"{path}: the list has {len(node)} entries, numbered from 0.")
    return int(key)


def _sentence(problem: dict[str, Any], schema: type[BaseModel] = Config) -> str:
    location = [p for p in problem["loc"] if not (isinstance(p, str) and "[" in p) and p not in ("int", "str", "float", "literal")]
    path = ".".join(str(p) for p in location)
    kind, value, context = problem["type"], problem.get("input"), problem.get("ctx") or {}
    if kind == "extra_forbidden":
        allowed = _fields_at(location[:-1], schema)
        return f"{path}: unknown key.{nearest(str(location[-1]), allowed)} Allowed here: {', '.join(sorted(allowed))}."
    if kind == "missing":
        return f"{path}: missing; add it to the file" + (f" or as {path}=VALUE." if issubclass(schema, Config) else ".")
    if kind == "value_error":
        return f"{path + '.' if path else ''}{context.get('error', problem['msg'])}."
    message = problem["msg"]
    message = message[0].lower() + message[1:]
    return f"{path}: {message}, but is {shortened(repr(value))}."


def _fields_at(location: Sequence[Any], model: type[BaseModel]) -> list[str]:
    for key in location:
        field = model.model_fields.get(str(key))
        if field is None:
            continue
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def schema(of: type[Config] = Config) -> dict[str, Any]:
    """Return the JSON Schema of a run's config, or of a query's, for editors."""
    return of.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fedray run"}
