"""The quickstart as a person runs it: one command, then what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

from fedray.cli import cli
from fedray.configfile import load_config
from fedray.privacy.ledger.verification import verify
from fedray.rounding import rounded_up
from fedray.runfiles import RunFiles

DIGITS = str(ROOT / "configs" / "digits.yaml")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("quickstart")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"}
    command = [sys.executable, "-m", "fedray", "run", DIGITS, "ray.address=local", "clients.actors=2", "--profile"]
    done = subprocess.run(command, cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    yield folder, done.stdout.decode()


def test_it_says_what_came_out_and_where(quickstart: tuple[Path, str]) -> None:
    folder, out = quickstart
    for part in ("digits completed", "accuracy", "epsilon", "delta 0.0004", "model.safetensors", "ledger", "MLflow run", "fedray ui"):
        assert part in out
    assert out.count("round ") >= 60


def test_accuracy_and_epsilon(quickstart: tuple[Path, str]) -> None:
    folder, _ = quickstart
    summary = json.loads((folder / "runs" / "digits" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["rounds"] == 60
    assert summary["final"]["eval/accuracy"] >= 0.86  # noise is drawn anew each time; five seeds and the 0.90 line: tests/published
    assert 7.5 < summary["privacy"]["epsilon"] <= 8.0
    assert summary["privacy"]["epsilon_rdp"] >= summary["privacy"]["epsilon"]
    assert summary["privacy"]["claim"] == "valid"
    assert summary["privacy"]["accountant"] == "pld"


def test_the_files_of_a_run(quickstart: tuple[Path, str]) -> None:
    files = RunFiles(quickstart[0] / "runs" / "digits")
    assert load_config(files.config).privacy.target_epsilon == 8.0
    rows = files.rows()
    assert [r["round"] for r in rows] == list(range(1, 61))
    groups = {key.split("/")[0] for r in rows for key in r["metrics"]}
    assert groups == {"eval", "privacy", "round", "time", "traffic", "train"}
    epsilons = [r["metrics"]["privacy/epsilon"] for r in rows]
    assert epsilons == sorted(epsilons)
    # Under DP nothing is written that is computed from private records without noise.
    assert not any("loss_mean" in key or "fairness" in key for r in rows for key in r["metrics"])
    partition = json.loads(files.partition.read_text())
    assert partition["clients"] == 10
    assert not any("classes" in row for row in partition["rows"])
    assert files.statement.exists()
    assert list(files.checkpoints.iterdir())


def test_the_ledger_says_the_same_as_the_summary(quickstart: tuple[Path, str]) -> None:
    files = RunFiles(quickstart[0] / "runs" / "digits")
    summary = json.loads(files.summary.read_text())
    recomputed = verify(files.ledger / "records.jsonl").epsilons(4e-4)
    assert len(recomputed) == 10
    assert max(recomputed.values()) == pytest.approx(summary["privacy"]["epsilon"], rel=1e-3)


def test_the_mlflow_run(quickstart: tuple[Path, str]) -> None:
    import mlflow

    folder, _ = quickstart
    summary = json.loads((folder / "runs" / "digits" / "summary.json").read_text())
    uri = summary["mlflow"]["tracking_uri"]
    assert uri == f"sqlite:///{folder}/runs/mlflow.db"
    client = mlflow.MlflowClient(uri)
    run = client.get_run(summary["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "8.0"
    assert run.data.tags["privacy/claim"] == "valid"
    assert "privacy.insecure_seed" not in run.data.params
    history = client.get_metric_history(run.info.run_id, "eval/accuracy")
    assert [m.step for m in sorted(history, key=lambda m: m.step)] == list(range(1, 61))
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "partition.json", "privacy_statement.json", "summary.json", "ledger"} <= names
    version = client.get_model_version_by_alias("digits", "newest")
    assert version.tags["epsilon"] == rounded_up(summary["privacy"]["epsilon"])
    assert {"epsilon", "delta", "unit", "ledger_sha256"} <= set(version.tags)
    mlflow.set_tracking_uri(uri)
    import numpy as np

    model = mlflow.pyfunc.load_model(f"models:/digits/{version.version}")
    assert model.metadata.signature is not None
    assert np.asarray(model.predict(np.zeros((2, 64), dtype=np.float32))).shape == (2, 10)


def test_the_registered_model_scores_raw_test_rows_at_the_runs_accuracy_in_a_fresh_process(quickstart: tuple[Path, str]) -> None:
    import numpy as np

    from fedray.data.dataset import load_federation

    folder, _ = quickstart
    summary = json.loads((folder / "runs" / "digits" / "summary.json").read_text())
    config = load_config(DIGITS, ["data.normalize={kind: none}"])
    test = load_federation(config.data, config.seed).test
    assert test is not None
    np.savez(folder / "raw.npz", x=test.x * 16, y=test.y)  # grey values 0..16, as scikit-learn has them
    program = (
        "import sys, mlflow, numpy as np; mlflow.set_tracking_uri(sys.argv[1]); rows = np.load('raw.npz'); "
        "model = mlflow.pyfunc.load_model('models:/digits@newest'); print((model.predict(rows['x']).argmax(1) == rows['y']).mean()); "
        "assert 'fedray' not in sys.modules"
    )
    command = [sys.executable, "-c", program, summary["mlflow"]["tracking_uri"]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == summary["final"]["eval/accuracy"]


def test_a_profile_shows_where_the_rounds_time_went(quickstart: tuple[Path, str]) -> None:
    folder, out = quickstart
    files = RunFiles(folder / "runs" / "digits")
    assert files.profile.read_text() in out
    summary = json.loads(files.summary.read_text())
    found = summary["profile"]
    assert summary["engine"] == "book"
    assert ", engine book" in out
    assert found["rounds"] == 59
    for place in ("driver", "actors"):
        assert sum(found[place].values()) == pytest.approx(found["seconds_per_round"])
    assert found["actors"]["compute"] > 0
    assert all(found["driver"][kind] > 0 for kind in ("cohort", "wait", "transfer", "aggregation", "evaluation", "logging"))
    assert found["driver"]["other"] < 0.5 * found["seconds_per_round"]
    events = json.loads(files.trace.read_text())["traceEvents"]
    turns = [e for e in events if e["name"] == "local training"]
    assert len(turns) == 600  # ten clients, sixty rounds
    assert len({e["pid"] for e in turns}) == found["actors_seen"] == 2


def test_it_spent_what_was_planned_and_its_report_and_its_model_say_so(quickstart: tuple[Path, str]) -> None:
    import mlflow

    from fedray.planning.planner import make_plan
    from fedray.planning.preparation import prepare
    from fedray.reporting.report_page import write_report

    plan = make_plan(prepare(load_config(DIGITS)), curves=False)
    run = quickstart[0] / "runs" / "digits"
    summary = json.loads((run / "summary.json").read_text())
    (line,) = plan["lines"]
    statement = json.loads((run / "privacy_statement.json").read_text())
    assert {c["epsilon"] for c in statement["clients"]} == {line["epsilon"]}
    assert summary["performance"]["bytes_down"] % plan["memory"]["model"] == 0
    spent = summary["privacy"]["epsilon"]
    assert RunFiles(run).rows()[-1]["metrics"]["privacy/epsilon"] == statement["summary"]["epsilon"] == spent
    assert summary["privacy"]["clients_exhausted"] == 0

    client = mlflow.MlflowClient(summary["mlflow"]["tracking_uri"])
    version = client.get_model_version_by_alias("digits", "newest")
    sentence = statement["guarantee"]["statement"]
    wanted = {"statement": sentence, "claim": "valid", "unit": "record", "regime": "record", "delta": "0.0004"}
    assert wanted.items() <= version.tags.items()
    tracked = client.get_run(version.run_id)
    assert version.tags["epsilon"] == tracked.data.tags["privacy/epsilon"] == rounded_up(spent)
    assert tracked.data.metrics["privacy/epsilon"] == float(rounded_up(spent))
    assert version.tags["ledger_sha256"] == statement["ledger"]["head_sha256"]
    assert version.tags["privacy_statement"] == f"runs:/{version.run_id}/privacy_statement.md"
    assert sentence in version.description
    assert "privacy_statement.md" in {a.path for a in client.list_artifacts(version.run_id)}

    html, markdown = write_report(run)
    assert sentence in markdown.read_text()
    assert "the figures of 10 clients follow from" in markdown.read_text()
    assert html.read_text().count("<svg") >= 5 and "data:image/png;base64," in html.read_text()


@pytest.mark.slow
def test_a_second_run_gets_a_directory_of_its_own_and_resume_of_a_finished_run_is_harmless(quickstart: tuple[Path, str]) -> None:
    folder, _ = quickstart
    before = json.loads((folder / "runs" / "digits" / "summary.json").read_text())
    command = [sys.executable, "-m", "fedray", "run", DIGITS, "ray.address=local", "--resume"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    after = json.loads((folder / "runs" / "digits" / "summary.json").read_text())
    assert after["model_sha256"] == before["model_sha256"]
    assert after["mlflow"]["run_id"] == before["mlflow"]["run_id"]
    assert after["privacy"]["epsilon"] == before["privacy"]["epsilon"]
    assert after["final"] == before["final"]
    assert len(RunFiles(folder / "runs" / "digits").rows()) == 60


def test_ledger_commands(quickstart: tuple[Path, str]) -> None:
    folder, _ = quickstart
    command = [sys.executable, "-m", "fedray", "ledger", "show", "runs/digits", "--json"]
    shown = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=600)
    assert shown.returncode == 0, shown.stderr.decode()
    assert "client-0003" in shown.stdout.decode()
    verify_run = ["ledger", "verify", str(folder / "runs" / "digits")]
    assert CliRunner().invoke(cli, verify_run).exit_code == 0
    book = folder / "runs" / "digits" / "ledger" / "records.jsonl"
    text = book.read_text()
    book.write_text(text.replace('"round":3', '"round":4', 1))
    try:
        broken = CliRunner().invoke(cli, verify_run)
        assert broken.exit_code == 1
        assert "records.jsonl" in broken.stderr
    finally:
        book.write_text(text)
