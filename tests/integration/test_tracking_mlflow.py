"""Tracking against real MLflow: a SQLite store, and a server that is killed, hung or away."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from processes import wait_until
from torch import nn

from fedray.errors import ConfigError
from fedray.experiment.background import Background
from fedray.tracking import mlflow_tracker
from fedray.tracking.journal import METRICS, State
from fedray.tracking.mlflow_store import TrackingError, load_mlflow
from fedray.tracking.mlflow_tracker import Tracker, sync

ROUNDS = 20
DATA = {"test_records": 4, "model": {"input_shape": [2, 4], "tokens": False, "parameters": 27}, "class_labels": [0, 1, 2]}
FAST = 2.0  # seconds that log() may take on a busy machine; a call that waited for the server would take ten and more


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def row(number: int, **more: float) -> dict[str, Any]:
    metrics = {"eval/accuracy": 1 - 1 / (number + 1), "eval/loss": 1 / number, "privacy/epsilon": 0.4 * number, "privacy/budget": 8.0}
    return {"round": number, "time": 1.7e9 + 3.5 * number, "metrics": {**metrics, **more}}


class Run:
    """An output directory, and the driver's part: a row goes to the file first, then to the tracker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slowest = 0.0
        folder.mkdir(parents=True)

    def write(self, *rounds: int) -> None:
        with (self.folder / METRICS).open("a") as file:
            file.writelines(json.dumps(row(r)) + "\n" for r in rounds)

    def log(self, tracker: Tracker, *rounds: int) -> None:
        for number in rounds:
            self.write(number)
            began = time.perf_counter()
            tracker.log(row(number))
            self.slowest = max(self.slowest, time.perf_counter() - began)

    def end(self, status: str = "completed", sha256: str = "ab" * 32, rounds: int = ROUNDS, claim: str = "void") -> None:
        reasons = ["x is set"] if claim == "void" else []
        private = {"unit": "record", "epsilon": 7.9, "delta": 1e-5, "accountant": "pld", "ledger_sha256": "ef" * 32}
        private |= {"claim": claim, "claim_reasons": reasons, "budget": 8.0}
        summary = {
            "status": status,
            "rounds": rounds,
            "planned_rounds": ROUNDS,
            "model_sha256": sha256,
            "final": {"eval/accuracy": 0.95},
            "privacy": private,
        }
        files = {
            "summary.json": summary,
            "partition.json": {
                "clients": 2,
                "digest": "cd" * 32,
                "rows": [{"client": c, "records": 9, "classes": [4, 5]} for c in "ab"],
                **DATA,
            },
            "privacy_statement.json": {
                "summary": {"claim": claim, "claim_reasons": reasons},
                "clients": [{"name": "a", "epsilon": 7.9}],
            },
        }
        for name, content in files.items():
            (self.folder / name).write_text(json.dumps(content))
        (self.folder / "config.yaml").write_text("tracking:\n  uri: http://me:secret@host:5000\n")
        (self.folder / "privacy_statement.md").write_text("# Privacy statement\n")
        (self.folder / "ledger").mkdir(exist_ok=True)
        (self.folder / "ledger" / "run.jsonl").write_text("{}\n")

    def open(self, uri: str, register_as: str | None = None, tags: dict[str, str] | None = None, **more: Any) -> Tracker:
        params = {"training.lr": "0.1", "data.source": "sklearn:digits", "long": "x" * 9000, **{f"p.{i}": "1" for i in range(150)}}
        tags = {"fedray.seed": "7", "privacy/claim": "valid"} | (tags or {})
        name = self.folder.name
        return Tracker.open(
            self.folder, params, tags, uri=uri, experiment="tests", run_name=name, register_as=register_as or f"model-{name}", **more
        )


def build() -> tuple[nn.Module, np.ndarray]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), np.ones((1, 2, 4), dtype=np.float32)


def history(uri: str, run_id: str, key: str = "eval/accuracy") -> list[tuple[int, float]]:
    points = load_mlflow().MlflowClient(uri).get_metric_history(run_id, key)
    return [(p.step, p.value) for p in sorted(points, key=lambda p: p.timestamp)]


def whole() -> list[tuple[int, float]]:
    return [(r, float(f"{row(r)['metrics']['eval/accuracy']:.4g}")) for r in range(1, ROUNDS + 1)]


# -- a SQLite store ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def test_a_run_from_start_to_registered_model(store: str, tmp_path: Path) -> None:
    before = dict(os.environ)
    run = Run(tmp_path / "whole")
    tracker = run.open(store)
    run.log(tracker, *range(1, ROUNDS + 1))
    run.end()
    assert tracker.close("FINISHED", 60, build, {"fedray.extra": "1"})
    tracker.log(row(99))  # too late, and harmless
    assert (tracker.registered("ab" * 32), tracker.registered("other")) == ("models:/model-whole/1", None)
    client = load_mlflow().MlflowClient(store)
    got = client.get_run(tracker.run_id)
    assert history(store, tracker.run_id) == whole()
    assert run.slowest < FAST
    assert got.info.status == "FINISHED"
    assert got.data.params["training.lr"] == "0.1"
    assert len(got.data.params) == 154
    assert got.data.params["privacy.budget"] == "8"
    assert "privacy/budget" not in got.data.metrics  # it is constant
    assert len(got.data.params["long"]) == 6000
    assert got.data.tags["privacy/claim"] == "void: x is set"
    assert got.data.tags["fedray.stop_reason"] == "completed"
    assert got.data.tags["fedray.extra"] == "1"
    first, *rest = got.data.tags["mlflow.note.content"].splitlines()
    assert first == "**accuracy 0.95** · **claim void: x is set** · epsilon 7.9 of 8 at delta 1e-05 for one record"
    assert "*Ended:* completed all 20 rounds." in rest
    assert got.data.tags["fedray.ending"] == "completed all 20 rounds"
    data = {d.tags[0].value: d.dataset for d in got.inputs.dataset_inputs}
    assert {context: d.name for context, d in data.items()} == {"training": "sklearn:digits", "held out": "sklearn:digits, held out"}
    assert "mlflow_tensorspec" in data["training"].schema

    paths = {
        a.path
        for top in client.list_artifacts(tracker.run_id)
        for a in ([top] if not top.is_dir else client.list_artifacts(tracker.run_id, top.path))
    }
    drawn = ("accuracy", "loss", "epsilon", "accuracy_vs_epsilon", "partition")
    figures = {f"figures/{name}.{form}" for name in drawn for form in ("png", "svg")}
    assert paths == figures | {
        "clients/clients.json",
        "config.yaml",
        "ledger/run.jsonl",
        "partition.json",
        "privacy_statement.json",
        "privacy_statement.md",
        "summary.json",
    }
    assert "secret" not in Path(client.download_artifacts(tracker.run_id, "config.yaml", str(tmp_path))).read_text()
    table = json.loads(Path(client.download_artifacts(tracker.run_id, "clients/clients.json", str(tmp_path))).read_text())
    assert table == {"columns": ["client", "records", "epsilon"], "data": [["a", 9, 7.9], ["b", 9, None]]}
    assert json.loads(got.data.tags["mlflow.loggedArtifacts"]) == [{"path": "clients/clients.json", "type": "table"}]

    version = client.get_model_version_by_alias("model-whole", "newest")
    assert version.run_id == tracker.run_id
    wanted = {
        "epsilon": "7.9",
        "delta": "1e-05",
        "unit": "record",
        "accountant": "pld",
        "claim": "void: x is set",
        "result": "accuracy 0.95",
        "run": "whole",
    }
    assert wanted.items() <= version.tags.items()
    assert version.tags["model_sha256"] == "ab" * 32
    assert version.tags["ledger_sha256"] == "ef" * 32
    state = State.load(run.folder)
    assert state is not None
    assert state.model["version"] == str(version.version)
    logged = client.get_logged_model(state.model["id"])
    assert logged.name == "whole"
    assert {(m.key, m.step) for m in logged.metrics} >= {("eval/accuracy", ROUNDS), ("privacy/epsilon", ROUNDS)}
    assert {m.key: m.dataset_name for m in logged.metrics if m.key.startswith("eval/")} == dict.fromkeys(
        ("eval/accuracy", "eval/loss"), "sklearn:digits, held out"
    )
    loaded = load_mlflow().pytorch.load_model(version.source)
    x = torch.randn(5, 2, 4)
    torch.testing.assert_close(loaded(x), build()[0](x))
    assert {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_HTTP")} == {
        k: v for k, v in before.items() if k.startswith("MLFLOW_HTTP")
    }
    assert os.environ.get("MLFLOW_TRACKING_URI") == before.get("MLFLOW_TRACKING_URI")


def test_sending_everything_again_adds_nothing(store: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "again")
    tracker = run.open(store)
    run.log(tracker, *range(1, ROUNDS + 1))
    run.end()
    assert tracker.close("FINISHED", 60, build)
    client = load_mlflow().MlflowClient(store)
    ended = client.get_run(tracker.run_id).info.end_time
    assert "0 values sent" in sync(run.folder, build)
    state = State.load(run.folder)
    assert state is not None
    state.shipped, state.model = {}, {}  # as if tracking.json had been lost but for the run's id
    state.save(run.folder)
    assert f"{3 * ROUNDS} values sent" in sync(run.folder, build)
    assert history(store, tracker.run_id) == whole()
    assert len(client.search_model_versions("name = 'model-again'")) == 1
    assert len(client.search_logged_models([state.experiment_id], f"source_run_id = '{tracker.run_id}'")) == 1
    assert client.get_run(tracker.run_id).info.end_time == ended
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_resumed_run_goes_on_under_its_id(store: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "resumed")
    first = run.open(store)
    run.log(first, *range(1, 11))
    run.end("interrupted")
    assert first.close("KILLED", 60, build)
    client = load_mlflow().MlflowClient(store)
    assert client.get_run(first.run_id).info.status == "KILLED"
    # The driver goes back to the checkpoint of round 8; 11 and 12 were written and never sent.
    run.write(11, 12)
    second = run.open(store, resume=True, resumed_from_round=8)
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    kept = (run.folder / METRICS).read_text().splitlines()[:8]
    (run.folder / METRICS).write_text("\n".join(kept) + "\n")
    run.log(second, *range(9, ROUNDS + 1))
    run.end()
    assert second.close("FINISHED", 60, build)
    assert history(store, first.run_id) == whole()
    assert client.get_run(first.run_id).data.tags["fedray.resumed_from_round"] == "8"
    assert len(client.search_model_versions("name = 'model-resumed'")) == 1


@pytest.mark.slow
def test_a_run_that_its_budget_stopped_says_so_and_does_not_take_the_alias(store: str, tmp_path: Path) -> None:
    """Nor does one whose claim is void take it from one whose claim is valid; the models of both are kept."""
    runs, client = {}, load_mlflow().MlflowClient(store)
    for name, status, claim in (
        ("a", "completed", "valid"),
        ("b", "budget_reached", "valid"),
        ("c", "completed", "void"),
        ("d", "completed", "valid"),
    ):
        run = runs[name] = Run(tmp_path / name)
        tracker = run.open(store, register_as="shared")
        run.log(tracker, 1, 2)
        run.end(status, sha256=name * 64, rounds=ROUNDS if status == "completed" else 2, claim=claim)
        assert tracker.close(mlflow_tracker.STATUSES[status], 60, build)
        newest = client.get_model_version_by_alias("shared", "newest")
        assert newest.run_id == State.load(runs["d" if name == "d" else "a"].folder).run_id  # type: ignore[union-attr]
    assert len(client.search_model_versions("name = 'shared'")) == 4
    state = State.load(runs["b"].folder)
    assert state is not None
    stopped = client.get_run(state.run_id)
    assert stopped.info.status == "KILLED"
    assert stopped.data.tags["fedray.stop_reason"] == "budget_reached"
    assert stopped.data.tags["fedray.ending"] == "stopped by its budget of 8 after 2 of 20 rounds"
    assert stopped.data.tags["mlflow.note.content"].startswith("**Stopped by its budget of 8 after 2 of 20 rounds** · **accuracy")


def test_the_documented_filters_find_what_they_say(store: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reading_runs.md").read_text()
    recipes = dict(re.findall(r"^\| ([^|]+) \| `+((?:attributes|tags|metrics)\..+?)`+ \|$", page, re.M))
    assert len(recipes) >= 10
    run = Run(tmp_path / "digits-2")
    origin = {
        "fedray.commit": "98fb6c0aa",
        "fedray.clean": "true",
        "fedray.directory": "/x/runs/digits-2",
        "fedray.overrides": "privacy.clip=0.5 a=1",
    }
    tracker = run.open(store, register_as="found", tags=origin)
    run.log(tracker, 1)
    run.end("completed", claim="valid")
    assert tracker.close("FINISHED", 60)
    client, found = load_mlflow().MlflowClient(store), dict[str, bool]()
    state = State.load(run.folder)
    assert state is not None
    for question, text in recipes.items():
        runs = client.search_runs([state.experiment_id], text, max_results=1000)
        found[question] = tracker.run_id in {r.info.run_id for r in runs}
    assert {question for question, there in found.items() if there} == {
        "whole runs with a valid claim",
        "runs of one commit, with nothing changed since",
        "the run of a directory",
        "runs with this override",
    }


def test_a_killed_driver_is_synced_from_its_files(store: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "killed")
    script = f"""
import os, signal, sys, time
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT / "tests")]!r}
from pathlib import Path
from paths import ROOT
from processes import wait_until
from test_tracking_mlflow import Run
from fedray.tracking.journal import State
run = Run.__new__(Run)
run.folder, run.slowest = Path({str(run.folder)!r}), 0.0
tracker = run.open({store!r})
run.log(tracker, 1, 2, 3)
wait_until(lambda: State.load(run.folder).shipped.get("eval/loss") == 3, "three rounds sent")
run.write(4)
print("ready", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        with pytest.raises(TrackingError, match="still being tracked"):
            sync(run.folder)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    said = sync(run.folder)
    assert "3 values sent" in said
    assert "KILLED" in said
    state = State.load(run.folder)
    assert state is not None
    assert history(store, state.run_id) == whole()[:4]


def test_a_run_can_be_sent_to_another_store(store: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "moved")
    tracker = run.open(store)
    run.log(tracker, *range(1, ROUNDS + 1))
    run.end()
    assert tracker.close("FINISHED", 60)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    sync(run.folder, uri=other)
    state = State.load(run.folder)
    assert state is not None
    assert state.tracking_uri == other
    assert history(other, state.run_id) == whole()
    assert load_mlflow().MlflowClient(other).get_run(state.run_id).data.params["training.lr"] == "0.1"


def test_a_model_that_cannot_be_exported_does_not_stop_the_rest(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :1] if bool(x.sum() > 0) else x.flatten(1)[:, :2]

    run = Run(tmp_path / "odd")
    tracker = run.open(store)
    run.log(tracker, 1, 2)
    run.end()
    assert tracker.close("FINISHED", 60, lambda: (Odd(), np.ones((1, 4), dtype=np.float32)))
    assert load_mlflow().MlflowClient(store).get_run(tracker.run_id).info.status == "FINISHED"
    assert "cannot be exported" in caplog.text


# -- a wrong address -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://127.0.0.1:{closed}", "connection refused"),
        ("http://127.0.0.1:{silent}", "no answer in time"),
        ("http://u:secret@no-such-host.invalid:5000", "host name is not known"),
        ("ftp://somewhere/x", "is no tracking URI"),
        ("./mlruns", "is a folder"),
        ("sqlite:///{dir}/text.db", "is not an SQLite file"),
        ("sqlite:////proc/none/mlflow.db", "cannot be written"),
    ],
)
def test_a_wrong_uri_fails_at_once_in_one_sentence(uri: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is not a database, only some text")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = uri.format(closed=free_port(), silent=silent.getsockname()[1], dir=tmp_path)
        run = Run(tmp_path / "wrong")
        began = time.monotonic()
        with pytest.raises(ConfigError, match=says) as caught:
            run.open(uri)
        assert time.monotonic() - began < 90  # with MLflow's own retries it would be 245
    sentence = str(caught.value)
    assert sentence.startswith("tracking.uri: ")
    assert "\n" not in sentence
    assert "secret" not in sentence
    assert caught.value.exit_code == 2


# -- a server ------------------------------------------------------------------------------------


class Server:
    """An MLflow server in a process group of its own, always on the same port over the same store."""

    def __init__(self, folder: Path, artifacts: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.artifacts = artifacts or str(folder / "artifacts")
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", self.artifacts]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True, cwd=self.folder)

    def wait(self) -> None:
        def healthy() -> bool:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_until(healthy, "the MLflow server answers", 60)

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts while the tests that need none run; those that need it wait."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def shipped() -> Callable[[Run, int], None]:
    def wait(run: Run, number: int) -> None:
        def there() -> bool:
            state = State.load(run.folder)
            return state is not None and state.shipped.get("eval/accuracy", 0) >= number

        wait_until(there, f"round {number} is at the server")

    return wait


@pytest.mark.slow
def test_a_server_that_starts_late_is_waited_for(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fedray.tracking")
    server.kill()
    run = Run(tmp_path / "early")
    opening = Background(lambda: run.open(server.uri, wait=120.0))
    wait_until(lambda: "does not answer yet (connection refused); waiting up to 120 s" in caplog.text, "the wait is told")
    server.start()
    tracker = opening.result()
    run.log(tracker, 1)
    run.end()
    assert tracker.close("FINISHED", 60)
    assert history(server.uri, tracker.run_id) == whole()[:1]


def test_a_hung_server_does_not_slow_the_rounds(
    server: Server, tmp_path: Path, shipped: Callable[[Run, int], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "SHIP_PATIENCE", 1)
    caplog.set_level(logging.WARNING, "fedray.tracking")
    server.start()
    server.wait()
    run = Run(tmp_path / "hung")
    tracker = run.open(server.uri)
    run.log(tracker, *range(1, 6))
    shipped(run, 5)
    server.signal(signal.SIGSTOP)
    try:
        run.log(tracker, *range(6, ROUNDS + 1))
        wait_until(lambda: "no answer in time" in caplog.text, "the outage is told")
    finally:
        server.signal(signal.SIGCONT)
    run.end()
    assert tracker.close("FINISHED", 60, build)
    assert run.slowest < FAST
    assert history(server.uri, tracker.run_id) == whole()
    client = load_mlflow().MlflowClient(server.uri)
    assert client.get_model_version_by_alias("model-hung", "newest").run_id == tracker.run_id
    assert {a.path for a in client.list_artifacts(tracker.run_id)} >= {"config.yaml", "figures", "ledger", "summary.json"}


@pytest.mark.slow
def test_a_server_that_is_killed_gets_every_round(
    server: Server, tmp_path: Path, shipped: Callable[[Run, int], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "_LONGEST_DELAY", 2.0)
    caplog.set_level(logging.WARNING, "fedray.tracking")
    server.start()
    server.wait()
    runs = lasting, ending = Run(tmp_path / "lasting"), Run(tmp_path / "ending")
    trackers = [run.open(server.uri) for run in runs]
    for run, tracker in zip(runs, trackers, strict=True):
        run.log(tracker, *range(1, 6))
    for run in runs:
        shipped(run, 5)
    server.kill()

    # One run goes on through the outage.
    lasting.log(trackers[0], *range(6, 13))
    wait_until(lambda: "cannot be reached" in caplog.text, "the outage is told")
    # The other ends in it: close() gives up in time, and so does a sync that comes too early.
    ending.log(trackers[1], *range(6, ROUNDS + 1))
    ending.end()
    began = time.monotonic()
    assert not trackers[1].close("FINISHED", 1.0, build)
    assert time.monotonic() - began < 30
    assert not trackers[1].close("FINISHED", 1.0, build)
    with pytest.raises(TrackingError, match="connection refused"):
        sync(ending.folder, build)

    server.start()
    lasting.log(trackers[0], *range(13, ROUNDS + 1))
    server.wait()
    shipped(lasting, ROUNDS)
    lasting.end()
    assert trackers[0].close("FINISHED", 60)
    assert "registered as version 1 of model-ending" in sync(ending.folder, build)

    client = load_mlflow().MlflowClient(server.uri)
    for run, tracker in zip(runs, trackers, strict=True):
        assert history(server.uri, tracker.run_id) == whole()
        assert client.get_run(tracker.run_id).info.status == "FINISHED"
        assert run.slowest < FAST
    assert caplog.text.count("cannot be reached") == 2  # once a run
    assert caplog.text.count("is back") == 1
