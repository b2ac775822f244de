"""Updates that count as they come: full buffers, the first of a cohort, and how much virtual time that saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from virtualray import drive

from fedray.clients import inbox
from fedray.clients.messages import ClientTask
from fedray.config import Config
from fedray.configfile import build_config

SLOW = (0, 1)  # clients that take 20 times as long


def seconds(client: ClientTask) -> float:
    return 20.0 if client.index in SLOW else 1.0


def config(**sections: Any) -> Config:
    raw = {
        "name": "t",
        "seed": 5,
        "rounds": 8,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 8}},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.1, "batch_size": 20, "epochs": 1},
        "evaluation": {"metrics": []},
        "tracking": {"enabled": False},
    }
    return build_config({**raw, **sections})


def metric(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row["metrics"][name] for row in rows]


def test_fedbuff_takes_half_of_the_time_of_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, whole, _ = drive(config(cohort={"kind": "fixed", "size": 4}), tmp_path / "a", seconds, 4, monkeypatch)
    buffered, took, weights = drive(
        config(pacing={"kind": "fedbuff", "buffer": 4, "concurrency": 4}), tmp_path / "b", seconds, 4, monkeypatch
    )
    assert metric(rounds, "round/clients_completed") == metric(buffered, "round/clients_completed") == [4] * 8
    assert took.now <= whole.now / 2
    staleness = metric(buffered, "round/staleness_most")
    assert staleness[0] == 0 and max(staleness) > 0
    assert np.isfinite(weights).all()


def test_over_selection_waits_for_the_first_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacing, cohort = {"kind": "semi_synchronous", "over": 1.3}, {"kind": "fixed", "size": 6}
    rows, ray, _ = drive(config(pacing=pacing, cohort=cohort), tmp_path / "a", seconds, 8, monkeypatch)
    assert metric(rows, "round/clients_completed") == [6] * 8
    assert metric(rows, "round/clients_surplus") == [2] * 8
    assert ray.now < 8 * 2  # of 8 rounds, none of which waits for a slow client


def test_too_stale_an_update_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacing = {"kind": "fedbuff", "buffer": 2, "concurrency": 4, "most_staleness": 3}
    rows, _, _ = drive(config(pacing=pacing, rounds=60), tmp_path / "a", seconds, 4, monkeypatch)
    assert max(metric(rows, "round/staleness_most")) <= 3
    assert metric(rows, "round/clients_completed") == [2] * 60
    assert sum(metric(rows, "round/clients_late")) > 0


def test_a_small_population_makes_steps_of_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody starts twice before a step, and all eight together fill the buffer."""
    rows, _, _ = drive(config(pacing={"kind": "fedbuff", "buffer": 8, "concurrency": 3}, rounds=2), tmp_path / "a", seconds, 3, monkeypatch)
    assert metric(rows, "round/clients_completed") == [8, 8]


def test_simulated_arrival_does_not_follow_the_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacing = {"kind": "fedbuff", "buffer": 3, "concurrency": 5, "arrival": "simulated"}
    one, _, first = drive(config(pacing=pacing), tmp_path / "a", lambda client: 1.0, 1, monkeypatch)
    three, _, second = drive(config(pacing=pacing), tmp_path / "b", seconds, 3, monkeypatch)
    assert first.tobytes() == second.tobytes()
    for name in ("time/virtual_s", "round/staleness_mean", "round/staleness_most", "train/loss_mean"):
        assert metric(one, name) == metric(three, name)
    assert max(metric(one, "round/staleness_most")) > 1


def test_a_sum_that_a_node_shares_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apart, _, first = drive(config(rounds=2), tmp_path / "a", seconds, 3, monkeypatch)
    monkeypatch.setattr(inbox, "LARGE", 0)
    together, _, second = drive(config(rounds=2), tmp_path / "b", seconds, 3, monkeypatch)
    assert first.tobytes() == second.tobytes()
    assert [metric(rows, "traffic/uplink_mb")[1] > 0 for rows in (apart, together)] == [True, True]
    assert metric(together, "traffic/uplink_mb")[1] < metric(apart, "traffic/uplink_mb")[1]  # one part of three actors
