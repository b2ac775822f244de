"""What the driver does where a secure sum cannot be read: a new attempt, or, where clients have helped to unmask it, the next round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from virtualray import drive

from fedray.config import Config
from fedray.configfile import build_config
from fedray.runfiles import RunFiles


def config(**secure: Any) -> Config:
    return build_config(
        {
            "name": "shy",
            "rounds": 2,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "batch_size": 32, "epochs": 1},
            "cohort": {"kind": "all", "min_clients": 3},
            "secure": {"kind": "secagg", "fewest": 4} | secure,
            "tracking": {"enabled": False},
            "evaluation": {"every": 0},
        }
    )


def completed(folder: Path) -> list[tuple[float, float]]:
    """Updates in the sum, and clients that were tried again, by round."""
    return [(row["metrics"]["round/clients_completed"], row["metrics"]["round/retries"]) for row in RunFiles(folder).rows()]


def told(folder: Path) -> str:
    return " ".join(str(fault["what"]) for fault in RunFiles(folder).faults())


@pytest.mark.parametrize("phase", ["keys", "shares", "consistency"])
def test_before_masks_come_off_the_round_is_begun_again_with_the_same_bytes(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shy = {"kind": "python:shyparts:Shy", "phase": phase, "shy": 3}
    _, _, calm = drive(config(), tmp_path / "calm", lambda client: 1.0, 2, monkeypatch)
    _, _, weights = drive(config(**shy), tmp_path / "shy", lambda client: 1.0, 2, monkeypatch)
    assert weights.tobytes() == calm.tobytes()
    assert completed(tmp_path / "calm") == [(6, 0), (6, 0)]
    assert completed(tmp_path / "shy") == [(6, 6), (6, 0)]
    assert "the round is begun again with new keys" in told(tmp_path / "shy")


def test_after_some_have_helped_to_unmask_the_round_is_given_up_and_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients would refuse another attempt, so nobody trains or is charged for one."""
    shy = {"kind": "python:shyparts:Shy", "phase": "unmask", "shy": 3}
    drive(config(**shy), tmp_path, lambda client: 1.0, 2, monkeypatch)
    assert completed(tmp_path) == [(0, 0), (6, 0)]
    assert "of 6 members 3 were left after the phase 'unmask', and it takes 4" in told(tmp_path)
    assert "begun again" not in told(tmp_path)
