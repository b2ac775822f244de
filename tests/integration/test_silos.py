"""Silos that are read by their own actors alone, against one process that reads them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedray
from fedray.runfiles import RunFiles


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_silos_alone_and_together_train_the_same_model(tmp_path: Path) -> None:
    """Files in upper case, a column that only one has, a test fold at each silo, declared labels: the placement changes nothing."""
    draws = np.random.default_rng(0)
    for name in ("north.CSV", "south.csv"):
        u = draws.normal(size=24)
        frame = pd.DataFrame({"u": u, "v": draws.normal(size=24), "y": np.where(u > 0, 30, 10), "part": ["train"] * 18 + ["test"] * 6})
        (frame.assign(ward=3) if name == "north.CSV" else frame).to_csv(tmp_path / name, index=False)
    data = {"source": f"csv:{tmp_path}", "label": "y", "labels": [10, 20, 30], "fold": "part", "drop": ["ward"]}

    def run(placement: str) -> fedray.Result:
        config: dict[str, Any] = {
            "name": placement,
            "rounds": 2,
            "data": data,
            "model": {"kind": "softmax"},
            "clients": {"placement": placement, "resources": {"cpu": 0.5}},
            "training": {"lr": 0.5, "batch_size": 6, "epochs": 1},
            "evaluation": {"federated": True},
            "tracking": {"enabled": False},
        }
        return fedray.run(config, output=str(tmp_path / "runs" / placement))

    alone, together = run("dedicated"), run("hosted")
    assert alone.summary["model_sha256"] == together.summary["model_sha256"]
    assert alone.summary["final"]["eval/accuracy"] == together.summary["final"]["eval/accuracy"]
    for result in (alone, together):
        assert result.class_labels == [10, 20, 30]
        partition = json.loads(RunFiles(result.output).partition.read_text())
        assert [(row["client"], row["records"], len(row["classes"])) for row in partition["rows"]] == [("north", 18, 3), ("south", 18, 3)]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_silo_that_only_reads_its_own_records_is_replaced_with_the_model_that_was_built_from_them(tmp_path: Path) -> None:
    """The actor of one silo ends in its first turn; the records of that silo have a number by which the model knows them."""
    draws = np.random.default_rng(0)
    for name, number in (("north", 1), ("south", 7)):
        u = draws.normal(size=(20, 3))
        columns = {"silo": np.full(20, number), "u": u[:, 0], "v": u[:, 1], "w": u[:, 2]}
        pd.DataFrame(columns | {"y": (u[:, 0] > 0).astype(int)}).to_csv(tmp_path / f"{name}.csv", index=False)
    config = {
        "name": "replaced",
        "rounds": 2,
        "data": {"source": f"csv:{tmp_path}", "label": "y", "classes": 2},
        "model": {"kind": "python:slowparts:model", "dies": 7, "mark": str(tmp_path / "mark")},
        "clients": {"placement": "dedicated", "resources": {"cpu": 0.5}},
        "cohort": {"kind": "all", "min_clients": 2},
        "training": {"lr": 0.5, "batch_size": 5, "epochs": 1},
        "evaluation": {"metrics": []},
        "tracking": {"enabled": False},
    }
    result = fedray.run(config, output=str(tmp_path / "run"))
    assert result.status == "completed"
    assert (tmp_path / "mark").exists()
    assert result.summary["faults"]["actor_deaths"] == 1
    assert [row["metrics"]["round/clients_completed"] for row in RunFiles(result.output).rows()] == [2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_silos_with_a_public_test_set_are_evaluated_at_the_driver(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for name, records in (("north", 20), ("south", 20), ("public", 10)):
        u = draws.normal(size=records)
        pd.DataFrame({"u": u, "y": (u > 0).astype(int)}).to_csv(tmp_path / f"{name}.csv", index=False)
    config = {
        "name": "public",
        "rounds": 2,
        "data": {"source": f"csv:{tmp_path}", "label": "y", "classes": 2, "test": f"{tmp_path}/public.csv"},
        "model": {"kind": "softmax"},
        "clients": {"placement": "dedicated", "resources": {"cpu": 0.5}},
        "training": {"lr": 2.0, "sampling_rate": 0.5, "expected_batch": 10, "steps": 4},
        "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3, "ledger": str(tmp_path / "books")},
        "tracking": {"enabled": False},
    }
    result = fedray.run(config, output=str(tmp_path / "run"))
    assert result.summary["final"]["eval/accuracy"] in {k / 10 for k in range(11)}  # of ten records, none of them a silo's
    assert [row["records"] for row in json.loads(RunFiles(result.output).partition.read_text())["rows"]] == [20, 20]
