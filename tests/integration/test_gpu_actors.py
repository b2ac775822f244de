"""Actors that share a GPU, beside actors that were given none.

Without a GPU, Ray is told that there is one: who is granted a share of it is then tested all the same, only
that work runs on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from paths import ROOT

ON_GPU = "cuda:0" if torch.cuda.is_available() else "cpu"
BASE: dict[str, Any] = {
    "name": "gpus",
    "seed": 1,
    "rounds": 2,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 8}},
    "model": {"kind": "python:gpuparts:model"},
    "training": {"lr": 1.0, "sampling_rate": 0.2, "expected_batch": 36.0, "steps": 2},
    "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-4},
    "tracking": {"enabled": False},
}


def run(folder: Path, **sections: Any) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Run in a process with a Ray of its own; the summary, and the notes of the processes that trained and that evaluated."""
    ray = {"address": "local", "cpus": 6, "gpus": None if torch.cuda.is_available() else 1}
    config, notes = folder / "config.yaml", folder / "notes"
    notes.mkdir()
    config.write_text(yaml.safe_dump(BASE | {"ray": ray} | sections))
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | {"FEDRAY_TEST_NOTES": str(notes), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "fedray", "run", str(config), "--output", str(folder / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["faults"]["actor_deaths"] == summary["faults"]["client_failures"] == 0
    assert summary["privacy"]["claim"] == "valid", summary["privacy"]["claim_reasons"]
    assert summary["privacy"]["epsilon"] > 0
    return summary, *([json.loads(p.read_text()) for p in sorted(notes.glob(f"{kind}-*.json"))] for kind in ("train", "evaluate"))


@pytest.mark.slow
def test_hosted_actors_share_a_gpu_and_those_without_stay_on_the_cpu(tmp_path: Path) -> None:
    clients = {
        "actors": 4,
        "resources": {"cpu": 0.5, "gpu": 0.25},
        "groups": [{"name": "without", "clients": 2, "resources": {"cpu": 0.5, "gpu": 0.0}}],
    }
    summary, trained, evaluated = run(tmp_path, clients=clients, evaluation={"resources": {"cpu": 0.0, "gpu": 0.25}})
    assert summary["final"]["eval/accuracy"] > 0.2
    sharing, without = [n for n in trained if n["granted"]], [n for n in trained if not n["granted"]]
    assert [n["device"] for n in sharing] == [ON_GPU] * 3
    assert len({tuple(n["granted"]) for n in [*sharing, *evaluated]}) == 1 or torch.cuda.device_count() > 1
    assert [n["device"] for n in without] == ["cpu"]
    assert [n["device"] for n in evaluated] == [ON_GPU]
    # Ray hides no GPU from an actor that asked for none; it must not start one's driver either, which takes memory there.
    assert without[0]["visible"] == torch.cuda.device_count()
    assert not without[0]["started"]


@pytest.mark.slow
def test_dedicated_clients_share_a_gpu(tmp_path: Path) -> None:
    clients = {"placement": "dedicated", "resources": {"cpu": 0.5, "gpu": 0.2}}
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}
    _, trained, evaluated = run(tmp_path, clients=clients, data=data, privacy=BASE["privacy"] | {"ledger": str(tmp_path / "books")})
    assert [n["device"] for n in trained] == [ON_GPU] * 4
    assert all(n["granted"] for n in trained)
    assert [n["device"] for n in evaluated] == ["cpu"]
    assert not evaluated[0]["granted"]


@pytest.mark.slow
def test_automatic_actors_leave_the_evaluator_its_share(tmp_path: Path) -> None:
    clients = {"actors": "auto", "resources": {"cpu": 0.5, "gpu": 0.25}}
    _, trained, evaluated = run(tmp_path, clients=clients, evaluation={"resources": {"cpu": 0.0, "gpu": 0.5}})
    if torch.cuda.device_count() <= 1:
        assert len(trained) == 2
    assert all(n["granted"] for n in [*trained, *evaluated])
