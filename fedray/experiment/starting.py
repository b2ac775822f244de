"""Notes a start of a run: in its files, and for MLflow."""

from __future__ import annotations

import time
from dataclasses import asdict

from fedray import __version__
from fedray.experiment.request import Request
from fedray.privacy.figures import Spent
from fedray.privacy.statement import versions
from fedray.rounds.books import Books
from fedray.runfiles import RunFiles
from fedray.tracking.starts import StartNote


def note_start(files: RunFiles, request: Request, job: str, after: int, books: Books) -> StartNote:
    """Append this start to ``starts.jsonl``; called before its first round.

    Args:
        files: the run's files.
        request: what the command asked for.
        job: the run's id and the number of this start, ``ID/NUMBER``.
        after: rounds that are done.
        books: the privacy books, open.
    """
    number = int(job.rpartition("/")[2])
    given_up = 0 if number == 1 else sum(round_ >= after for round_ in books.earlier_rounds())
    spent = {unit: _largest(groups) for unit, groups in books.view(after, everyone=True).groups.items()}
    origin = {name: value for name, value in asdict(request.origin).items() if value not in (None, "", ())}
    note = StartNote(number, time.time(), after, given_up, spent, origin, str(request.output), __version__, versions())
    files.append_start(note)
    return note


def start_tags(request: Request) -> dict[str, str]:
    """The MLflow run's tags about where it comes from and where its files are."""
    part = {} if request.part_of is None else request.part_of.tags
    return {"fedray.directory": str(request.output), "fedray.version": __version__, **request.origin.tags(), **part}


def _largest(groups: list[Spent]) -> float:
    return max((group.figures.epsilon for group in groups), default=0.0)
