"""``fedray list``: the parts that a config can name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import click

from fedray import logs
from fedray.catalogue import Description, describe
from fedray.cli_combinations import print_combinations
from fedray.components import ROOMS, listing, nearest
from fedray.errors import ConfigError

_LONGEST = 100  # characters of a line of a description


@click.command("list")
@click.argument("what", required=False)
@click.argument("name", required=False)
def list_parts(what: str | None, name: str | None) -> None:
    """What a config can name: models, data, partitioners, losses, ... with one line and the source each.

    WHAT: one kind of part. NAME: one of that kind, with its arguments, their types, defaults and meaning.

    `fedray list combinations` shows what goes together with which guarantee; with NAME, why not, and what does instead.
    """
    if what == "combinations":
        print_combinations(name)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if what is not None and what not in ROOMS:
        known = [*ROOMS, "combinations"]
        raise ConfigError(f"list: there is no '{what}'; choose from {', '.join(known)}.{nearest(what, known)}")
    facts = _facts(name) if what == "algorithms" else {}
    if what is not None and name is not None:
        width = min(_LONGEST, shutil.get_terminal_size().columns)
        click.echo("\n".join([*_lines(describe(ROOMS[what], name), width), *_fact_lines(facts.get(name, {}), width)]))
        return
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for title, room in ROOMS.items():
        rows = listing(room) if what in (None, title) else []
        if not rows:
            continue
        more = next(iter(facts.values()), {})
        columns = ("name", "what it is", *more, "source")
        table = Table(*columns, title=f"{title}  ({room.path})", title_justify="left", box=None, pad_edge=False)
        for row in rows:
            own = facts.get(row.name, more.fromkeys(more, "")).values()
            table.add_row(f"[bold]{row.name}[/bold]", escape(row.summary), *map(escape, own), f"[dim]{escape(row.source)}[/dim]")
        console.print(table)
        console.print()


def _facts(only: str | None) -> dict[str, dict[str, str]]:
    """What is shown of each algorithm, or of one, besides, by its name and by the title of the column."""
    from fedray.planning.algorithmfacts import algorithm_facts

    return {
        name: {"goes down": f.down, "comes up": f.up, "is kept": f.keeps, "reads of records besides": f.reads, "goes with": f.combined}
        for name, f in algorithm_facts(only).items()
    }


def _fact_lines(facts: dict[str, str], width: int) -> Iterator[str]:
    if facts:
        yield ""
    for title, text in facts.items():
        yield logs.fitted(f"{title[0].upper()}{title[1:]}: {text}", width)


def _lines(part: Description, width: int) -> Iterator[str]:
    named = f"{part.name}:..." if part.path == "data.source" else part.name
    yield f"{part.path}: {named}"
    yield ""
    for paragraph in part.text.split("\n\n"):
        yield logs.fitted(" ".join(paragraph.replace("``", "").split()), width).replace("\n  ", "\n")
        yield ""
    if part.arguments:
        yield f"Keys of the section {part.section}:"
    else:
        yield "It takes no keys."
    for argument in part.arguments:
        yield logs.fitted(f"  {argument.name}: {argument.type}; {argument.default}", width).replace("\n  ", "\n    ")
        if argument.meaning:
            meaning = argument.meaning.replace("``", "")
            yield "\n".join(f"      {line.strip()}" for line in logs.fitted(meaning, width - 6).split("\n"))
    if part.source:
        yield ""
        yield logs.fitted(f"Source: {part.source}", width)
