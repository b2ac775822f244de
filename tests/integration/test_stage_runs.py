"""Stages through Ray: what travels is what is counted, and clients' memories survive a dying actor and a resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from keptstates import kept
from shortruns import short_run

import fedray
from fedray.runfiles import RunFiles

SIZE = 650  # softmax regression of digits
TOPK = {"kind": "topk", "share": 0.02}


run = partial(short_run, clients={"actors": 2, "node_sums": False}, cohort={"kind": "fixed", "size": 3}, compression=TOPK)


def traffic(result: fedray.Result, name: str) -> list[int]:
    return [round(row["metrics"][f"traffic/{name}_mb"] * 1e6) for row in RunFiles(Path(result.output)).rows()]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_memories_are_the_same_after_a_resume_with_other_actors(tmp_path: Path) -> None:
    calm = run(tmp_path / "calm")
    run(tmp_path / "resumed", rounds=2, clients={"actors": 1})
    resumed = run(tmp_path / "resumed", resume=True)
    assert resumed.summary["model_sha256"] == calm.summary["model_sha256"]
    assert kept(tmp_path / "calm", "stage0.error") == kept(tmp_path / "resumed", "stage0.error") != {}
    assert any(np.frombuffer(error, dtype=np.float32).any() for error in kept(tmp_path / "calm", "stage0.error").values())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_traffic_counts_what_travelled(tmp_path: Path) -> None:
    each = int(0.02 * SIZE)
    sparse = run(tmp_path / "sparse")
    assert traffic(sparse, "sent") == [8 * each] * 3
    for up in traffic(sparse, "uplink"):  # three clients in one or two parts, in which positions may meet
        assert 0 < up <= 3 * each * 12 and up % 12 == 0
    dense = run(tmp_path / "dense", compression={"kind": "none"})
    assert all(up in (8 * SIZE, 2 * 8 * SIZE) for up in traffic(dense, "uplink"))
    assert not any("traffic/sent_mb" in row["metrics"] for row in RunFiles(Path(dense.output)).rows())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_sizes_do_not_tell_who_took_part(tmp_path: Path) -> None:
    privacy = {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-3, "clip": 1.0, "budget": 1000}
    sections = {
        "compression": {**TOPK, "feedback": False},
        "bound": {"kind": "norm", "norm": 2.0},
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
    }
    result = run(tmp_path / "r", privacy=privacy, cohort={"kind": "poisson", "fraction": 0.3}, **sections)
    assert traffic(result, "uplink") == [2 * 8 * SIZE] * 3
    assert traffic(result, "sent") == [8 * int(0.02 * SIZE)] * 3
    assert result.summary["privacy"]["claim"] == "valid"
