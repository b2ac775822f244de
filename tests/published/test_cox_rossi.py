"""Rossi, Berk, Lenihan 1980, Money, Work, and Crime: weeks until 432 released convicts are arrested again, by Cox regression.

The pooled fit is that of lifelines, which brings the data; without it the test is skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import fedray

SILOS = 4


@pytest.mark.slow
def test_silos_reach_the_concordance_of_the_pooled_fit(tmp_path: Path) -> None:
    lifelines = pytest.importorskip("lifelines")
    datasets = pytest.importorskip("lifelines.datasets")
    frame = datasets.load_rossi()
    pooled = lifelines.CoxPHFitter().fit(frame, "week", "arrest").concordance_index_
    features = frame.drop(columns=["week", "arrest"])
    frame[features.columns] = (features - features.mean()) / features.std()
    frame.to_csv(tmp_path / "rossi.csv", index=False)
    config = {
        "name": "rossi",
        "rounds": 40,
        "data": {
            "source": f"csv:{tmp_path / 'rossi.csv'}",
            "label": ["arrest", "week"],
            "test": str(tmp_path / "rossi.csv"),
            "partition": {"kind": "iid", "clients": SILOS},
        },
        "model": {"kind": "mlp", "hidden": []},
        "training": {"lr": 1.0, "batch_size": 108, "epochs": 5, "loss": "cox"},
        "evaluation": {"every": 0, "metrics": ["c_index"]},
        "tracking": {"enabled": False},
        "ray": {"address": "local"},
    }
    found = fedray.run(config, output=str(tmp_path / "run")).summary["final"]["eval/c_index"]
    assert abs(found - pooled) <= 0.02
