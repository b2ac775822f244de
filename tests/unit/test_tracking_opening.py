"""The MLflow run at its beginning, against a store that is played: slow, away, deaf to half of what is asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paths import ROOT

from fedray.audit.report import Report, send
from fedray.configfile import load_config
from fedray.errors import ConfigError, Stopped
from fedray.tracking import mlflow_store as store
from fedray.tracking import opening
from fedray.tracking.journal import State
from fedray.tracking.mlflow_tracker import Tracker, sync

REFUSED = ConnectionError("HTTPConnectionPool: Max retries exceeded: [Errno 111] Connection refused")
SLOW = TimeoutError("HTTPConnectionPool: Read timed out. (read timeout=5)")
GATEWAY = RuntimeError("API request to endpoint failed with error code 503 != 200. Response body: 'starting'")
FORBIDDEN = RuntimeError("API request to endpoint failed with error code 403 != 200. Response body: 'Invalid Host header'")


class Played:
    """An MLflow store in memory.

    ``faults`` are, by the name of the request, what its next calls raise; ``lost`` names requests that are done although they raise.
    """

    def __init__(self, faults: dict[str, list[Exception]] | None = None, lost: tuple[str, ...] = ()) -> None:
        self.faults, self.lost = faults or {}, lost
        self.runs: dict[str, SimpleNamespace] = {}
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda name: None

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self.before(name)
            fault = self.faults.get(name, [])
            if fault and name not in self.lost:
                raise fault.pop(0)
            answer = getattr(type(self), f"_{name}", lambda *a, **k: None)(self, *args, **kwargs)
            if fault:
                raise fault.pop(0)
            return answer

        if name.startswith("_"):
            raise AttributeError(name)
        return call

    def _get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active", tags={})

    def _create_run(self, experiment: str, run_name: str, start_time: int = 0, tags: dict[str, str] | None = None) -> Any:
        run_id = f"run{len(self.runs) + 1}"
        info = SimpleNamespace(run_id=run_id, status="RUNNING", lifecycle_stage="active", experiment_id=experiment, start_time=start_time)
        self.runs[run_id] = SimpleNamespace(info=info, data=SimpleNamespace(params={}, tags=dict(tags or {})))
        return self.runs[run_id]

    def _search_runs(self, experiments: list[str], text: str, max_results: int) -> list[Any]:
        name, value = text.removeprefix("tags.`").removesuffix("'").split("` = '")
        return [run for run in self.runs.values() if run.data.tags.get(name) == value]

    def _get_run(self, run_id: str) -> Any:
        return self.runs[run_id]

    def _update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    def _set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].data.tags[key] = value

    def _log_batch(self, run_id: str, **what: Any) -> None:
        self.runs[run_id].data.params |= {p.key: p.value for p in what.get("params", [])}

    def _set_terminated(self, run_id: str, status: str, end_time: int | None = None) -> None:
        self.runs[run_id].info.status = status

    @property
    def statuses(self) -> list[str]:
        return [run.info.status for run in self.runs.values()]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Played], Played]:
    """Put a played store in MLflow's place, and let nobody wait long for it."""
    monkeypatch.setattr(store, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(opening, "dress_experiment", lambda *args: None)

    def put(played: Played) -> Played:
        monkeypatch.setattr(store, "load_mlflow", lambda: SimpleNamespace(MlflowClient=lambda uri: played))
        return played

    return put


def start(folder: Path, **more: Any) -> Tracker:
    return Tracker.open(folder, {"a": "1"}, {}, uri="http://mlflow:5000", experiment="e", run_name="n", **more)


def text_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "does not answer yet" in record.getMessage()]


def test_a_server_that_is_slow_to_start_is_waited_for_with_a_word(
    play: Callable[[Played], Played], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedray.tracking")
    played = play(Played({"get_experiment_by_name": [REFUSED, REFUSED, GATEWAY, SLOW]}))
    tracker = start(tmp_path, wait=60.0)
    assert text_of(caplog) == ["MLflow at http://mlflow:5000 does not answer yet (connection refused); waiting up to 60 s for it."]
    assert played.statuses == ["RUNNING"]
    assert played.runs[tracker.run_id].data.params == {"a": "1"}
    assert played.calls.count("get_experiment_by_name") == 5
    tracker.close("KILLED", 5.0)


@pytest.mark.parametrize(
    ("fault", "wait", "calls", "says"),
    [(REFUSED, 0.0, 1, "connection refused"), (FORBIDDEN, 60.0, 1, "access was refused, 403"), (REFUSED, 0.05, 2, "connection refused")],
)
def test_a_server_that_stays_away_or_says_no_is_one_sentence(
    fault: Exception, wait: float, calls: int, says: str, play: Callable[[Played], Played], tmp_path: Path
) -> None:
    played = play(Played({"get_experiment_by_name": [fault] * 1000}))
    with pytest.raises(ConfigError, match=rf"tracking\.uri: the MLflow store at http://mlflow:5000 cannot be used \({says}\)"):
        start(tmp_path, wait=wait)
    assert played.calls.count("get_experiment_by_name") >= calls
    assert (len(played.calls) == 1) == (calls == 1)
    assert State.load(tmp_path) is None


@pytest.mark.parametrize("name", ["log_batch", "get_run"])
def test_a_run_whose_start_fails_is_ended(name: str, play: Callable[[Played], Played], tmp_path: Path) -> None:
    played = play(Played({name: [FORBIDDEN]}))
    with pytest.raises(ConfigError, match="403"):
        start(tmp_path)
    assert played.statuses == ["FAILED"]
    kept = State.load(tmp_path)
    assert kept is not None
    assert (kept.run_id, kept.ended) == ("run1", "FAILED")


def test_a_run_whose_making_was_not_answered_is_found_and_not_made_twice(play: Callable[[Played], Played], tmp_path: Path) -> None:
    played = play(Played({"create_run": [SLOW]}, lost=("create_run",)))
    tracker = start(tmp_path, wait=60.0)
    assert (tracker.run_id, played.statuses) == ("run1", ["RUNNING"])
    tracker.close("KILLED", 5.0)

    (tmp_path / "other").mkdir()
    played = play(Played({"create_run": [SLOW]}, lost=("create_run",)))
    with pytest.raises(ConfigError, match="no answer in time"):
        start(tmp_path / "other")
    assert played.statuses == ["FAILED"]


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_who_stops_while_the_server_is_waited_for_is_obeyed(status: str, play: Callable[[Played], Played], tmp_path: Path) -> None:
    stop = threading.Event()
    played = play(Played({"log_batch": [SLOW] * 1000}))

    def before(name: str) -> None:
        if played.calls.count("log_batch") == 2:
            stop.set()

    played.before = before
    with pytest.raises(Stopped, match="while MLflow at http://mlflow:5000 was waited for"):
        start(tmp_path, wait=600.0, cancelled=lambda: status if stop.is_set() else "")
    assert played.statuses == [status]


def test_a_run_that_is_opened_too_late_is_ended(play: Callable[[Played], Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()
    played = play(Played())

    def before(name: str) -> None:
        if name == "log_batch":
            given_up.wait(60.0)

    played.before = before
    monkeypatch.setattr(store, "_OPEN_DEADLINE", {"server": 0.2, "tables": 0.2})
    monkeypatch.setattr(store, "OPEN_PATIENCE", -1)  # nobody waits for the request that is under way
    with pytest.raises(ConfigError, match="no answer within"):
        start(tmp_path)
    assert played.statuses == ["RUNNING"]
    given_up.set()
    (worker,) = (t for t in threading.enumerate() if t.name == "fedray-tracking-open")
    worker.join(60.0)
    assert played.statuses == ["FAILED"]


def test_a_known_run_is_ended_again_where_its_resumption_fails(play: Callable[[Played], Played], tmp_path: Path) -> None:
    played = play(Played())
    start(tmp_path).close("KILLED", 5.0)
    assert played.statuses == ["KILLED"]
    played.faults["get_run"] = [FORBIDDEN]
    with pytest.raises(ConfigError, match="403"):
        start(tmp_path, resume=True)
    assert played.statuses == ["KILLED"]  # the store was not asked to change it
    played.faults = {"set_tag": [FORBIDDEN], "update_run": []}
    played.runs["run1"].data.tags.clear()
    with pytest.raises(ConfigError, match="403"):
        Tracker.open(tmp_path, {}, {"fedray.seed": "1"}, uri="http://mlflow:5000", experiment="e", run_name="n", resume=True)
    assert played.statuses == ["FAILED"]


def test_what_a_lost_process_left_running_is_ended(play: Callable[[Played], Played], tmp_path: Path) -> None:
    played = play(Played())
    tracker = start(tmp_path)
    held = tracker._lock
    assert opening.end_left(tmp_path / "none", "KILLED")
    opening.unlock(held)  # as the kernel does when the process dies
    assert opening.end_left(tmp_path, "KILLED")
    assert played.statuses == ["KILLED"]
    kept = State.load(tmp_path)
    assert kept is not None
    assert kept.ended == "KILLED"
    played.runs.clear()
    assert opening.end_left(tmp_path, "FAILED")  # nothing is asked of a run that was ended


def test_a_run_that_is_still_tracked_is_left_alone(
    play: Callable[[Played], Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_LOCK_PATIENCE", 0.0)
    played = play(Played())
    tracker = start(tmp_path)
    assert opening.end_left(tmp_path, "KILLED")
    assert played.statuses == ["RUNNING"]
    tracker.close("FINISHED", 5.0)


def test_a_store_that_is_away_is_told_of(play: Callable[[Played], Played], tmp_path: Path) -> None:
    played = play(Played())
    opening.unlock(start(tmp_path)._lock)
    played.faults["set_terminated"] = [REFUSED]
    assert not opening.end_left(tmp_path, "KILLED")
    assert "is KILLED" in sync(tmp_path)
    assert played.statuses == ["KILLED"]


@pytest.mark.parametrize("name", ["log_batch", "log_dict"])
def test_an_audit_s_own_run_is_ended_where_it_cannot_be_filled(name: str, play: Callable[[Played], Played], tmp_path: Path) -> None:
    played = play(Played({name: [FORBIDDEN]}))
    config = load_config(ROOT / "configs" / "digits.yaml", ["tracking.uri=http://mlflow:5000"])
    with pytest.raises((ConfigError, RuntimeError), match="403"):
        send(Report(config, tmp_path / "c.yaml", tmp_path, checks=[], attacks=[], seed=0), [])
    assert played.statuses == ["FAILED"]
    assert send(Report(config, tmp_path / "c.yaml", tmp_path, checks=[], attacks=[], seed=0), []) == "logged to MLflow run run2"
    assert played.statuses == ["FAILED", "FINISHED"]


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"run_id": 3}', b"\xff\xfe"])
def test_a_damaged_state_goes_on_with_the_run_that_the_checkpoint_names(
    junk: bytes, play: Callable[[Played], Played], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    played = play(Played())
    first = start(tmp_path)
    first.close("KILLED", 5.0)
    (tmp_path / "tracking.json").write_bytes(junk)
    with pytest.raises(ConfigError, match=r"tracking\.json: cannot be read .*; restore the file"):
        start(tmp_path, resume=True)
    again = start(tmp_path, resume=True, run_id=first.run_id)
    assert again.run_id == first.run_id
    assert "which the checkpoint names, goes on" in caplog.text
    assert played.statuses == ["RUNNING"]
    again.close("FINISHED", 5.0)
    restored = State.load(tmp_path)
    assert restored is not None and restored.run_id == first.run_id


def test_a_database_that_does_not_answer_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used \(\(psycopg2.OperationalError\) connection to server"):
        store.connect(f"postgresql+psycopg2://me@/runs?host={tmp_path}", lambda client: None)


def test_a_missing_driver_of_postgresql_names_the_one_that_is_there() -> None:
    assert "postgresql+psycopg2://" in store.reason(ModuleNotFoundError("No module named 'psycopg'", name="psycopg"))
