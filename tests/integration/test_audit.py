"""``fedray audit`` on a finished run: its MLflow run gets figures and pictures, but nothing of its private records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audited import digits
from click.testing import CliRunner

import fedray
from fedray.cli import cli


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_finished_run_is_attacked_and_logged(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    config = digits("rounds=2", "training.engine=auto", "tracking.enabled=true", f"tracking.uri={store}")
    result = fedray.run(config, output=str(tmp_path / "run"))
    assert result.status == "completed"
    done = CliRunner().invoke(cli, ["audit", str(result.output), "--canaries", "100", "--seed", "3"])
    assert done.exit_code == 0, done.output
    kept = json.loads((result.output / "audit" / "audit.json").read_text())
    found = {row["what"]: row for row in kept["attacks"]}
    assert list(found) == [
        "canary records, loss of the final model",
        "canary records, every update",
        "membership by loss",
        "membership by likelihood ratio",
        "gradient inversion (demonstration)",
    ]
    assert "the run's figures follow from its ledger" in [row["what"] for row in kept["checks"]]
    assert abs(found["membership by loss"]["auc"] - 0.5) < 0.15
    assert found["membership by loss"]["epsilon"] == pytest.approx(result.summary["privacy"]["epsilon"], rel=0.01)
    assert (result.output / "audit" / "membership_by_loss_roc.png").exists()

    import mlflow

    client = mlflow.MlflowClient(store)
    run_id = result.summary["mlflow"]["run_id"]
    run = client.get_run(run_id)
    assert run.data.metrics["privacy/audit_lower95"] <= run.data.metrics["privacy/epsilon"]
    assert run.info.status == "FINISHED"
    sent = {a.path for a in client.list_artifacts(run_id, "audit")}
    assert "audit/audit.json" in sent and "audit/canary_records_every_update_roc.png" in sent
    assert not any("membership" in path for path in sent)
    assert "report.html" in {a.path for a in client.list_artifacts(run_id)}
    assert run.data.tags["fedray.audit"].startswith("passed: ")
    published = json.loads(Path(client.download_artifacts(run_id, "audit/audit.json", str(tmp_path))).read_text())
    assert not any("membership" in row["what"] for row in published["attacks"])
