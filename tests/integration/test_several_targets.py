"""Several targets a record through Ray: Cox regression on silos against the same model on pooled records, and labels with privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from survivors import survivors

import fedray


def trained(folder: Path, data: dict[str, Any], name: str, **sections: Any) -> fedray.Result:
    config: dict[str, Any] = {
        "name": name,
        "rounds": 12,
        "data": {"label": ["event", "time"], "test": str(folder / "test.csv"), **data},
        "model": {"kind": "mlp", "hidden": []},
        "clients": {"resources": {"cpu": 0.5}},
        "training": {"lr": 0.5, "batch_size": 200, "epochs": 5, "loss": "cox"},
        "evaluation": {"every": 0, "metrics": ["c_index", "loss"]},
        "tracking": {"enabled": False},
    }
    return fedray.run(config | sections, output=str(folder / "runs" / name))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_silos_reach_the_concordance_of_their_pooled_records(tmp_path: Path) -> None:
    """Silos differ in size and in what they see; each is one batch. Who trains where changes no byte."""
    silos = tmp_path / "silos"
    silos.mkdir()
    frames = {f"silo{k}": survivors(n, k, shift=k / 2) for k, n in enumerate((120, 60, 180))}
    for name, frame in frames.items():
        frame.to_csv(silos / f"{name}.csv", index=False)
    pd.concat(frames.values()).to_csv(tmp_path / "pooled.csv", index=False)
    survivors(400, 99).to_csv(tmp_path / "test.csv", index=False)

    alone = trained(tmp_path, {"source": f"csv:{silos}"}, "silos", clients={"placement": "dedicated", "resources": {"cpu": 0.5}})
    hosted = trained(tmp_path, {"source": f"csv:{silos}"}, "hosted", clients={"actors": 1, "resources": {"cpu": 0.5}})
    one = {"source": f"csv:{tmp_path / 'pooled.csv'}", "partition": {"kind": "iid", "clients": 1}}
    pooled = trained(tmp_path, one, "pooled", training={"lr": 0.5, "batch_size": 360, "physical_batch": 360, "epochs": 5, "loss": "cox"})
    assert alone.summary["model_sha256"] == hosted.summary["model_sha256"]
    reached, best = alone.summary["final"]["eval/c_index"], pooled.summary["final"]["eval/c_index"]
    assert best > 0.75
    assert abs(reached - best) <= 0.02


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_several_labels_are_learned_under_record_level_privacy(tmp_path: Path) -> None:
    silos = tmp_path / "silos"
    silos.mkdir()
    frames = [survivors(n, k).assign(early=lambda f: (f.time < 0.5).astype(int)).drop(columns="time") for k, n in enumerate((80, 120, 90))]
    frames[2].to_csv(tmp_path / "test.csv", index=False)
    for k in range(2):
        frames[k].to_csv(silos / f"silo{k}.csv", index=False)
    result = trained(
        tmp_path,
        {"source": f"csv:{silos}", "label": ["event", "early"]},
        "labels",
        rounds=2,
        clients={"placement": "dedicated", "resources": {"cpu": 0.5}},
        training={"lr": 2.0, "sampling_rate": 0.5, "expected_batch": 50, "steps": 20, "loss": "bce"},
        privacy={"regime": "record", "noise_multiplier": 1.0, "delta": 1e-4, "ledger": str(tmp_path / "books")},
        evaluation={"every": 0, "metrics": ["mean_auroc", "micro_f1", "loss"]},
    )
    assert result.summary["final"]["eval/mean_auroc"] > 0.6
    assert result.predict(frames[2].drop(columns=["event", "early"])).shape == (90, 2)
