"""Runs that protect whole clients, or both units: their books, receipts, budgets and resumption, on Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shortruns import short_run

import fedray
from fedray.errors import ClaimVoid
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.accounting.events import Gaussian, Poisson, SelfComposed, Tree, rate
from fedray.privacy.ledger.verification import verify

pytestmark = pytest.mark.usefixtures("cluster")


def run(output: Path, privacy: dict[str, Any], **others: Any) -> fedray.Result:
    sections: dict[str, Any] = {
        "seed": 0,
        "rounds": 4,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 8}},
        "clients": {"actors": 1},
        "cohort": {"kind": "all"},
        "training": {"lr": 0.5, "batch_size": 20, "epochs": 1},
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "privacy": {"delta": 1e-3, **privacy},
    }
    return short_run(output, **sections | others)


LOCAL = {"lr": 0.5, "sampling_rate": 0.2, "steps": 10, "expected_batch": 30}
RECORD = {"regime": "record", "noise_multiplier": 2.0, "clip": 1.0, "delta": 4e-4}


def test_an_update_counts_only_with_a_receipt_that_matches_its_reservation(tmp_path: Path) -> None:
    model = {"kind": "python:forgedparts:forging", "key": "noise_multiplier"}
    with pytest.raises(ClaimVoid, match="its receipt says noise_multiplier 'forged'"):
        run(tmp_path / "run", RECORD, model=model, training=LOCAL, rounds=1, evaluation={"every": 0})
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["privacy"]["claim"] == "void"
    assert summary["rounds"] == 0  # nothing of it was used


@pytest.mark.slow
def test_who_cannot_afford_a_round_takes_fewer_steps(tmp_path: Path) -> None:
    step = Poisson(rate(0.2), Gaussian(2.0))
    budget = bound({SelfComposed(24, step): 1}, 4e-4) + 1e-9
    result = run(tmp_path / "run", {**RECORD, "budget": budget, "fewer_steps": True}, training=LOCAL)
    assert result.status == "budget_reached"
    assert result.summary["rounds"] == 3
    book = verify(tmp_path / "run" / "ledger" / "records.jsonl")
    expected = {SelfComposed(10, step): 2, SelfComposed(4, step): 1}
    assert all(dict(spent) == expected for spent in book.spent.values())
    assert result.summary["privacy"]["epsilon"] <= budget


@pytest.mark.slow
def test_a_resumed_run_begins_a_new_tree(tmp_path: Path) -> None:
    privacy = {"regime": "client", "mechanism": {"kind": "tree"}, "noise_multiplier": 4.0, "clip": 1.0}
    cohort = {"kind": "cyclic", "size": 1}
    run(tmp_path / "run", privacy, cohort=cohort, rounds=4)
    notes: list[str] = []
    result = run(tmp_path / "run", privacy, cohort=cohort, rounds=6, resume=True, notes=notes)
    assert result.status == "completed"
    spent = verify(tmp_path / "run" / "ledger" / "clients.jsonl").spent["clients"]
    assert dict(spent) == {Tree(4.0, 4): 1, Tree(4.0, 6): 1}


@pytest.mark.slow
def test_two_units_have_two_books_and_two_figures(tmp_path: Path) -> None:
    joint = {"noise_multiplier": 1.0, "clip": 1.0, "delta": 1e-3}
    result = run(tmp_path / "run", {**RECORD, "regime": ["record", "client"], "joint": joint}, training=LOCAL, rounds=2)
    books = {name: verify(tmp_path / "run" / "ledger" / f"{name}.jsonl") for name in ("records", "clients")}
    assert books["records"].units == {("record", "zero_out")}
    assert dict(books["clients"].spent["clients"]) == {Gaussian(1.0): 2}
    summary = result.summary["privacy"]
    assert summary["epsilon"] == pytest.approx(bound({SelfComposed(20, Poisson(rate(0.2), Gaussian(2.0))): 1}, 4e-4, 1e-4))
    assert summary["joint"]["epsilon"] == pytest.approx(bound({Gaussian(1.0): 2}, 1e-3, 1e-4))
    text = (tmp_path / "run" / "privacy_statement.md").read_text()
    assert "every single record of every client" in text
    assert "every client with all its records" in text


@pytest.mark.slow
def test_a_population_stops_when_its_budget_is_spent(tmp_path: Path) -> None:
    privacy = {"regime": "client", "noise_multiplier": 2.0, "budget": bound({Gaussian(2.0): 2}, 1e-3) + 1e-9}
    result = run(tmp_path / "run", privacy)
    assert (result.status, result.summary["rounds"]) == ("budget_reached", 2)
    assert "eval/accuracy" in result.summary["final"]


@pytest.mark.slow
def test_silos_that_trust_nobody_keep_their_own_books(tmp_path: Path) -> None:
    privacy = {"regime": "local", "noise_multiplier": 50.0, "clip": 1.0, "ledger": str(tmp_path / "silos")}
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 3}}
    clients = {"placement": "dedicated", "resources": {"cpu": 1.0}}
    (tmp_path / "silos").mkdir()
    run(tmp_path / "run", {**privacy, "delta": 1e-2}, data=data, clients=clients, rounds=2)
    books = sorted((tmp_path / "silos").glob("*.jsonl"))
    assert len(books) == 3
    for path in books:
        book = verify(path)
        assert book.units == {("client", "replace_one")}
        assert [dict(s) for s in book.spent.values()] == [{Gaussian(50.0): 2}]
