"""Sweeps on a real Ray: twelve trials whose process is killed in the middle, and a sealed sweep that leaves nothing of its other trials."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from paths import ROOT
from processes import wait_until

from fedray.privacy.ledger.inspect import verify_all
from fedray.runfiles import RunFiles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONFIG = str(ROOT / "configs" / "digits-sweep.yaml")


def command(where: Path, *more: str) -> list[str]:
    store = f"tracking.uri=sqlite:///{where.parent / 'mlflow.db'}"
    return [sys.executable, "-m", "fedray", "sweep", CONFIG, store, "rounds=10", "ray.cpus=2", *more, "--output", str(where)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_twelve_trials_whose_process_is_killed_yield_the_frontier(tmp_path: Path) -> None:
    where = tmp_path / "sweep"
    with open(tmp_path / "first.txt", "w") as out:
        first = subprocess.Popen(command(where), env=environment(), stdout=out, stderr=out, start_new_session=True)

    def done() -> list[Path]:
        return sorted(where.glob("trials/*/trial.json"))

    wait_until(lambda: len(done()) >= 4 or first.poll() is not None, "four trials", 1500)
    assert first.poll() is None, (tmp_path / "first.txt").read_text()
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in done()}
    again = subprocess.run([*command(where), "--resume"], env=environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in done() if path in before} == before  # none was run again
    summary = json.loads((where / "sweep.json").read_text())
    assert [row["status"] for row in summary["trials"]] == ["completed"] * 12 or {"completed", "budget_reached"} >= {
        row["status"] for row in summary["trials"]
    }
    scores = {tuple(row["point"].values()): (row["score"], row["epsilon"]) for row in summary["trials"]}
    for clip in (0.5, 0.8, 1.25, 2.0):  # less noise costs more
        assert scores[clip, 1.5][1] > scores[clip, 2.5][1] > scores[clip, 4.0][1]
    assert summary["privacy"][0]["epsilon"] > max(epsilon for _, epsilon in scores.values())
    assert (where / "frontier.png").stat().st_size > 10_000
    assert len(list(verify_all(where))) >= 12
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits-sweep")
    runs = client.search_runs([experiment.experiment_id], max_results=50)
    (parent,) = [r for r in runs if r.data.tags["fedray.kind"] == "sweep"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 12 and {r.info.status for r in (parent, *children)} == {"FINISHED"}
    assert "| trial |" in parent.data.tags["mlflow.note.content"]
    assert len(client.search_model_versions("name = 'digits-sweep'")) == 1


def test_a_sealed_sweep_leaves_one_run(tmp_path: Path) -> None:
    where = tmp_path / "sweep"
    more = ["sweep.price=sealed", "sweep.search=random", "sweep.public=true", "sweep.mean=2.5", "sweep.shape=1.0", "rounds=2"]
    ended = subprocess.run(command(where, *more), env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = ended.stdout.partition("The trials are at work")[2] + ended.stderr
    assert not re.search(r"trial[- _]\d|\d+ trials|trial=", said)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert not [name for name in left if "trial" in name or ".private" in name or "tune" in name]
    summary = json.loads((where / "sweep.json").read_text())
    assert RunFiles(where).load_model() and summary["score"] > 0
    assert any("follow from" in line for line in verify_all(where))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("digits-sweep").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["eval/accuracy"] == pytest.approx(summary["score"])
