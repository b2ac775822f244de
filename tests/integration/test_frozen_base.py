"""A run over a frozen base, in real processes: exchanged, noised and checkpointed without it, saved with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from shortruns import short_run

from fedray.checkpoint import load_latest
from fedray.choices import ModelChoice
from fedray.errors import ConfigError
from fedray.experiment.finished import trained_model
from fedray.frozen import frozen_values
from fedray.models.build import build_model
from fedray.runfiles import RunFiles

pytestmark = pytest.mark.usefixtures("cluster")

run = partial(
    short_run,
    seed=0,
    rounds=2,
    model={"kind": "python:frozenparts:base_and_head"},
    training={"lr": 0.1, "batch_size": 16, "epochs": 1},
    algorithm={"kind": "fedavg", "weights": "uniform"},
    privacy={"regime": "client", "noise_multiplier": 1.0, "budget": 1000, "delta": 1e-3, "clip": 1.0},
)


def test_a_frozen_base_stays_byte_for_byte(tmp_path: Path) -> None:
    result = run(tmp_path / "run", clients={"actors": 1}, evaluation={"every": 0})
    files = RunFiles(tmp_path / "run")
    checkpoint = load_latest(files.checkpoints)
    assert checkpoint is not None and checkpoint.weights.shape == (20 * 10 + 10,)
    built = build_model(result.config.model, (64,), 10, result.config.seed)
    base = frozen_values(built)
    saved = files.load_model()
    assert set(saved) == set(built.state_dict())
    for name, value in base.items():
        assert saved[name].tobytes() == value.tobytes(), name
    assert np.abs(saved["3.weight"] - built.state_dict()["3.weight"].numpy()).max() > 0
    trained, _ = trained_model(files, result.config)
    assert {n: v.tobytes() for n, v in frozen_values(trained).items()} == {n: v.tobytes() for n, v in base.items()}
    assert "Frozen parameters: sha256" in (tmp_path / "run" / "privacy_statement.md").read_text()


@pytest.mark.slow
def test_another_base_in_each_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="made other frozen parameters here"):
        run(tmp_path / "chance", model={"kind": "python:frozenparts:by_chance"}, rounds=1)


@pytest.mark.slow
def test_adapters_alone_are_exchanged_summed_and_checkpointed(tmp_path: Path) -> None:
    source = {"kind": "mlp", "hidden": [30]}
    base = build_model(ModelChoice(**source), (64,), 10, 77).state_dict()
    save_file(base, tmp_path / "model.safetensors")
    adapters = {"kind": "lora", "rank": 2, "targets": ["fc1"]}
    model = {**source, "weights": str(tmp_path), "adapters": adapters}
    run(tmp_path / "run", model=model)
    files, exchanged = RunFiles(tmp_path / "run"), 2 * (64 + 30)
    checkpoint = load_latest(files.checkpoints)
    assert checkpoint is not None and checkpoint.weights.shape == (exchanged,)
    rows = [json.loads(line)["metrics"] for line in files.metrics.read_text().splitlines()]
    # Two parts, of one exact sum of 8 bytes a value each, and the weights to two actors and to the driver's node; the base has 2,260 values.
    assert 0 < max(row["traffic/uplink_mb"] for row in rows) * 1e6 <= 2 * 8 * exchanged + 1000
    assert 0 < max(row["traffic/downlink_mb"] for row in rows) * 1e6 <= 3 * 4 * exchanged + 1000
    saved = files.load_model()
    for name, value in base.items():
        found = saved[name.replace("fc1.", "fc1.base.")]
        assert found.tobytes() == value.numpy().tobytes(), name
    assert np.abs(saved["fc1.up.weight"]).max() > 0
