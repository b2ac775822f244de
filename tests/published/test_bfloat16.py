"""Convolutions in bfloat16 against float32: the FedAvg paper's CNN on MNIST learns as fast. The curves of the last run are kept in ``curves/``."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT
from published import curve, keep

import fedray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


def test_accuracy_is_that_of_float32(real_data: Path, tmp_path: Path) -> None:
    """Over the last rounds, where accuracy is about 0.97; seeds differ by less than 0.01 there."""
    accuracies = {}
    for precision in ("fp32", "bf16_convolutions"):
        settings = ["rounds=12", "model.kind=fedavg_cnn", f"training.precision={precision}", "tracking.enabled=false"]
        overrides = [f"data.source=npz:{real_data / 'mnist.npz'}", "ray.address=local", *settings]
        result = fedray.run(ROOT / "configs" / "mnist.yaml", overrides=overrides, output=str(tmp_path / precision))
        assert result.summary["engine"] == "plain"
        accuracies[precision] = curve(result, "eval/accuracy")
        if precision != "fp32":
            keep("mnist-cnn-bfloat16", result, {"float32_accuracy_by_round": [round(a, 4) for a in accuracies["fp32"]]})
    last = {precision: sum(values[-4:]) / 4 for precision, values in accuracies.items()}
    assert last["fp32"] > 0.95
    assert abs(last["bf16_convolutions"] - last["fp32"]) < 0.01
    assert accuracies["bf16_convolutions"] != accuracies["fp32"]
