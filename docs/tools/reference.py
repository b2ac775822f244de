"""The reference pages, made from the config's JSON Schema, the parts' docstrings, the commands and the public classes.

They are made when the site is built (``hooks.py``), so they cannot fall behind the code.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import click

from fedray.catalogue import describe
from fedray.cli import cli
from fedray.components import ROOMS, listing
from fedray.config import Config

_TYPES = {"number": "number", "integer": "integer", "string": "text", "boolean": "true or false", "null": "null", "object": "map"}
_LIMITS = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *[tuple(map(_cell, row)) for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return "section"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map of text to {_type(schema['additionalProperties'])}"
    limits = [f"{words} {schema[key]:g}" for key, words in _LIMITS.items() if key in schema]
    return ", ".join([_TYPES.get(str(schema.get("type")), "anything"), *limits])


def _section(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key holds, also where it may be null or a list of sections."""
    for part in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
        if "$ref" in part:
            section: Mapping[str, Any] = definitions[part["$ref"].rpartition("/")[2]]
            return section
    return None


def config_keys(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any] | None, bool]]:
    """Yields each key of a config: its dotted path, its schema, the section that it holds if any, and whether it is needed."""

    def walk(section: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any] | None, bool]]:
        for name, key in section.get("properties", {}).items():
            inner = _section(key, schema["$defs"])
            yield f"{path}{name}", key, inner, name in section.get("required", ())
            if inner is not None:
                yield from walk(inner, f"{path}{name}{'[]' if 'items' in key else ''}.")

    yield from walk(schema, "")


def _default(key: Mapping[str, Any], needed: bool, section: bool) -> str:
    if needed:
        return "needed"
    if "default" not in key or (section and isinstance(key["default"], dict)):
        return ""
    return f"`{json.dumps(key['default'])}`"


def config_page() -> str:
    """The page of all keys of a config."""
    schema = Config.model_json_schema()
    parts = [
        "# Config keys\n\nMade from the JSON Schema that `fedray config --schema` prints. A key with *[]* is of each entry of a list. Sections with a "
        "`kind` take the arguments of the part that they name as further keys: see [Parts](parts.md).\n"
    ]
    rows: dict[str, list[tuple[str, ...]]] = {}
    heads: dict[str, str] = {"run": "Keys of the config itself."}
    for path, key, section, needed in config_keys(schema):
        top = path.split(".")[0]
        if section is not None and path == top:
            heads[top] = key.get("description") or section.get("description", "")
        meaning = key.get("description") or (section or {}).get("description", "")
        group = top if section is not None or "." in path else "run"
        if path != top or section is None:
            rows.setdefault(group, []).append((f"`{path}`", _type(key), _default(key, needed, section is not None), meaning))
        elif section is not None:
            rows.setdefault(top, [])
    for group, keys in rows.items():
        parts.append(f"\n## {group}\n\n{_cell(heads[group])}\n")
        if keys:
            parts.append("\n" + _table(("key", "type", "default", "meaning"), keys))
    return "".join(parts)


def parts_page() -> str:
    """The page of all parts that a config can name."""
    pages = [
        "# Parts\n\nEverything that a config can name, made from the parts' docstrings; `fedray list KIND NAME` prints the same. In place of each "
        "a `python:module:name` of [your own](../own_parts.md) may stand, except for engines and mechanisms.\n"
    ]
    for title, room in ROOMS.items():
        pages.append(f"\n## {title}\n\nNamed by `{room.path}`.\n")
        for row in listing(room):
            part = describe(room, row.name)
            text = "\n\n".join(_cell(paragraph) for paragraph in part.text.split("\n\n"))
            pages.append(f"\n### {title}: {row.name}\n\n{text}\n")
            if part.arguments:
                table = [(f"`{a.name}`", a.type, a.default.removeprefix("default "), a.meaning) for a in part.arguments]
                pages.append("\n" + _table(("key", "type", "default", "meaning"), table))
            if part.source:
                pages.append(f"\nSource: {_cell(part.source)}\n")
    return "".join(pages)


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for inner, sub in sorted(command.commands.items()):
            yield from _commands(sub, f"{name} {inner}")
    else:
        yield name, command


def commands_page() -> str:
    """The page of all commands and their options."""
    pages = [
        "# Commands\n\nMade from the commands themselves; `fedray COMMAND --help` prints the same. [The command](../command.md) is an overview.\n"
    ]
    for name, command in _commands(cli, "fedray"):
        context = click.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        text = "\n\n".join(_cell(part) for part in inspect.cleandoc(command.help or "").replace("\b", "").split("\n\n"))
        pages.append(f"\n## {name}\n\n`{name} {usage}`\n\n{text}\n")
        options = [p.get_help_record(context) for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if rows := [(f"`{record[0]}`", record[1]) for record in options if record is not None]:
            pages.append("\n" + _table(("option", "meaning"), rows))
    return "".join(pages)


def _public() -> Iterator[tuple[str, Any]]:
    from fedray.aggregation.rule import Rule
    from fedray.algorithms.algorithm import Algorithm, Turn, Update
    from fedray.experiment import Result, run
    from fedray.faults import Fault
    from fedray.rounds.pacing import Schedule
    from fedray.updates.stage import At, Stage

    for part in (run, Result, Algorithm, Turn, Update, Rule, Schedule, Stage, At, Fault):
        yield ("fedray" if part in (run, Result) else part.__module__), part


def _signature(name: str, function: Any) -> str:
    try:
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):
        return name
    shown = f"{name}{re.sub(r'<[^>]*>', '...', signature)}".replace("'", "")  # annotations are text
    if len(shown) < 100:
        return shown
    inside, _, end = shown.removeprefix(f"{name}(").rpartition(")")
    return f"{name}(\n    " + ",\n    ".join(re.split(r", (?![^\[]*\])", inside)) + f",\n){end}"


def _docstring(part: Any) -> str:
    """A docstring as Markdown: sections such as ``Args:`` become lists."""
    lines: list[str] = []
    for line in (inspect.getdoc(part) or "").replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Attributes|Raises|Returns|Source|Yields):", line):
            lines += [f"*{line[:-1]}*", ""]
        elif entry := re.match(r"^    (\w+): (.*)$", line):
            lines.append(f"* `{entry[1]}`: {entry[2]}")
        else:
            lines.append(line.strip() if line.startswith("    ") else line)
    return re.sub(r":(?:data|class|func|meth):`~?([^`]+)`", r"`\1`", "\n".join(lines))


def python_page() -> str:
    """The page of the classes and functions that users call or derive from."""
    pages = [
        "# Python\n\nMade from signatures and docstrings. [From Python](../python.md) has examples, [Parts of your own](../own_parts.md) the rest.\n"
    ]
    for module, part in _public():
        name = f"{module}.{part.__name__}"
        pages.append(f"\n## {name}\n\n```text\n{_signature(part.__name__, part)}\n```\n\n{_docstring(part)}\n")
        if not inspect.isclass(part):
            continue
        for method, function in vars(part).items():
            plain = function.fget if isinstance(function, property) else inspect.unwrap(getattr(function, "__func__", function))
            if method.startswith("_") or not inspect.isfunction(plain) or not plain.__doc__ or (is_dataclass(part) and method == "replace"):
                continue
            shown = method if isinstance(function, property) else _signature(method, plain)
            pages.append(f"\n### {part.__name__}.{method}\n\n```text\n{shown}\n```\n\n{_docstring(plain)}\n")
    return "".join(pages)


#: Page of the site: what makes it.
PAGES = {
    "reference/config.md": config_page,
    "reference/parts.md": parts_page,
    "reference/commands.md": commands_page,
    "reference/python.md": python_page,
}
