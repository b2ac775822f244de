"""The quickstart's promise: 0.90 over five seeds at epsilon 8, within four points of its twin without privacy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from published import CURVES

import fedray
from fedray.privacy.ledger.verification import verify

SEEDS = (0, 1, 2, 3, 4)
TWIN = ["privacy={regime: none}"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_seeds_and_their_twins(tmp_path: Path) -> None:
    accuracy: dict[str, list[float]] = {"private": [], "twin": []}
    epsilons: list[float] = []
    for seed in SEEDS:
        for name, extra in (("private", []), ("twin", TWIN)):
            overrides = [f"seed={seed}", "ray.address=local", "tracking.enabled=false", *extra]
            output = tmp_path / f"{name}-{seed}"
            result = fedray.run(ROOT / "configs" / "digits.yaml", overrides=overrides, output=str(output))
            accuracy[name].append(result.summary["final"]["eval/accuracy"])
            if name == "private":
                partition = json.loads((output / "partition.json").read_text())
                assert result.config.privacy.delta is not None
                assert result.config.privacy.delta <= 1 / (10 * partition["size"]["max"])
                recomputed = verify(output / "ledger" / "records.jsonl").epsilons(result.config.privacy.delta)
                epsilons.append(max(recomputed.values()))
    means = {name: float(np.mean(values)) for name, values in accuracy.items()}
    CURVES.mkdir(exist_ok=True)
    figures = {"seeds": SEEDS, "accuracy": accuracy, "mean": means, "largest_epsilon": max(epsilons)}
    (CURVES / "digits.json").write_text(json.dumps(figures, indent=1) + "\n")
    assert max(epsilons) <= 8.0
    assert means["private"] >= 0.90
    assert means["twin"] - means["private"] <= 0.04
