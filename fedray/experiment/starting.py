"""Notes a start of a run: in its files, and in MLflow."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import asdict

from fedray import __version__
from fedray.checkpoint import Saved
from fedray.config import Config
from fedray.experiment.description import tracking_parameters, tracking_tags
from fedray.experiment.request import Request
from fedray.planning.preparation import Prepared
from fedray.privacy.figures import Spent
from fedray.privacy.statement import versions
from fedray.rounds.books import Books
from fedray.runfiles import RunFiles
from fedray.tracking.mlflow_store import connect, experiment_name, resolve_uri, sqlite_path
from fedray.tracking.mlflow_tracker import Tracker
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


def reach_store(config: Config, files: RunFiles, note: Callable[[str], None], cancelled: Callable[[], bool]) -> None:
    """Wait until the MLflow store of a run answers; nothing is written there.

    Args:
        config: of the run.
        files: of the run.
        note: called with a sentence for the user.
        cancelled: polled while waiting.

    Raises:
        TrackingError: the store cannot be used.
        Stopped: ``cancelled`` returned true.
    """
    if not config.tracking.enabled:
        return
    uri = resolve_uri(config.tracking, files.root.parent)
    if files.remote is not None and sqlite_path(uri) is not None:
        note(f"MLflow's rows stay in a file on the driver's node {socket.gethostname()} ({uri}); set tracking.uri to a server.")
    connect(uri, lambda client: client.search_experiments(max_results=1), wait=config.tracking.open_timeout, cancelled=cancelled)


def open_tracker(
    prepared: Prepared, files: RunFiles, request: Request, checkpoint: Saved | None, cancelled: Callable[[], str]
) -> Tracker | None:
    """Make or reopen the MLflow run of a start that is ready for its first round; None without tracking.

    Raises:
        TrackingError: see :meth:`Tracker.open`.
    """
    config = prepared.config
    if not config.tracking.enabled:
        return None
    part = {} if request.part_of is None else request.part_of.tags
    origin = {"fedray.directory": str(request.output), "fedray.version": __version__, **request.origin.tags(), **part}
    return Tracker.open(
        files.root,
        tracking_parameters(prepared),
        tracking_tags(prepared) | origin,
        uri=resolve_uri(config.tracking, files.root.parent),
        experiment=experiment_name(config),
        run_name=request.output.name,
        register_as=None if request.part_of is not None else config.tracking.register_as or config.name,
        headline=config.evaluation.headline,
        resume=request.resume,
        resumed_from_round=checkpoint.round if checkpoint else None,
        run_id=checkpoint.meta.get("mlflow") if checkpoint else None,
        wait=config.tracking.open_timeout,
        system_metrics=config.tracking.system_metrics,
        cancelled=cancelled,
    )


def _largest(groups: list[Spent]) -> float:
    return max((group.figures.epsilon for group in groups), default=0.0)
