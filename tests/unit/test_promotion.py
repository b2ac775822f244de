"""`fedray promote`: an alias only where statement, ledger and audit verify."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_privacy_ledger_figures import change, finished, save

from fedray.cli import cli
from fedray.experiment import promotion
from fedray.experiment.promotion import TAG, promote
from fedray.tensorfile import DIGEST, read_tensors, write_tensors
from fedray.tracking.journal import State

AUDIT: dict[str, Any] = {"checks": [{"name": "noise", "passed": True}], "attacks": [{"name": "canaries"}], "faults": []}


class Registry:
    """An MLflow client of one registered version."""

    def __init__(self, sha256: str) -> None:
        self.sha256, self.aliases, self.tags = sha256, dict[str, str](), dict[str, str]()

    def get_model_version(self, name: str, version: str) -> Any:
        assert (name, version) == ("heart", "3")
        return SimpleNamespace(tags={"model_sha256": self.sha256})

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = version


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of a run in ``tmp_path / "run"`` that may be promoted."""
    run = tmp_path / "run"
    finished(run)
    write_tensors(run / "model.safetensors", {"w": np.ones(3, dtype=np.float32)}, {"format": "pt"})
    sha256 = read_tensors(run / "model.safetensors")[1][DIGEST]
    summary = json.loads((run / "summary.json").read_text())
    summary["privacy"] |= {"claim": "valid", "claim_reasons": []}
    save(run / "summary.json", summary | {"status": "completed", "rounds": 0, "model_sha256": sha256})
    audit(run, AUDIT)
    State("sqlite:///x.db", "e", "1", "r", "run", "heart", model={"sha256": sha256, "id": "m", "version": "3"}).save(run)
    made = Registry(sha256)
    monkeypatch.setattr(promotion, "connect", lambda uri, ask: (made, ask(made)))
    return made


def audit(run: Path, found: dict[str, Any] | None) -> None:
    path = run / "audit" / "audit.json"
    path.parent.mkdir(exist_ok=True)
    if found is None:
        path.unlink()
        return
    save(path, found)
    later = (run / "summary.json").stat().st_mtime + 1
    os.utime(path, (later, later))


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["promote", *arguments])
    return result.exit_code, result.output


def test_a_verified_run_gets_the_alias(tmp_path: Path, registry: Registry) -> None:
    code, said = invoke(str(tmp_path / "run"))
    assert code == 0 and registry.aliases == {"champion": "3"}
    assert "'heart' version 3 is @champion now: statement and ledger verified (epsilon " in said
    assert "audit passed with 1 checks and 1 attacks" in registry.tags[TAG]
    promote(tmp_path / "run", alias="production")
    assert registry.aliases == {"champion": "3", "production": "3"}


def test_a_run_without_audit_needs_to_be_told(tmp_path: Path, registry: Registry) -> None:
    audit(tmp_path / "run", None)
    code, said = invoke(str(tmp_path / "run"))
    assert code == 1 and "was not audited; run `fedray audit" in said and not registry.aliases
    assert invoke(str(tmp_path / "run"), "--without-audit")[0] == 0
    assert registry.aliases and "not audited" in registry.tags[TAG]


def _void(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["privacy"] |= {"claim": "void", "claim_reasons": ["noise can be replayed"]}
    save(run / "summary.json", summary)


def _status(run: Path) -> None:
    save(run / "summary.json", json.loads((run / "summary.json").read_text()) | {"status": "failed"})


def _no_privacy(run: Path) -> None:
    save(run / "summary.json", json.loads((run / "summary.json").read_text()) | {"privacy": {"unit": None, "epsilon": None}})


def _other_model(run: Path) -> None:
    write_tensors(run / "model.safetensors", {"w": np.zeros(3, dtype=np.float32)}, {"format": "pt"})


def _ledger_away(run: Path) -> None:
    (run / "ledger" / "records.jsonl").unlink()


def _stale_audit(run: Path) -> None:
    os.utime(run / "audit" / "audit.json", (1, 1))


def _not_registered(run: Path) -> None:
    state = State.load(run)
    assert state is not None
    state.model.pop("version")
    state.save(run)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_void, r"its privacy claim is void \(noise can be replayed\)"),
        (_status, "ended as 'failed'; only a run that was completed"),
        (_no_privacy, "claims no privacy, so there is nothing to verify"),
        (_other_model, "holds another model"),
        (_ledger_away, "ledger"),
        (_stale_audit, "was audited before it ended"),
        (_not_registered, "has no version of a registered model in MLflow"),
        (lambda run: change(run / "summary.json", epsilon=0.5), "epsilon .* is said to be 0.5"),
        (lambda run: change(run / "privacy_statement.json", epsilon=0.5), "epsilon of 'a' is said to be 0.5"),
        (lambda run: audit(run, AUDIT | {"faults": ["canaries: lower bound 9 above 8"]}), "its audit contradicts the claim"),
        (lambda run: audit(run, {"checks": [], "attacks": [], "faults": []}), "its audit has tried nothing"),
        (lambda run: (run / "summary.json").unlink(), "has no summary.json, so it has not ended"),
    ],
)
def test_what_does_not_verify_gets_no_alias_and_one_sentence(tmp_path: Path, registry: Registry, spoil: Any, why: str) -> None:
    spoil(tmp_path / "run")
    if spoil not in (_stale_audit,) and (tmp_path / "run" / "summary.json").exists() and "audit" not in why:
        audit(tmp_path / "run", AUDIT)
    for more in ([], ["--without-audit"]):
        result = CliRunner().invoke(cli, ["promote", str(tmp_path / "run"), *more])
        assert result.exit_code == 1 and not registry.aliases, result.output
        assert len(result.output.strip().splitlines()) == 1

        assert re.search(why, result.output), result.output


def test_other_weights_in_the_registry_get_no_alias(tmp_path: Path, registry: Registry) -> None:
    registry.sha256 = "ff" * 32
    code, said = invoke(str(tmp_path / "run"))
    assert code == 1 and "has other weights than this run" in said and not registry.aliases


def test_a_signed_run_needs_its_keys_and_must_be_as_it_was_signed(tmp_path: Path, registry: Registry) -> None:
    run, keys = tmp_path / "run", tmp_path / "keys"
    keys.mkdir()
    (keys / "driver.pub").write_text("12" * 32)
    (run / "receipts.jsonl").write_text('{"kind":"end"}\n')
    code, said = invoke(str(run))
    assert code == 1 and "is signed; give the public keys of clients and driver with --keys" in said
    code, said = invoke(str(run), "--keys", str(keys))
    assert code == 1 and "is not as it was signed (receipts.jsonl: line 1: is no signed line" in said and not registry.aliases
