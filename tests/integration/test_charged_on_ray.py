"""Charged evaluation on Ray, where what asks or answers dies."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from processes import kill, wait_until

import fedray
from fedray.privacy.ledger.chain import read
from fedray.privacy.ledger.location import subject_path
from fedray.privacy.ledger.verification import verify
from fedray.runfiles import RunFiles


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_silo_whose_actor_dies_in_an_evaluation_stays_charged_and_tells_nothing_until_the_next(tmp_path: Path) -> None:
    draws, books = np.random.default_rng(0), tmp_path / "books"
    for name, number in (("north", 3), ("south", 7)):
        u = draws.normal(size=(200, 2))
        frame = pd.DataFrame({"silo": np.full(200, number), "u": u[:, 0], "v": u[:, 1], "y": (u[:, 0] > 0).astype(int)})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    config = {
        "name": "charged",
        "rounds": 3,
        "data": {
            "source": f"csv:{tmp_path}",
            "label": "y",
            "classes": 2,
            "holdout": {"at": "clients", "fraction": 0.25},
        },
        "model": {"kind": "python:evaluationparts:model", "dies": 7, "mark": str(tmp_path / "mark")},
        "clients": {"placement": "dedicated", "resources": {"cpu": 0.5}},
        "training": {"lr": 0.2, "sampling_rate": 0.2, "expected_batch": 30, "steps": 5},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 4e-4, "ledger": str(books)},
        "evaluation": {"metrics": ["accuracy"], "federated": True, "charged": {"noise_multiplier": 1.0}},
        "tracking": {"enabled": False},
    }
    result = fedray.run(config, output=str(tmp_path / "run"))
    assert result.status == "completed" and (tmp_path / "mark").exists()
    assert all(0.0 <= row["metrics"]["eval/accuracy"] <= 1.0 for row in RunFiles(result.output).rows())
    assert result.summary["privacy"]["evaluation"]["number"] == 3
    for name, answers in (("north", 3), ("south", 2)):
        book = subject_path(books, name)
        kinds = [(e.kind, e.data["round"]) for e in read(book) if e.data.get("purpose") == "evaluation"]
        assert [round_ for kind, round_ in kinds if kind == "reserve"] == [0, 1, 2]  # once each, whatever became of it
        assert [round_ for kind, round_ in kinds if kind == "commit"] == [0, 1, 2][3 - answers :]
        assert verify(book).charges[name] == 6


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_driver_that_is_killed_while_clients_evaluate_charges_them_anew(tmp_path: Path) -> None:
    """Each client evaluates for seconds, so the driver dies between the charge and the answer; Ray starts it again."""
    output = tmp_path / "run"
    book = output / "ledger" / "records.jsonl"

    def evaluations(kind: str) -> Counter[tuple[str, int]]:
        entries = (e for e in read(book) if e.kind == kind and e.data.get("purpose") == "evaluation")
        return Counter((e.data["subject"], e.data["round"]) for e in entries)

    def die() -> None:
        wait_until(lambda: book.exists() and b'"purpose":"evaluation","round":1' in book.read_bytes(), "the second charge", 300)
        kill("ray::Experiment")

    killer = threading.Thread(target=die)
    killer.start()
    config = {
        "name": "killed",
        "rounds": 3,
        "data": {
            "source": "sklearn:digits",
            "classes": 10,
            "partition": {"kind": "iid", "clients": 4},
            "holdout": {"at": "clients", "stratify": False},
        },
        "model": {"kind": "python:evaluationparts:slow"},
        "clients": {"actors": 2},
        "training": {"lr": 0.5, "sampling_rate": 0.2, "expected_batch": 60, "steps": 2},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4},
        "evaluation": {"metrics": ["accuracy"], "federated": True, "charged": {"noise_multiplier": 4.0}},
        "tracking": {"enabled": False},
    }
    result = fedray.run(config, output=str(output))
    killer.join()
    assert result.status == "completed" and result.summary["faults"]["driver_restarts"] == 1
    names = [f"client-{k:04d}" for k in range(4)]
    assert evaluations("reserve") == {(name, round_): 1 + (round_ == 1) for name in names for round_ in range(3)}
    assert evaluations("commit") == {(name, round_): 1 for name in names for round_ in range(3)}
    assert [row["round"] for row in RunFiles(output).rows() if "eval/accuracy" in row["metrics"]] == [1, 2, 3]
    assert set(verify(book).charges.values()) == {
        7 + 1
    }  # the round whose evaluation was lost was trained again, from the checkpoint before
