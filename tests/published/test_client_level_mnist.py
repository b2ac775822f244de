"""Whole clients protected on MNIST: what privacy costs, and that the adaptive clip norm needs no tuning.

Source of the adaptive clip: Andrew, Thakkar, McMahan & Ramaswamy 2021, Differentially Private Learning with Adaptive Clipping, which
finds it "competitive with the best fixed clip" on every task; the mechanism is that of McMahan et al. 2018.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import ROOT
from published import CURVES, curve

import fedray
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.accounting.events import Gaussian, Poisson, rate

CONFIG = ROOT / "configs" / "mnist-clients.yaml"
NOISE = (0.5, 1.0, 2.0, 4.0)
FIXED_CLIPS = (0.1, 0.3, 1.0, 3.0)


def accuracy(output: Path, data: Path, *overrides: str) -> tuple[float, float | None, list[float]]:
    """Mean test accuracy of the last three evaluations, epsilon, and the curve."""
    given = [f"data.source=npz:{data / 'mnist.npz'}", "ray.address=local", "tracking.enabled=false", "checkpoint.every=0", *overrides]
    result = fedray.run(CONFIG, overrides=given, output=str(output))
    assert result.status == "completed"
    points = curve(result, "eval/accuracy")
    return sum(points[-3:]) / 3, result.summary["privacy"]["epsilon"], points


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_privacy_costs_and_what_tuning_the_clip_brings(tmp_path: Path, real_data: Path) -> None:
    kept: dict[str, object] = {}
    plain, _, points = accuracy(tmp_path / "plain", real_data, "privacy={regime: none}")
    kept["without_privacy"] = {"accuracy": plain, "curve": points}
    found = {}
    for z in NOISE:
        found[z], epsilon, points = accuracy(tmp_path / f"z{z}", real_data, f"privacy.noise_multiplier={z}")
        assert epsilon == pytest.approx(bound({Poisson(rate(0.1), Gaussian(z)): 100}, 1e-4, 1e-4), rel=1e-9)
        kept[f"noise_{z}"] = {"accuracy": found[z], "epsilon": epsilon, "curve": points}
    fixed = {}
    for clip in FIXED_CLIPS:
        fixed[clip], _, points = accuracy(tmp_path / f"c{clip}", real_data, "privacy.adaptive_clip=null", f"privacy.clip={clip}")
        kept[f"fixed_clip_{clip}"] = {"accuracy": fixed[clip], "curve": points}
    CURVES.mkdir(exist_ok=True)
    (CURVES / "client_level_mnist.json").write_text(json.dumps(kept, indent=1) + "\n")
    assert max(fixed.values()) - found[1.0] <= 0.01
    assert plain - found[1.0] <= 0.05
    assert found[4.0] < found[0.5] < plain + 0.01
