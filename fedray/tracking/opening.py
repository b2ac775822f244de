"""Makes or reopens the MLflow run of an output, and ends it if the start fails.

A request to make a run may reach the server while its answer is lost. So every start has its own tag, by which a repeated request finds
the run that an earlier one has made.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedray.tracking.journal import State
from fedray.tracking.mlflow_store import TrackingError, artifact_root, connect, log, unmasked
from fedray.tracking.starts import read_starts
from fedray.tracking.ui import dress_experiment

_PARAMS_A_BATCH = 100

#: The tag that marks a start; MLflow's pages hide tags that begin like this.
MARK = "mlflow.fedray.start"

#: Seconds to wait for the lock of a process that is ending.
_LOCK_PATIENCE = 5.0


class Opening:
    """Opens the MLflow run of one start. Its methods may be repeated until they succeed, and make at most one run.

    Args:
        folder: the run's output directory.
        uri: the store's URI, with its password.
        known: the run to continue, or None.
        fresh: the run to make otherwise, without ids.
        headline: the metric by which the dashboard compares runs.
    """

    def __init__(self, folder: Path, uri: str, known: State | None, fresh: State, headline: str) -> None:
        self._folder, self._uri, self._known, self._fresh, self._headline = folder, uri, known, fresh, headline
        self._asked = self._woken = False  # whether the store was asked for a run, or to show the known one as running
        self._state: State | None = None

    def open(self, client: Any) -> State:
        """Make or reopen the run, log its params, and write ``tracking.json``; returns the run's state."""
        if self._state is None:
            self._state = self._reopen(client) or self._make(client)
        self._state.save(self._folder)
        _log_params(client, self._state)
        return self._state

    def undo(self, client: Any, status: str) -> None:
        """End the run that was made or reopened. If the store does not answer, `fedray sync` ends it later."""
        state = self._state or (self._known if self._woken else None)
        if state is None and self._asked:
            run_id = self._find(client)
            state = self._named(run_id) if run_id else None
        if state is not None:
            client.set_terminated(state.run_id, status)
            state.ended = status
            state.save(self._folder)

    def _reopen(self, client: Any) -> State | None:
        """Reopen the known run; returns None if there is none, or if this store lacks it."""
        known, fresh = self._known, self._fresh
        if known is None or not known.run_id:
            return None
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(known.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("the MLflow run %s is gone from %s; a new one takes its place.", known.run_id, fresh.tracking_uri)
            return None
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(known.run_id)
        self._woken = True
        client.update_run(known.run_id, status="RUNNING")
        known.tracking_uri, known.register_as, known.ended = fresh.tracking_uri, fresh.register_as, None
        known.experiment_id = run.info.experiment_id
        # MLflow cannot change a param, so the params of the first start stay.
        known.params = dict(run.data.params) | {k: v for k, v in fresh.params.items() if k not in run.data.params}
        known.tags.update(fresh.tags)
        for key, value in fresh.tags.items():
            if run.data.tags.get(key) != value:
                client.set_tag(known.run_id, key, value)
        return known

    def _make(self, client: Any) -> State:
        fresh = self._fresh
        fresh.experiment_id = experiment_id(client, self._uri, fresh.experiment, self._headline, fresh.tags)
        fresh.tags.setdefault("mlflow.source.name", "fedray")
        fresh.tags.setdefault("mlflow.source.type", "JOB")
        made = self._find(client) if self._asked else None
        if made is None:
            self._asked = True
            fresh.tags.setdefault(MARK, secrets.token_hex(8))
            starts = read_starts(self._folder)  # of a run that is sent to another store
            began = int(1000 * (starts[0].time if starts else time.time()))
            made = client.create_run(fresh.experiment_id, start_time=began, tags=fresh.tags, run_name=fresh.run_name).info.run_id
        return self._named(made)

    def _named(self, run_id: str) -> State:
        self._fresh.run_id = run_id
        return self._fresh

    def _find(self, client: Any) -> str | None:
        """Return the id of a run that an earlier request has made although its answer was lost, else None."""
        found = client.search_runs([self._fresh.experiment_id], f"tags.`{MARK}` = '{self._fresh.tags[MARK]}'", max_results=1)
        return str(found[0].info.run_id) if found else None


def end_left(folder: Path, status: str) -> bool:
    """End the MLflow run of an output whose process was lost, unless it was ended already or another process tracks it.

    Returns:
        False if MLflow could not be reached, so that it may still show the run as running.
    """
    state = State.load(folder) if folder.is_dir() else None
    if state is None or not state.run_id or state.ended is not None:
        return True
    handle = None
    limit = time.monotonic() + _LOCK_PATIENCE
    while handle is None:
        try:
            handle = lock(folder)
        except TrackingError:
            if time.monotonic() > limit:
                return True  # it is at work
            time.sleep(0.1)
    try:
        now = State.load(folder)
        if now is not None and now.ended is None:
            connect(unmasked(now.tracking_uri), lambda client: client.set_terminated(now.run_id, status))
            now.ended = status
            now.save(folder)
        return True
    except TrackingError:
        return False
    finally:
        unlock(handle)


def experiment_id(client: Any, uri: str, name: str, headline: str, tags: Mapping[str, str]) -> str:
    """Return the id of the experiment, which is made if it does not exist."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        root = artifact_root(uri)
        try:
            client.create_experiment(name, artifact_location=root.as_uri() if root else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run made it just now
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(f"experiment: '{name}' was deleted in MLflow; restore it (mlflow experiments restore) or choose another name.")
    dress_experiment(client, experiment, headline, tags)
    return str(experiment.experiment_id)


def _log_params(client: Any, state: State) -> None:
    from mlflow.entities import Param

    have = client.get_run(state.run_id).data.params
    missing = [Param(k, v) for k, v in state.params.items() if k not in have]
    for start in range(0, len(missing), _PARAMS_A_BATCH):
        client.log_batch(state.run_id, params=missing[start : start + _PARAMS_A_BATCH])


def lock(folder: Path) -> int:
    """Take the lock of the run's tracking, which the kernel releases when the process ends; returns its handle.

    Raises:
        TrackingError: another process holds the lock.
    """
    handle = os.open(folder / ".tracking.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise TrackingError(f"{folder}: this run is still being tracked; wait until it has ended.") from None
    except OSError:
        log.debug("%s cannot be locked on this file system", folder)
    return handle


def unlock(handle: int) -> None:
    """Release the lock."""
    with suppress(OSError):
        os.close(handle)
