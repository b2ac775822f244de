"""``fedray audit`` on configs: the table, the files, the exit code, MLflow, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audited import digits
from click.testing import CliRunner

from fedray.audit.findings import Attack, Check
from fedray.audit.report import Report, conclude, figures
from fedray.audit.run import AuditRequest, audit
from fedray.cli import cli
from fedray.configfile import dump_config, load_config
from fedray.errors import ConfigError, FedrayError
from fedray.planning.preparation import prepare
from fedray.runfiles import RunFiles

CLIENT = (
    "privacy={regime: client, noise_multiplier: 6.0, delta: 1.0e-5, clip: 0.5, ledger: run}",
    "algorithm.weights=uniform",
)


def write(folder: Path, *overrides: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(dump_config(digits("training.engine=auto", *overrides)))
    return path


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["audit", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_config_is_audited_and_logged_as_a_run_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, "tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    code, out, err = invoke(str(path), "rounds=3", "--canaries", "100", "--output", str(tmp_path / "out"))
    assert code == 0, err
    assert "batches are independent coins" in out and "canary records, every update" in out and "gradient inversion" in out
    assert "membership" not in out
    kept = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert kept["faults"] == [] and len(kept["checks"]) == 12 and len(kept["attacks"]) == 3
    assert all(row["verdict"] == "holds" for row in kept["checks"])

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.search_runs([client.get_experiment_by_name(load_config(path).name).experiment_id])[0]
    assert run.data.tags["fedray.kind"] == "audit" and re.fullmatch(r"passed: \d+ checks.*", run.data.tags["fedray.audit"])
    assert {"privacy/audit_lower95", "privacy/audit_estimate", "privacy/audit_checks_failed"} <= set(run.data.metrics)
    names = {a.path for a in client.list_artifacts(run.info.run_id, "audit")}
    assert {"audit/audit.json", "audit/gradient_inversion_demonstration.png"} <= names


def test_the_verdict_is_one_clause(tmp_path: Path) -> None:
    config = digits("training.engine=auto")
    checks = [Check(f"c{i}", True, "as it should be.") for i in range(11)]
    attack = Attack("canaries", 1.8876, 1.9, 7.9951)
    passed = Report(config, tmp_path, tmp_path, checks, [attack], 0)
    assert passed.verdict == "passed: 11 checks, lower bound 1.88 of 8.00"
    assert figures(passed)["privacy/audit_lower95"] == 1.8876
    assert Report(config, tmp_path, tmp_path, checks[:1], [], 0).verdict == "passed: 1 check"
    doubtful = Report(config, tmp_path, tmp_path, checks, [replace(attack, estimate=20.0, at_least=19.0)], 0)
    assert doubtful.verdict == "passed: 11 checks, lower bound 1.88 of 8.00, an estimate is suspicious"
    broken = Report(config, tmp_path, tmp_path, checks, [replace(attack, lower=9.0)], 0)
    assert broken.verdict.startswith("contradicts the claim: 'canaries' proves epsilon >= 9")


def test_json_and_one_attack_alone(tmp_path: Path) -> None:
    code, out, _ = invoke(str(write(tmp_path)), "--attack", "inversion", "--json", "--output", str(tmp_path / "out"))
    assert code == 0
    assert [row["what"] for row in json.loads(out)["attacks"]] == ["gradient inversion (demonstration)"]


def test_a_contradiction_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    path = write(tmp_path, "privacy.insecure_seed=1")
    code, out, err = invoke(str(path), "--attack", "checks", "--output", str(tmp_path / "out"))
    assert code == 1
    assert "FAILED" in out
    assert (
        err.strip()
        .splitlines()[-1]
        .startswith(f"fedray: {path}: the audit contradicts the privacy claim: the check 'source of noise and coins' failed")
    )


@pytest.mark.parametrize(
    "mechanism",
    [
        "cohort={kind: poisson, fraction: 0.5}",
        "cohort={kind: fixed, size: 4}",
        "cohort={kind: cyclic, size: 5}",
        "privacy.mechanism={kind: tree} cohort={kind: cyclic, size: 2}",
        "privacy.mechanism={kind: banded, band: 2} cohort={kind: cyclic, size: 5}",
        "privacy.adaptive_clip={quantile: 0.5, bit_noise: 10.0}",
    ],
)
def test_whole_clients_are_audited_through_the_drivers_release(tmp_path: Path, mechanism: str) -> None:
    """Five checks, those of cohorts and of an adaptive clip, and an attack; a sound mechanism fails with probability below 1e-5."""
    path = write(tmp_path, *CLIENT, *mechanism.replace("} ", "}|").split("|"))
    found = [audit(AuditRequest(path, attack=kind, canaries=200)) for kind in ("checks", "canaries")]
    assert [c.name for c in found[0].checks if not c.passed] == [], [c.found for c in found[0].checks if not c.passed]
    assert len(found[0].checks) == 5 + 2 * ("poisson" in mechanism) + ("adaptive" in mechanism)
    assert [a.name for a in found[1].attacks] == ["canary clients, all releases"]
    assert not found[1].faults


def test_noise_at_the_clients_is_checked(tmp_path: Path) -> None:
    local = "privacy={regime: local, noise_multiplier: 20.0, delta: 1.0e-5, clip: 0.5}"
    found = audit(AuditRequest(write(tmp_path, local, "algorithm.weights=uniform"), attack="checks"))
    assert len(found.checks) == 5 and not found.faults


def test_two_units_are_both_audited(tmp_path: Path) -> None:
    joint = "privacy={regime: [record, client], noise_multiplier: 2.0, delta: 4.0e-4, joint: {noise_multiplier: 6.0, delta: 1.0e-5}}"
    found = audit(AuditRequest(write(tmp_path, joint, "algorithm.weights=uniform"), attack="checks"))
    assert len(found.checks) == 17 and not found.faults


def test_what_an_audit_cannot_do_is_said(tmp_path: Path) -> None:
    path = write(tmp_path)
    for attack, words in (("membership", "needs a finished run"), ("lira", "needs a finished run"), ("guess", "choose from")):
        with pytest.raises(ConfigError, match=words):
            audit(AuditRequest(path, attack=attack))
    with pytest.raises(ConfigError, match="no run's output directory"):
        audit(AuditRequest(tmp_path / ".."))
    open_ = write(tmp_path, "privacy={regime: none}")
    assert audit(AuditRequest(open_, attack="checks")).notes
    with pytest.raises(ConfigError, match="--attack inversion"):
        audit(AuditRequest(open_, attack="inversion"))


def finished(folder: Path, *overrides: str) -> Path:
    """The directory of a run that ended before its first round."""
    config = digits("training.engine=auto", "tracking.enabled=false", *overrides)
    model = prepare(config).model
    assert model is not None
    files = RunFiles(folder / "run")
    files.create()
    files.config.write_text(dump_config(config))
    files.partition.write_text(json.dumps({"model": model.document()}))
    files.save_model(model.facts.layout, model.weights.value)
    files.write_summary({"status": "completed", "rounds": 0})
    return files.root


def test_a_run_that_has_learnt_nothing_gives_nothing_away(tmp_path: Path) -> None:
    """The model before training knows no record; 359 of each kind, and the choice of them is seeded."""
    root = finished(tmp_path)
    code, out, err = invoke(str(root), "--attack", "membership")
    assert code == 0, err
    (row,) = json.loads((root / "audit" / "audit.json").read_text())["attacks"]
    assert (row["epsilon"], row["lower"], row["verdict"]) == (0.0, 0.0, "consistent")
    assert abs(row["auc"] - 0.5) < 0.1
    assert (root / "audit" / "membership_by_loss_roc.png").exists()
    found = audit(AuditRequest(finished(tmp_path, "privacy={regime: none}", "rounds=1"), attack="lira"))
    assert found.attacks[0].epsilon is None and found.attacks[0].facts["shadows"] == 16


def test_a_model_that_does_not_predict_by_itself_is_checked_and_not_attacked(tmp_path: Path) -> None:
    settings = ("algorithm={kind: fedper, personal: [fc.bias]}", "evaluation.metrics=[]", "training.steps=1")
    root = finished(tmp_path, *settings)
    with pytest.raises(ConfigError, match=r"--attack membership: .* does not predict by itself, because its layers fc\.bias stay"):
        audit(AuditRequest(root, attack="membership"))
    found = audit(AuditRequest(root, attack="all"))
    assert any("No attacks by a record's loss" in note for note in found.notes)
    assert found.checks and not found.faults and [a.name for a in found.attacks if "canar" in a.name or "member" in a.name] == []


def report(tmp_path: Path, *attacks: Attack, **more: Any) -> Report:
    return Report(digits(), tmp_path, tmp_path, [Check("noise", True, "fine")], attacks, 0, **more)


def test_figures_of_private_records_are_not_published(tmp_path: Path) -> None:
    found = report(tmp_path, Attack("canaries", 0.2, 0.5, 1.0), Attack("membership", 0.4, None, 1.0, private=True))
    assert figures(found) == {"privacy/audit_lower95": 0.2, "privacy/audit_estimate": 0.5, "privacy/audit_checks_failed": 0.0}
    assert [a["what"] for a in found.data(publish=True)["attacks"]] == ["canaries"]
    assert len(found.data()["attacks"]) == 2
    without = replace(found, config=digits("privacy={regime: none}"))
    assert figures(without)["privacy/audit_lower95"] == 0.4


def test_infinite_figures_stay_out_of_charts(tmp_path: Path) -> None:
    assert "privacy/audit_estimate" not in figures(report(tmp_path, Attack("canaries", 0.2, float("inf"), 1.0)))


def test_a_bound_above_what_is_proven_is_a_fault(tmp_path: Path) -> None:
    conclude(report(tmp_path, Attack("canaries", 0.9, 5.0, 1.0, at_least=4.0)))
    with pytest.raises(FedrayError, match="'canaries' proves epsilon >= 1.2, above the 1 that is claimed"):
        conclude(report(tmp_path, Attack("canaries", 1.2, 5.0, 1.0)))
