"""Logs a run to MLflow without ever delaying its rounds.

The MLflow run is made before the first round, when everything else is ready for that. Afterwards the round loop only queues
rows; a thread sends them, waits while the server does not answer, and at the end sends the artifacts and the model. Everything comes from
the run's files, so :func:`sync` can do the same later for a run whose server or driver was lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedray.credentials import cleaned_value
from fedray.errors import ConfigError
from fedray.storage import read_json
from fedray.tracking.artifacts import Pages, Staged, send, stage
from fedray.tracking.journal import STATE, Row, State, journal, metric_name, points, read_rows, shortcomings
from fedray.tracking.mlflow_store import SHIP_PATIENCE, TrackingError, connect, log, masked, patience, reason, unmasked
from fedray.tracking.modelfolder import ModelBuilder
from fedray.tracking.note import UNDER_WAY, run_note
from fedray.tracking.opening import Opening, lock, unlock
from fedray.tracking.shown import Silence
from fedray.tracking.systemmetrics import SystemMetrics
from fedray.tracking.ui import ui_links

_ROWS_A_BATCH, _METRICS_A_BATCH = 50, 1000
_LONGEST_PARAM = 6000
_FIRST_DELAY, _LONGEST_DELAY, _CLOSING_DELAY = 0.5, 30.0, 2.0
_TICK = 0.1
#: How an MLflow run ends, by the ``status`` of summary.json.
STATUSES = {"completed": "FINISHED", "budget_reached": "KILLED", "interrupted": "KILLED", "failed": "FAILED"}


class Tracker:
    """One run in MLflow. Make it with :meth:`open`."""

    def __init__(self, run_dir: Path, client: Any, state: State, held: int) -> None:
        self._run = _Run(run_dir, client, state)
        self._lock = held
        self._queue: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._closing, self._abandoned, self._done = threading.Event(), threading.Event(), threading.Event()
        self._failing = False
        self._last: tuple[str, ModelBuilder | None, dict[str, str], Pages | None] = ("FAILED", None, {}, None)
        self._thread = threading.Thread(target=self._ship, name="fedray-tracking", daemon=True)
        self._sampling: SystemMetrics | None = None

    @classmethod
    def open(
        cls,
        run_dir: str | Path,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        *,
        uri: str,
        experiment: str,
        run_name: str,
        register_as: str | None = None,
        headline: str = "eval/accuracy",
        resume: bool = False,
        resumed_from_round: int | None = None,
        run_id: str | None = None,
        wait: float = 0.0,
        cancelled: Callable[[], str] = lambda: "",
        system_metrics: bool = False,
    ) -> Tracker:
        """Make the MLflow run, or open it again.

        If this fails after the MLflow run was made, that run is ended.

        Args:
            run_dir: the run's output directory.
            params: values by dotted config key; see :func:`flat_params`. Logged once, at most 6000 characters of each.
            tags: ``fedray.*``, ``privacy/claim`` and others.
            uri: from :func:`fedray.tracking.mlflow_store.resolve_uri`.
            experiment: name of the MLflow experiment, which is made if it does not exist.
            run_name: name of the run.
            register_as: name for the registered model; None: the model is logged but not registered.
            headline: the metric by which the dashboard compares runs.
            resume: whether to continue the run that ``tracking.json`` names, if the store still has it, and to send those values of
                ``metrics.jsonl`` that the store lacks. Otherwise a new run is made.
            resumed_from_round: the checkpoint's round; shown as the tag ``fedray.resumed_from_round``. Rows beyond it will be repeated and
                are not sent. Of a repeated round that was sent before, the first values stay.
            run_id: the MLflow run that the checkpoint names; used if ``tracking.json`` is damaged.
            wait: seconds to wait for a server that does not answer yet; a warning says so once.
            cancelled: polled while waiting; returns an empty string to continue, else the status with which a run that was made is ended.
            system_metrics: whether to log the load of this node as well.

        Raises:
            TrackingError: the store cannot be used, or another process tracks this run.
            Stopped: ``cancelled`` returned a status.
        """
        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder)
        try:
            safe_params = {metric_name(k): cleaned_value(k, str(v))[:_LONGEST_PARAM] for k, v in params.items()}
            begun = UNDER_WAY if resumed_from_round is None else f"{UNDER_WAY}, resumed at round {resumed_from_round + 1}"
            safe_tags = {k: masked(str(v)) for k, v in tags.items()} | {"fedray.stop_reason": UNDER_WAY, "fedray.ending": begun}
            safe_tags["mlflow.note.content"] = run_note(None, [], {}, safe_tags, safe_params, {}, [])
            fresh = State(masked(uri), experiment, "", "", run_name, register_as, safe_params, safe_tags)
            known = _known(folder, fresh, run_id) if resume else None
            if resumed_from_round is not None:
                fresh.tags["fedray.resumed_from_round"] = str(resumed_from_round)
            opening = Opening(folder, uri, known, fresh, headline)

            def undo(client: Any) -> None:
                opening.undo(client, cancelled() or "FAILED")

            client, state = connect(uri, opening.open, undo, wait, cancelled)
        except BaseException:
            unlock(held)
            raise
        tracker = cls(folder, client, state, held)
        if resume:
            for row in read_rows(folder):
                if resumed_from_round is None or row["round"] <= resumed_from_round:
                    tracker.log(row)
        tracker._thread.start()
        if system_metrics:
            tracker._sampling = SystemMetrics(tracker.log, state.shipped.get("system/cpu_percent", 0))
        return tracker

    @property
    def run_id(self) -> str:
        """The id of the MLflow run."""
        return self._run.state.run_id

    @property
    def uri(self) -> str:
        """The tracking URI, without a password."""
        return self._run.state.tracking_uri

    @property
    def link(self) -> str | None:
        """The address of the run's page; None for a store without a UI."""
        state = self._run.state
        return ui_links(state.tracking_uri, state.experiment_id, state.run_id).get("run")

    def registered(self, sha256: str) -> str | None:
        """The address ``models:/NAME/VERSION`` of the registered model with these weights; None if there is none."""
        state = self._run.state
        known = "version" in state.model and state.model.get("sha256") == sha256
        return f"models:/{state.register_as}/{state.model['version']}" if known else None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing.is_set()

    def log(self, row: Row) -> None:
        """Queue a row that is in ``metrics.jsonl``; takes microseconds and never raises, whatever the server does."""
        self._queue.put(row)

    def listen(self, kind: str, value: Any) -> None:
        """Log each row; see :data:`fedray.faults.Listener`. MLflow has the faults in the run's artifacts."""
        if kind == "row":
            self.log(value)

    def close(
        self,
        status: str,
        timeout: float,
        model: ModelBuilder | None = None,
        tags: Mapping[str, str] | None = None,
        pages: Pages | None = None,
    ) -> bool:
        """Wait until the server has everything, send the artifacts and the model, and end the MLflow run.

        Args:
            status: FINISHED, FAILED or KILLED.
            timeout: seconds to wait for a server that does not answer. While it answers, the rest is sent, for at most ten times as long.
            model: builds the final model; see :data:`fedray.tracking.modelfolder.ModelBuilder`. Used only if the run was completed or its budget stopped it.
            tags: set at the end, e.g. ``fedray.stop_reason``.
            pages: writes the run's report.

        Returns:
            Whether everything was sent; if not, :func:`sync` sends the rest later. A second call returns the same.
        """
        if not self._closing.is_set():
            if self._sampling is not None:
                self._sampling.stop()
            self._last = (status, model, {k: masked(str(v)) for k, v in (tags or {}).items()}, pages)
            self._closing.set()
            self._queue.put(None)
            limit, patience_left = time.monotonic() + 10 * timeout, timeout
            while not self._done.wait(_TICK) and self._thread.is_alive() and patience_left > 0 and time.monotonic() < limit:
                patience_left -= _TICK if self._failing else 0.0
            self._abandoned.set()
            self._thread.join(0.5)
        return self._done.is_set()

    def _ship(self) -> None:
        try:
            open_ended = True
            while open_ended:
                rows = [self._queue.get()]
                with suppress(queue.Empty):
                    while len(rows) < _ROWS_A_BATCH:
                        rows.append(self._queue.get_nowait())
                open_ended = None not in rows
                found = [r for r in rows if r is not None]
                if not self._insist(partial(self._run.ship, found)):
                    return
            status, model, tags, pages = self._last
            self._run.state.tags.update(tags)
            staged = stage(self._run.folder, self._run.state, model, pages)
            try:
                if self._insist(partial(self._run.finish, staged, status)):
                    self._done.set()
            finally:
                staged.remove()
        except Exception as error:
            log.error("tracking stopped (%s); `fedray sync %s` sends the run later.", reason(error), self._run.folder)
            with suppress(Exception):
                self._run.end(self._last[0])
        finally:
            unlock(self._lock)

    def _insist(self, action: Callable[[], object]) -> bool:
        """Repeat ``action`` until it succeeds; returns False if :meth:`close` gave up. Warns once per outage."""
        delay, told = _FIRST_DELAY, False
        while not self._abandoned.is_set():
            try:
                action()
            except Exception as error:
                self._failing = True
                if not told:
                    log.warning("MLflow at %s cannot be reached (%s); training goes on, nothing is lost.", self.uri, reason(error))
                    told = True
                waiter = self._abandoned if self._closing.is_set() else self._closing
                waiter.wait(min(delay, _CLOSING_DELAY) if self._closing.is_set() else delay)
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                self._failing = False
                if told:
                    log.warning("MLflow at %s is back and up to date.", self.uri)
                return True
        return False


def sync(run_dir: str | Path, model: ModelBuilder | None = None, uri: str | None = None, pages: Pages | None = None) -> str:
    """Bring MLflow up to date with a run's files: rows, artifacts, model and end. A repeated call changes nothing.

    Args:
        run_dir: the run's output directory.
        model: builds the final model; None: the model is left out.
        uri: another store than the run's own; the run is made there if the store lacks it.
        pages: writes the run's report; None: the report is left out.

    Returns:
        One sentence on what was sent.

    Raises:
        TrackingError: the run was never tracked, is still running, or its store cannot be used.
    """
    folder = Path(run_dir)
    state = State.load(folder) if folder.is_dir() else None
    if state is None:
        raise TrackingError(f"{folder / STATE}: there is none, so this is no output directory of a tracked run.")
    held = lock(folder)
    try:
        target = uri or unmasked(state.tracking_uri)
        fresh = State(masked(target), state.experiment, "", "", state.run_name, state.register_as, state.params, state.tags)

        lines = journal(folder)
        lines.all()
        summary = read_json(folder / "summary.json") or {}
        status = STATUSES.get(str(summary.get("status")), "KILLED")
        opening = Opening(folder, target, state, fresh, "eval/accuracy")
        client, state = connect(target, opening.open, lambda client: opening.undo(client, status))
        run = _Run(folder, client, state)
        before = dict(state.model)
        staged = stage(folder, state, model, pages)
        try:
            sent = run.ship_missing()
            run.finish(staged, status)
        except Exception as error:
            with suppress(Exception):
                run.end(status)
            if isinstance(error, ConfigError):
                raise
            raise TrackingError(f"tracking.uri: MLflow at {state.tracking_uri} went away ({reason(error)}); run the sync again.") from None
        finally:
            staged.remove()
        version = state.model.get("version")
        registered = f", model registered as version {version} of {state.register_as}" if version and state.model != before else ""
        told = f"{folder}: {sent} values sent, artifacts up to date{registered}; run {state.run_id} at {state.tracking_uri} is {status}."
        return " ".join([told, *shortcomings(lines, 0)])
    finally:
        unlock(held)


def flat_params(section: Any, prefix: str = "") -> dict[str, str]:
    """Flatten a config to texts by dotted key: ``{"training.lr": "0.1", ...}``.

    Args:
        section: plain data, e.g. ``config.model_dump()``. None and empty lists are left out; lists of plain values are joined.
        prefix: precedes each key.
    """
    if isinstance(section, Mapping):
        return {k: v for key, value in section.items() for k, v in flat_params(value, f"{prefix}.{key}" if prefix else str(key)).items()}
    if isinstance(section, list | tuple):
        if any(isinstance(v, Mapping | list | tuple) for v in section):
            return {k: v for i, value in enumerate(section) for k, v in flat_params(value, f"{prefix}.{i}").items()}
        return {prefix: ", ".join(map(str, section))} if section else {}
    return {} if section is None else {prefix: str(section).lower() if isinstance(section, bool) else str(section)}


class _Run:
    """A run's files and its MLflow run. Every method may fail and be repeated without sending a value twice."""

    def __init__(self, folder: Path, client: Any, state: State) -> None:
        self.folder, self.client, self.state = folder, client, state
        self._silence, self._late = Silence(state.shipped), False

    def ship(self, rows: Sequence[Row]) -> int:
        """Send the values of ``rows`` that the server lacks; returns their number.

        Counters that are zero and settings that are constant are held back. Once one changes, its earlier values are sent from the journal.
        """
        from mlflow.entities import Metric

        self._late |= self._silence.hear(row["metrics"] for row in rows)
        if self._late:
            last = max((row["round"] for row in rows if "system/cpu_percent" not in row["metrics"]), default=0)
            rows = [row for row in read_rows(self.folder) if row["round"] <= last] + list(rows)
        every = {(p.key, p.round): p for row in rows for p in points(row) if not self._silence.holds(p.key)}
        missing = self.state.missing(every.values())
        for start in range(0, len(missing), _METRICS_A_BATCH):
            part = missing[start : start + _METRICS_A_BATCH]
            with patience(SHIP_PATIENCE):
                self.client.log_batch(self.state.run_id, metrics=[Metric(p.key, p.value, p.time, p.round) for p in part])
        if missing:
            self.state.advance(missing)
            self.state.save(self.folder)
        self._late = False
        return len(missing)

    def ship_missing(self) -> int:
        """Send the values of the journal that the server lacks; returns their number."""
        sent, rows = 0, list(read_rows(self.folder))
        for start in range(0, len(rows), _ROWS_A_BATCH):
            sent += self.ship(rows[start : start + _ROWS_A_BATCH])
        return sent

    def finish(self, staged: Staged, status: str) -> None:
        """Send the rest of the journal, the artifacts and the model, and end the MLflow run."""
        from mlflow.entities import Param

        self.ship_missing()
        new = {k: f"{v:.6g}" for k, v in self._silence.settings.items() if k not in self.state.params}
        if new:
            with patience(SHIP_PATIENCE):
                self.client.log_batch(self.state.run_id, params=[Param(k, v) for k, v in new.items()])
            self.state.params |= new
        send(self.client, self.state, staged, lambda: self.state.save(self.folder))
        self.end(status, staged.end_time)

    def end(self, status: str, end_time: int | None = None) -> None:
        """End the MLflow run at ``end_time`` (Unix milliseconds), by default now."""
        with patience(SHIP_PATIENCE):
            began = self.client.get_run(self.state.run_id).info.start_time
            self.client.set_terminated(self.state.run_id, status, end_time=end_time and max(end_time, began))
        self.state.ended = status
        self.state.save(self.folder)


def _known(folder: Path, fresh: State, run_id: str | None) -> State | None:
    """Return the state of an earlier start. If its file is damaged, that of the same MLflow run, to which everything is sent again."""
    try:
        return State.load(folder)
    except ConfigError as error:
        if run_id is None:
            raise
        log.warning("%s The MLflow run %s, which the checkpoint names, goes on.", error, run_id)
        return replace(fresh, run_id=run_id, tags=dict(fresh.tags))
