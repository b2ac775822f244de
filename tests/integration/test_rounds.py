"""What a round does about clients that fail, diverge, are late or die, and how a run stops and resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from paths import ROOT
from processes import kill, wait_until
from shortruns import SHORT, short_run

import fedray
from fedray.cli import cli
from fedray.errors import FedrayError, RoundFailed
from fedray.runfiles import RunFiles

CONFIG: dict[str, Any] = SHORT | {
    "seed": 1,
    "rounds": 2,
    "data": {"source": "python:slowparts:data", "holdout": {"fraction": 0.25}},
    "model": {"kind": "python:slowparts:model"},
    "clients": {"actors": 2, "resources": {"cpu": 1.0}},
}
run = partial(short_run, **CONFIG)
ONE_ACTOR: dict[str, Any] = {"clients": {"actors": 1, "resources": {"cpu": 1.0}}}


@pytest.mark.usefixtures("cluster")
class TestFaultsOfClients:
    def test_failing_and_diverging_clients_are_named_with_their_errors_and_the_others_count(self, tmp_path: Path) -> None:
        notes: list[str] = []
        result = run(tmp_path / "run", notes, **ONE_ACTOR | {"model": {"kind": "python:slowparts:model", "fails": 2, "explodes": 1}})
        assert result.status == "completed"
        rows = RunFiles(result.output).rows()
        assert [r["metrics"]["round/clients_completed"] for r in rows] == [2, 2]
        assert [r["metrics"]["round/clients_failed"] for r in rows] == [2, 2]
        assert any("client c2" in n and "the sensor is broken" in n for n in notes)
        assert any("client c1" in n and "rejected" in n and "NaN or infinite" in n for n in notes)
        assert np.isfinite(result.summary["final"]["eval/loss"])
        assert result.summary["faults"]["client_failures"] == 4

    @pytest.mark.slow
    def test_where_whole_clients_are_protected_a_failing_one_changes_nothing_that_is_released(self, tmp_path: Path) -> None:
        notes: list[str] = []
        sections: dict[str, Any] = {
            "algorithm": {"kind": "fedavg", "weights": "uniform"},
            "cohort": {"kind": "all", "min_clients": 4},
            "privacy": {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-3},
        }
        result = run(tmp_path / "run", notes, model={"kind": "python:slowparts:model", "fails": 2}, **sections)
        assert (result.status, result.summary["rounds"]) == ("completed", 2)
        assert any("client c2" in n for n in notes)  # the operator learns of it, the rows and the summary do not
        assert not any(key.startswith("round/clients") for row in RunFiles(result.output).rows() for key in row["metrics"])
        assert set(result.summary["faults"]) == {"actor_deaths", "nodes_left", "driver_restarts", "retries"}
        assert result.summary["performance"]["clients_per_second"] is None

    def test_too_few_updates_fail_the_round_and_then_the_run(self, tmp_path: Path) -> None:
        sections = ONE_ACTOR | {"cohort": {"kind": "all", "min_clients": 4}, "evaluation": {"every": 0}}
        with pytest.raises(RoundFailed, match=r"3 updates of 4 clients arrived, cohort.min_clients asks for 4; c2 failed"):
            run(tmp_path / "run", model={"kind": "python:slowparts:model", "fails": 2}, **sections)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["status"] == "failed"
        assert "min_clients" in summary["error"]

    @pytest.mark.slow
    def test_a_late_client_is_left_out_at_the_deadline(self, tmp_path: Path) -> None:
        notes: list[str] = []
        result = run(
            tmp_path / "run",
            notes,
            model={"kind": "python:slowparts:model", "slow": 0},
            training={"lr": 0.1, "batch_size": 10, "epochs": 30},
            cohort={"kind": "all", "deadline": 2.0, "grace": 5.0},
        )
        rows = RunFiles(result.output).rows()
        late = [r["metrics"]["round/clients_late"] for r in rows]
        assert late[0] in (1, 2)  # before anyone knows how slow it is, another may wait for its turn behind it
        assert late[1] == 1
        assert [r["metrics"]["round/clients_completed"] for r in rows] == [4 - n for n in late]
        assert rows[0]["metrics"]["time/round_s"] < 15  # the slow client alone sleeps for 18 seconds
        assert any("client c0" in n and "late" in n for n in notes)

    @pytest.mark.slow
    def test_a_client_that_takes_its_actor_down_is_tried_again(self, tmp_path: Path) -> None:
        model = {"kind": "python:slowparts:model", "dies": 3, "mark": str(tmp_path / "mark")}
        result = run(tmp_path / "run", model=model)
        assert result.summary["faults"]["actor_deaths"] == 1
        assert [r["metrics"]["round/clients_completed"] for r in RunFiles(result.output).rows()] == [4, 4]
        calm = run(tmp_path / "calm")
        assert result.summary["model_sha256"] == calm.summary["model_sha256"]

    @pytest.mark.slow
    def test_a_silo_that_dies_between_rounds_is_replaced_and_asked_again(self, tmp_path: Path) -> None:
        killed: list[int] = []

        def listen(kind: str, value: Any) -> None:
            if kind == "row" and value["round"] == 1:
                killed.append(kill("ClientHost"))

        settings = CONFIG | {
            "rounds": 8,
            "data": {"source": "python:slowparts:data", "clients": 2},
            "model": {"kind": "softmax"},
            "clients": {"placement": "dedicated", "resources": {"cpu": 1.0}},
            "cohort": {"kind": "all", "min_clients": 2},
            "training": {"lr": 0.1, "sampling_rate": 0.5, "expected_batch": 10.0, "steps": 2},
            "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-3, "ledger": str(tmp_path / "books")},
        }
        result = fedray.run(settings, output=str(tmp_path / "run"), callbacks=[listen])
        assert killed
        assert result.status == "completed"
        assert result.summary["faults"]["actor_deaths"] == 1
        assert [r["metrics"]["round/clients_completed"] for r in RunFiles(result.output).rows()] == [2] * 8

    @pytest.mark.slow
    def test_clients_are_pinned_by_custom_resources_and_labels(self, tmp_path: Path) -> None:
        pinned = {"cpu": 0.5, "custom": {"site_1": 1.0}, "labels": {"region": "eu"}}
        groups = [{"name": "site", "clients": ["c0", "c1"], "resources": pinned}]
        clients = {"placement": "dedicated", "resources": {"cpu": 0.5}, "groups": groups}
        result = run(tmp_path / "run", clients=clients)
        assert [r["metrics"]["round/clients_completed"] for r in RunFiles(result.output).rows()] == [4, 4]

    @pytest.mark.slow
    def test_a_place_that_does_not_exist_is_named_with_what_it_asks_for(self, tmp_path: Path) -> None:
        resources = {"cpu": 0.5, "labels": {"region": "mars"}}
        with pytest.raises(FedrayError, match=r"are not up after 4 s .*first c0, which asks for .*mars.*the cluster has"):
            run(tmp_path / "run", clients={"placement": "dedicated", "resources": resources, "start_timeout": 4.0})

    @pytest.mark.slow
    def test_groups_train_with_their_own_settings(self, tmp_path: Path) -> None:
        groups = [{"name": "fast", "clients": ["c0", "c1"], "training": {"lr": 0.5}, "rate": 1.0}]
        clients = {"actors": 2, "resources": {"cpu": 1.0}, "groups": groups}
        with_groups = run(tmp_path / "a", clients=clients)
        without = run(tmp_path / "b")
        assert with_groups.summary["model_sha256"] != without.summary["model_sha256"]
        assert with_groups.status == "completed"

    def test_federated_evaluation_and_poisson_cohorts(self, tmp_path: Path) -> None:
        data = {"source": "python:slowparts:data", "holdout": {"fraction": 0.25, "at": "clients"}}
        result = run(
            tmp_path / "run",
            data=data,
            rounds=4,
            cohort={"kind": "poisson", "fraction": 0.5, "min_clients": 0},
            evaluation={"every": 2, "federated": True},
            **ONE_ACTOR,
        )
        rows = RunFiles(result.output).rows()
        assert ["fairness/accuracy_worst" in r["metrics"] for r in rows] == [False, True, False, True]
        final = result.summary["final"]
        assert final["fairness/accuracy_worst"] <= final["fairness/accuracy_mean"]
        assert 0 <= final["eval/accuracy"] <= 1
        assert {r["metrics"]["round/clients_sampled"] for r in rows} != {4}

    @pytest.mark.slow
    @pytest.mark.parametrize("records", [80, 20_000], ids=["small", "large"])  # large ones come later
    def test_python_objects_instead_of_import_paths(self, records: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        from torch import nn

        y = np.arange(records) % 2
        x = np.stack([y + 0.1, 1 - y], axis=1).astype(np.float32)

        def data() -> tuple[np.ndarray, np.ndarray]:
            return x, y

        def model(outputs: int) -> nn.Module:
            return nn.Linear(2, outputs)

        source = {"source": "python:x:y", "partition": {"kind": "iid", "clients": 4}}
        settings = CONFIG | {"data": source, "training": {"lr": 1.0, "batch_size": 5, "epochs": 2}}
        seen: list[str] = []
        result = fedray.run(
            settings, model=model, data=data, output=str(tmp_path / "run"), callbacks=[lambda kind, value: seen.append(kind)]
        )
        assert result.summary["final"]["eval/accuracy"] == 1.0
        assert seen.count("row") == 2
        assert isinstance(result.model(), nn.Linear)
        assert "constructor arguments" not in capfd.readouterr().err  # Ray's word that a lost driver could not come back


@pytest.mark.usefixtures("cluster")
def test_sigterm_saves_and_resume_continues(tmp_path: Path) -> None:
    """A real process with a Ray of its own: SIGTERM in mid-run ends with a checkpoint and a summary; --resume, in this process, ends like a run that never stopped (that its bytes are the same, test_same_bytes shows), whatever became of the run's other files meanwhile."""
    file = tmp_path / "c.json"
    slow = {"rounds": 5, "model": {"kind": "python:slowparts:model", "slow": 0}, "ray": {"address": "local", "cpus": 2}}
    file.write_text(json.dumps(CONFIG | ONE_ACTOR | slow))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "integration")])}
    stopped = tmp_path / "stopped"
    command = [sys.executable, "-m", "fedray", "run", str(file), "--output", str(stopped)]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(RunFiles(stopped).rows()) >= 2, "two rounds", 90)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 143, err.decode()
    summary = json.loads((stopped / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 2 <= summary["rounds"] < 5
    assert b"Traceback" not in err
    for name in ("run.json", "owner.json", "summary.json", "partition.json", "config.yaml", "faults.jsonl", "model.safetensors"):
        (stopped / name).write_bytes(b'{"id": "ru')
    rows = (stopped / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_bytes(b"".join([b"\0\n", *rows[1:], rows[0][:40]]))
    again = CliRunner().invoke(cli, ["run", str(file), "--output", str(stopped), "--resume"])
    assert again.exit_code == 0, again.output
    assert json.loads((stopped / "summary.json").read_text())["status"] == "completed"
    assert [r["round"] for r in RunFiles(stopped).rows()] == [2, 3, 4, 5]
    assert "metrics.jsonl: lacks what was written of round 1;" in again.stdout
    assert "completed" in again.stdout
