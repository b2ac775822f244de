"""Runs with silos outside the cluster, in processes of their own, against the same runs with an actor for each client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from remotesilos import silos

import fedray

NAMES = [f"client-{n:04d}" for n in range(4)]
DIGITS = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}
AGREED = {"holdout": {"fraction": 0.2, "at": "clients"}}
RUN: dict[str, Any] = {
    "name": "digits",
    "rounds": 2,
    "model": {"kind": "softmax"},
    "training": {"lr": 0.5, "batch_size": 64, "epochs": 1},
    "evaluation": {"federated": True},
    "tracking": {"enabled": False},
}


@pytest.mark.usefixtures("cluster")
def test_silos_outside_train_the_model_of_dedicated_actors(tmp_path: Path) -> None:
    dedicated = {"placement": "dedicated", "resources": {"cpu": 0.25}}
    inside = fedray.run({**RUN, "data": {**DIGITS, **AGREED}, "clients": dedicated}, output=str(tmp_path / "inside"))
    with silos(tmp_path, dict.fromkeys(NAMES, DIGITS)) as outside:
        data = {"source": f"silos:{','.join(NAMES)}", "classes": 10, **AGREED}
        found = fedray.run({**RUN, "data": data, "clients": outside.clients}, output=str(tmp_path / "outside"))
    assert found.status == "completed" and found.summary["model_sha256"] == inside.summary["model_sha256"]
    assert found.summary["final"] == inside.summary["final"]
