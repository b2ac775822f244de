"""The driver outlives the command that started it, and no output has two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from paths import ROOT
from processes import kill, wait_until

import fedray
from fedray.experiment.cluster import NAMESPACE
from fedray.experiment.launch import driver_name
from fedray.runfiles import RunFiles

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow, pytest.mark.timeout(900)]


def command(output: Path, *more: str) -> subprocess.Popen[str]:
    address = ray.get_runtime_context().gcs_address
    settings = ["rounds=12", f"ray.address={address}", "clients.actors=2", "tracking.enabled=false", "privacy={regime: none}", *more]
    line = [sys.executable, "-m", "fedray", "run", str(ROOT / "configs/digits.yaml"), *settings, "--output", str(output), "--resume"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=output.parent, env=environment)


def gone(output: Path) -> bool:
    try:
        ray.get_actor(driver_name(output), NAMESPACE)
    except ValueError:
        return True
    return False


def test_a_killed_command_is_followed_by_the_next(tmp_path: Path) -> None:
    output = tmp_path / "run"
    slow = "training.steps=800"
    first = command(output, slow)
    try:
        wait_until(lambda: (output / "metrics.jsonl").exists() and len(RunFiles(output).rows()) >= 2, "two rounds", 120)
        first.kill()
        first.wait()
        other = command(output, slow, "seed=99")
        told, _ = other.communicate(timeout=600)
        assert other.returncode == 2
        assert "another config is at work there" in told
        second = command(output, slow)
        told, _ = second.communicate(timeout=600)
    finally:
        first.kill()
    assert second.returncode == 0, told
    assert "at work on this output already" in told
    assert [r["round"] for r in RunFiles(output).rows()] == list(range(1, 13))
    assert told.count("round 12/12") == 1
    wait_until(lambda: gone(output), "the driver is gone once its result was taken", 60)


def test_a_restarted_driver_is_given_the_callers_objects_again(tmp_path: Path) -> None:
    y = np.arange(20_000) % 2
    x = np.stack([y + 0.1, 1 - y], axis=1).astype(np.float32)

    def listen(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] == 1:
            kill("ray::Experiment")

    config: dict[str, Any] = {
        "name": "objects",
        "rounds": 6,
        "data": {"source": "python:given:here", "partition": {"kind": "iid", "clients": 4}},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.1, "batch_size": 5, "epochs": 2},
        "tracking": {"enabled": False},
    }
    result = fedray.run(config, data=lambda: (x, y), output=str(tmp_path / "run"), callbacks=[listen])
    assert result.status == "completed"
    assert result.summary["faults"]["driver_restarts"] == 1
