"""What a privacy claim may be combined with, and the statement that it ends in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.privacy import rules
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import FINAL_INTERVAL, bound
from fedray.privacy.aggregationrules import check_rule
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.recordplan import plan_record
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown


def config(privacy: Mapping[str, Any] | None = None, **sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "t",
        "rounds": 3,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5, **(privacy or {})},
    }
    return build_config({**raw, **sections})


def test_a_plain_record_level_run_is_legal_and_its_claim_valid() -> None:
    assert rules.check(config()) == []
    assert rules.claim(config()) == rules.Claim(True, [])


@pytest.mark.parametrize(
    ("code", "sections"),
    [
        ("record.private_statistics", {"data": {"source": "sklearn:digits", "normalize": {"kind": "standardize_client"}}}),
        ("record.federated_evaluation", {"evaluation": {"federated": True}}),
        ("dedicated.ledger_run", {"clients": {"placement": "dedicated"}}),
        ("record.engine", {"training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30, "engine": "plain"}}),
        ("record.engine", {"training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30, "engine": "python:mine:engine"}}),
        ("record.engine", {"clients": {"groups": [{"name": "g", "clients": 1, "training": {"engine": "plain"}}]}}),
        (
            "record.precision",
            {"training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30, "precision": "bf16"}},
        ),
        ("record.precision", {"clients": {"groups": [{"name": "g", "clients": 1, "training": {"precision": "bf16_convolutions"}}]}}),
    ],
)
def test_what_voids_the_guarantee_is_refused_with_a_code_and_a_way_out(code: str, sections: dict[str, Any]) -> None:
    with pytest.raises(PrivacyRefusal, match=rf"^\[privacy\.incompatible\.{code}\] .*; (use|set|name) .*\.$") as caught:
        rules.check(config(**sections))
    assert caught.value.code == f"privacy.incompatible.{code}"
    assert "\n" not in str(caught.value)


def test_private_statistics_are_refused_whatever_computes_them() -> None:
    with pytest.raises(PrivacyRefusal, match="private_statistics"):
        rules.check(config(), private_statistics=True)


def test_a_silo_in_a_group_may_not_keep_its_book_in_the_run_either(tmp_path: Path) -> None:
    clients = {"placement": "dedicated", "groups": [{"name": "g", "clients": 1, "ledger": "run"}]}
    with pytest.raises(PrivacyRefusal, match="clients.groups.0.ledger"):
        rules.check(config({"ledger": str(tmp_path)}, clients=clients))
    assert rules.check(config({"ledger": str(tmp_path)}, clients={"placement": "dedicated"})) == []


def test_a_book_lies_in_a_directory_or_in_an_object_store_with_conditional_writes() -> None:
    assert rules.check(config({"ledger": "s3://bucket/ledger"})) == []
    with pytest.raises(ConfigError, match="neither file locks nor conditional writes"):
        rules.check(config({"ledger": "gs://bucket/ledger"}))


@pytest.mark.parametrize("field", ["target_epsilon", "delta", "budget", "insecure_seed", "max_participations", "clip"])
def test_privacy_settings_without_a_regime_are_refused(field: str) -> None:
    value = {"max_participations": 3, "insecure_seed": 3}.get(field, 0.25)
    raw = build_config({**config().model_dump(exclude_unset=True), "privacy": {field: value}})
    with pytest.raises(ConfigError, match=f"privacy.{field}: given, but privacy.regime is none"):
        rules.check(raw)
    assert rules.check(build_config({**config().model_dump(exclude_unset=True), "privacy": {}})) == []
    assert not rules.claim(raw).valid


@pytest.mark.parametrize(
    ("privacy", "sections", "word"),
    [
        ({"insecure_seed": 1}, {}, "insecure_seed"),
        ({"unprotected": ["evaluation"]}, {"evaluation": {"federated": True}}, "held-out"),
        ({"unprotected": ["class_counts"]}, {}, "class"),
        ({"unprotected": ["train_metrics"]}, {}, "training loss"),
    ],
)
def test_what_is_accepted_without_protection_warns_and_voids_the_claim(
    privacy: dict[str, Any], sections: dict[str, Any], word: str
) -> None:
    given = config(privacy, **sections)
    (warning,) = rules.check(given)
    assert word in warning
    assert "void" in warning
    claim = rules.claim(given)
    assert not claim.valid
    assert len(claim.reasons) == 1


def test_what_is_legal_but_doubtful_warns() -> None:
    assert "mostly noise" in check_rule(config(aggregation={"kind": "trimmed_mean"}), "each", mean=False)[0]
    assert check_rule(config(aggregation={"kind": "python:mine:trimmed_mean"}), "sum", mean=False) == []
    assert "weak" in rules.check(config({"noise_multiplier": None, "target_epsilon": 20.0}))[0]
    assert "does not cover" in rules.check(config(algorithm={"kind": "python:mine:algorithm"}))[0]


def test_a_problem_in_the_run_voids_the_claim() -> None:
    assert rules.claim(config(), ["a round was not what was charged"]) == rules.Claim(False, ["a round was not what was charged"])


class OddBatchNormish(nn.Module):
    """Named like one, kept apart from torch's classes."""


OddBatchNormish.__name__ = "MyBatchNorm"


def frozen() -> nn.Module:
    layer = nn.BatchNorm1d(4)
    layer.requires_grad_(False)
    return layer


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        (nn.BatchNorm1d(4), "record.batchnorm"),
        (nn.BatchNorm1d(4, affine=False, track_running_stats=False), "record.batchnorm"),
        (frozen(), "record.batchnorm"),
        (nn.SyncBatchNorm(4), "record.batchnorm"),
        (OddBatchNormish(), "record.batchnorm"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "buffers"),
        (nn.LSTM(4, 4), "record.module"),
        (nn.Linear(4, 4).to(torch.bfloat16), "record.precision"),
    ],
)
def test_layers_that_couple_records_or_carry_state_are_refused(layer: nn.Module, code: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)
    model.eval()
    with pytest.raises(PrivacyRefusal) as caught:
        rules.check_model(model)
    assert caught.value.code == f"privacy.incompatible.{code}"
    assert not model.training


def test_sound_models_pass_and_untrainable_ones_do_not() -> None:
    rules.check_model(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Dropout(), nn.LayerNorm(3)))
    with pytest.raises(ConfigError, match="no trainable parameter"):
        rules.check_model(nn.Linear(2, 2).requires_grad_(False))


def test_the_statement_says_what_is_guaranteed_and_what_is_not(tmp_path: Path) -> None:
    given = config({"max_silos_per_person": 2, "budget": 9.0})
    plan = plan_record(given)
    with Account.open_run(tmp_path, dict.fromkeys(["a", "b", "c|d"], plan), "run/1") as account:
        account.authorize(0, 0, ["a", "b"])
        account.authorize(1, 0, ["a"])
        groups, figures, head = account.groups(), account.figures(), account.head
    statement = privacy_statement(given, [Guarantee("record", [plan, plan], groups, figures)], head, 2)
    assert json.loads(json.dumps(statement, allow_nan=False)) == statement
    summary = statement["summary"]
    assert summary["epsilon"] == bound({plan.event(): 2}, 1e-5, FINAL_INTERVAL) <= max(f.epsilon for f in figures)
    assert summary["epsilon_rdp"] > summary["epsilon"] > summary["epsilon_client_median"] > 0
    assert summary["epsilon_person"] > summary["epsilon"]
    assert (
        summary | {"unit": "record", "delta": 1e-5, "budget": 9.0, "accountant": "pld", "claim": "valid", "ledger_sha256": head} == summary
    )
    assert [row["participations_charged"] for row in statement["clients"]] == [2, 1, 0]
    assert len(statement["mechanism"]["plans"]) == 1
    assert statement["ledger"] == statement["ledger"] | {"scope": "this run alone", "head_sha256": head}
    text = statement_markdown(statement)
    for phrase in (
        "zero-out",
        "One Ray cluster is one trust domain",
        "this run alone",
        "dp-accounting",
        "aes-256-ctr",
        "c\\|d",
        "Not covered",
        head,
    ):
        assert phrase in text
    assert "void" not in text


def test_a_void_claim_stands_first_in_the_statement(tmp_path: Path) -> None:
    given = config({"insecure_seed": 3, "unprotected": ["train_metrics"]})
    plan = plan_record(given)
    with Account.open_run(tmp_path, {"a": plan}, "run/1") as account:
        account.authorize(0, 0, ["a"])
        statement = privacy_statement(
            given, [Guarantee("record", [plan], account.groups(), account.figures())], {"a": account.head}, 1, ["a local round differed"]
        )
    assert statement["summary"]["claim"] == "void"
    assert len(statement["summary"]["claim_reasons"]) == 3
    assert statement["guarantee"]["statement"].startswith("No guarantee is claimed")
    assert statement["mechanism"]["rng"] == ["insecure seed (tests only)"]
    text = statement_markdown(statement)
    assert text.index("**The claim is void:**") < text.index("Adjacency")
    assert "a local round differed" in text


def test_a_job_may_not_keep_its_ledger_where_ray_unpacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs start in that directory, and it is gone when they end."""
    unpacked = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    for setting in ("books", "./heart.ledger", str(unpacked / "books")):
        with pytest.raises(PrivacyRefusal, match=r"would lie where Ray unpacks a job's files") as refused:
            ledger_directory(setting, ".")
        assert refused.value.code == "privacy.incompatible.job.ledger_relative"
    assert ledger_directory("run", tmp_path) == tmp_path / "ledger"
    assert ledger_directory("/srv/ledger", ".") == Path("/srv/ledger")
    monkeypatch.chdir(tmp_path)
    assert ledger_directory("books", ".") == Path("books")
