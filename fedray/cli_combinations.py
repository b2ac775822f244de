"""``fedray list combinations``: what goes together with which regime and which secure sum."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator

import click

from fedray import logs
from fedray.components import nearest
from fedray.errors import ConfigError

_LONGEST = 100  # characters of a line of prose


def print_combinations(name: str | None) -> None:
    """Print the table, or one of its rows in words.

    Raises:
        ConfigError: the table has no row of this name.
    """
    click.echo("\n".join(_table() if name is None else _row(name, min(_LONGEST, shutil.get_terminal_size().columns))))


def _table() -> Iterator[str]:
    from fedray.planning.compatibility import features, grounds, verdict

    columns, notes = list(grounds()), list[str]()
    rows = features()
    width = max(len(row.name) for row in rows) + 4
    yield " " * width + "  ".join(columns)
    for section, group in itertools.groupby(rows, key=lambda row: row.section):
        yield section
        for row in group:
            cells = []
            for column in columns:
                found = verdict(row, column)
                if found is not None and found.beside and found.beside not in notes:
                    notes.append(found.beside)
                said = "" if found is None else "no" if not found.allowed else "yes"
                note = f" {1 + notes.index(found.beside)}" if found is not None and found.beside else ""
                cells.append((said + note).ljust(len(column)))
            yield f"  {row.name}".ljust(width) + "  ".join(cells).rstrip()
    yield ""
    yield from (f"{number}  with {note}" for number, note in enumerate(notes, 1))
    yield ""
    yield "`fedray list combinations NAME` says why not, and what to use instead."


def _row(name: str, width: int) -> Iterator[str]:
    from fedray.planning.compatibility import features, grounds, verdict

    rows = [row for row in features() if row.name == name]
    if not rows:
        known = [row.name for row in features()]
        raise ConfigError(f"list: the combinations have no '{name}'; `fedray list combinations` shows them all.{nearest(name, known)}")
    for row in rows:
        yield f"{row.section}: {row.name}"
        for column in grounds():
            found = verdict(row, column)
            if found is None:
                continue
            yield ""
            said = found.refusal if not found.allowed else f"allowed{f' with {found.beside}' if found.beside else ''}."
            code = f" [{found.code}]" if found.code else ""
            yield logs.fitted(f"{column}:{code} {said}", width)
