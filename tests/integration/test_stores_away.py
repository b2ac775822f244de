"""Runs whose files are in an object store, and what happens when it, the MLflow server or the disk does not do its part."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from objectstore import BUCKET, Wire, object_store
from paths import ROOT
from safetensors.numpy import load
from test_tracking_mlflow import Server

import fedray
from fedray.cli import cli
from fedray.runfiles import RunFiles
from fedray.stores.mirror import local_copy, working_directory
from fedray.stores.object_path import ObjectPath
from fedray.stores.s3 import Bucket
from fedray.tracking.mlflow_store import load_mlflow

DIGITS = ROOT / "configs" / "digits.yaml"

#: Seconds for which the servers are away.
OUTAGE = 60.0


class Store:
    """The S3 server, and addresses of runs in it."""

    def __init__(self, ledgers: str, wire: Wire) -> None:
        self._ledgers, self.wire = ledgers, wire
        self.endpoint = ledgers.partition("endpoint_url=")[2]

    def address(self, name: str) -> str:
        return self._ledgers.replace("/ledgers?", f"/runs/{name}?")

    def contents(self, name: str) -> dict[str, bytes]:
        bucket = Bucket(ObjectPath.parse(self.address(name)))
        return {key: bucket.get(key) or b"" for key in bucket.names()}


@pytest.fixture(scope="module")
def store(work: Path) -> Iterator[Store]:
    """An S3 server; this process has the working directories that the cluster's processes have."""
    with pytest.MonkeyPatch.context() as environment, object_store() as (address, wire):
        environment.setenv("FEDRAY_WORK", str(work))
        yield Store(address, wire)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("store", "cluster")
def test_the_mlflow_server_and_the_store_are_away_for_a_minute(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, address = 250, store.address("away")
    config: dict[str, Any] = {
        "name": "away",
        "rounds": rounds,
        "data": {"source": "python:slowparts:data", "holdout": {"fraction": 0.2, "at": "driver"}},
        "model": {"kind": "python:slowparts:model"},
        "clients": {"actors": 2},
        "training": {"lr": 0.1, "batch_size": 8, "epochs": 1},
    }
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", store.endpoint)
    expected = fedray.run({**config, "tracking": {"enabled": False}}, output=str(tmp_path / "reference"))
    server = Server(tmp_path, artifacts=f"s3://{BUCKET}/mlflow")
    server.start()
    server.wait()
    seen: list[int] = []
    meanwhile: list[int] = []
    notes: list[str] = []

    def outage() -> None:
        server.kill()
        store.wire.cut()
        first = len(seen)
        time.sleep(OUTAGE)  # the fault itself
        meanwhile.extend(seen[first:])
        store.wire.mend()
        server.start()

    away = threading.Thread(target=outage)

    def listen(kind: str, value: Any) -> None:
        if kind == "row":
            seen.append(value["round"])
            if value["round"] == 20:
                away.start()
        elif kind in ("note", "fault"):
            notes.append(str(value))

    slow = {**config, "model": {**config["model"], "slow": 0}, "tracking": {"uri": server.uri}}
    try:
        result = fedray.run(slow, output=address, callbacks=[listen])
        away.join()
        assert result.status == "completed"
        assert result.summary["model_sha256"] == expected.summary["model_sha256"]
        assert len(meanwhile) >= 30, "training went on"
        assert seen == list(range(1, rounds + 1))
        assert any("the store could not be reached" in note and "training goes on" in note for note in notes)
        assert any("the store is back and has everything" in note for note in notes)
        # the store: the same files as on a disk, and no row lost
        found, local = store.contents("away"), expected.output
        assert isinstance(local, Path)
        on_disk = {p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file() and not p.name.startswith(".")}
        assert set(found) == on_disk | {"owner.json", "tracking.json", "faults.jsonl"}
        assert [json.loads(line)["round"] for line in found["metrics.jsonl"].splitlines()] == seen
        tensors, same = load(found["model.safetensors"]), RunFiles(local).load_model()
        assert {k: v.tobytes() for k, v in tensors.items()} == {k: v.tobytes() for k, v in same.items()}
        assert json.loads(found["summary.json"]) == result.summary
        # MLflow: every row once, the artifacts, the model, the end
        client = load_mlflow().MlflowClient(server.uri)
        run = client.get_run(result.summary["mlflow"]["run_id"])
        assert run.info.status == "FINISHED"
        for key in ("eval/accuracy", "eval/loss", "time/round_s"):
            assert [p.step for p in client.get_metric_history(run.info.run_id, key)] == seen
        assert {"summary.json", "config.yaml", "clients", "figures"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
        assert client.search_model_versions("name='away'")
    finally:
        away.join()
        server.kill()
    with local_copy(address) as copy:
        assert {f["kind"] for f in RunFiles(copy).faults()} >= {"store"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("store", "cluster")
def test_a_private_run_goes_on_from_the_store_alone_and_its_book_is_whole(store: Store, tmp_path: Path) -> None:
    overrides = [
        "rounds=6",
        "data.partition={kind: iid, clients: 4}",
        "privacy={regime: record, noise_multiplier: 1.0, delta: 1e-4, clip: 1.0, insecure_seed: 11}",
        "training.steps=150",
        "tracking.enabled=false",
        "cohort={kind: all, retries: 3}",
        "clients.actors=2",
    ]
    address = store.address("private")
    expected = fedray.run(DIGITS, overrides=overrides, output=str(tmp_path / "reference"))

    def stop(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    first = fedray.run(DIGITS, overrides=overrides, output=address, callbacks=[stop])
    assert first.status == "interrupted"
    shutil.rmtree(working_directory(ObjectPath.parse(address)), ignore_errors=True)  # the next driver is on another node, which has nothing
    done = threading.Event()

    def outage(kind: str, value: Any) -> None:
        if kind == "row" and not done.is_set():
            done.set()
            store.wire.cut()
            threading.Timer(15.0, store.wire.mend).start()

    result = fedray.run(DIGITS, overrides=overrides, output=address, resume=True, callbacks=[outage])
    assert result.status == "completed"
    assert result.summary["model_sha256"] == expected.summary["model_sha256"]
    rows = [json.loads(line)["round"] for line in store.contents("private")["metrics.jsonl"].splitlines()]
    assert rows == list(range(1, 7))
    verified = CliRunner().invoke(cli, ["ledger", "verify", address])
    assert verified.exit_code == 0, verified.output
    assert verified.output.startswith(f"{ObjectPath.parse(address) / 'ledger/records.jsonl'}: whole, ")
    assert "the figures of 4 clients follow from" in verified.output
    assert not [p for p in RunFiles.at(ObjectPath.parse(address)).root.rglob("*") if p.suffix == ".salt" or p.name == "records.jsonl"]


# -- a slow disk -----------------------------------------------------------------------------------

SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int fsync(int file) {
    int mark = open(getenv("SLOW_DISK_MARK"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (mark >= 0) { if (write(mark, ".", 1) < 0) {} close(mark); }
    usleep(700000);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_disk_changes_no_byte(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("making a disk slow takes gcc")
    (tmp_path / "slow.c").write_text(SLOW)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "slow.so", "slow.c", "-ldl"], cwd=tmp_path, check=True)
    mark = tmp_path / "mark"
    command = [sys.executable, "-m", "fedray", "run", str(DIGITS), "rounds=4", "tracking.enabled=false", "clients.actors=2"]
    command += ["ray.address=local", "privacy={regime: record, noise_multiplier: 1.0, delta: 4e-4, clip: 1.0, insecure_seed: 11}"]
    plain = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    slow = {**plain, "LD_PRELOAD": str(tmp_path / "slow.so"), "SLOW_DISK_MARK": str(mark)}
    found = []
    for name, environment in (("plain", plain), ("slow", slow)):
        output = ["--output", str(tmp_path / name)]
        done = subprocess.run([*command, *output], env=environment, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / name / "summary.json").read_text())["model_sha256"])
    assert found[0] == found[1]
    assert mark.stat().st_size >= 12, "the disk was slow"  # a checkpoint, a row and a charge a round
