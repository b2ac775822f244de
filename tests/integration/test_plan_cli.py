"""``fedray plan`` and ``fedray report`` as a person runs them, and a plan against the run that it foresaw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

import fedray
from fedray.cli import cli

DIGITS = str(ROOT / "configs" / "digits.yaml")
SHORT = ["rounds=3", "data.partition={kind: iid, clients: 4}", "privacy.delta=2e-4", "training.steps=2"]


def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "fedray", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def within(*arguments: str) -> tuple[int, str, str]:
    """The same in this process, which has imported everything already."""
    done = CliRunner().invoke(cli, arguments)
    return done.exit_code, done.stdout, done.stderr


def processor_seconds_of_children() -> float:
    return sum(os.times()[2:4])


@pytest.fixture(scope="module")
def seconds() -> float:
    """Processor seconds that a plan may take: twice what its libraries' import takes, on this machine as busy as it is.

    A plan takes 1.2 to 1.5 times that. Seconds alone would fail on a machine whose cores are shared.
    """
    began = processor_seconds_of_children()
    subprocess.run([sys.executable, "-c", "import torch, ray, opacus, sklearn.datasets, scipy.stats"], check=True, timeout=120)
    return 2 * (processor_seconds_of_children() - began)


def test_the_quickstart_is_planned_in_seconds_and_leaves_nothing_behind(tmp_path: Path, seconds: float) -> None:
    began = processor_seconds_of_children()
    code, out, err = command(tmp_path, "plan", DIGITS)
    assert code == 0, err
    assert processor_seconds_of_children() - began < seconds
    for phrase in ("client-0009", "largest epsilon 7.999", "noise multiplier for epsilon: 1 -> ", "fits", "traffic", "memory"):
        assert phrase in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_thousand_clients_are_planned_as_fast(tmp_path: Path, seconds: float) -> None:
    began = processor_seconds_of_children()
    code, out, err = command(tmp_path, "plan", DIGITS, "data.partition={kind: iid, clients: 1000}")
    assert code == 0, err
    assert processor_seconds_of_children() - began < seconds
    assert "client-0000 and 999 more" in out


def test_a_budget_that_would_be_exceeded_is_exit_code_3_after_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*SHORT, "privacy.target_epsilon=null", "privacy.noise_multiplier=1.0", "privacy.budget=6"]
    code, out, err = within("plan", DIGITS, *given, "--json", "--plot", "plan.png")
    assert code == 3
    plan = json.loads(out)
    assert err.strip() == f"fedray: {plan['refusal']}"
    assert plan["lines"][0]["rows"][0]["verdict"] == "exceeds"
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--plot", "no/such/plan.png"], "--plot"), (["privacy.delta=0.4"], "privacy.delta.too_large")]
)
def test_bad_usage_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = within("plan", DIGITS, *SHORT, *arguments)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.usefixtures("cluster")
def test_a_run_spends_what_was_planned_and_its_report_and_its_model_say_so(tmp_path: Path) -> None:
    import mlflow

    from fedray.configfile import load_config
    from fedray.experiment.planner import make_plan
    from fedray.experiment.preparation import prepare
    from fedray.experiment.report_page import write_report

    config = load_config(DIGITS, SHORT)
    plan = make_plan(prepare(config), curves=False)
    result = fedray.run(config, output=str(tmp_path / "run"))
    (line,) = plan["lines"]
    statement = json.loads((tmp_path / "run" / "privacy_statement.json").read_text())
    assert {c["epsilon"] for c in statement["clients"]} == {line["epsilon"]}
    performance = result.summary["performance"]
    assert performance["bytes_down"] % plan["memory"]["model"] == 0

    client = mlflow.MlflowClient(result.summary["mlflow"]["tracking_uri"])
    version = client.get_model_version_by_alias("digits", "newest")
    sentence = statement["guarantee"]["statement"]
    wanted = {"statement": sentence, "claim": "valid", "unit": "record", "regime": "local-dp-sgd", "delta": "0.0002"}
    assert wanted.items() <= version.tags.items()
    assert version.tags["ledger_sha256"] == statement["ledger"]["head_sha256"]
    assert version.tags["privacy_statement"] == f"runs:/{version.run_id}/privacy_statement.md"
    assert sentence in version.description
    assert "privacy_statement.md" in {a.path for a in client.list_artifacts(version.run_id)}

    html, markdown = write_report(tmp_path / "run")
    assert sentence in markdown.read_text()
    assert "the figures of 4 clients follow from" in markdown.read_text()
    assert "data:image/png;base64," in html.read_text()
