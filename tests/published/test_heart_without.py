"""Four hospitals of heart disease (UCI), and the same without one: a replay is the run of the three that never had the fourth."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from paths import ROOT

import fedray
from fedray.runfiles import RunFiles


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", ["heart.yaml", "heart-newton.yaml"])
def test_a_replay_without_a_hospital_is_the_run_of_the_others(real_data: Path, tmp_path: Path, config: str) -> None:
    never = tmp_path / "never"
    shutil.copytree(real_data / "heart", never, ignore=lambda _, names: [name for name in names if name.startswith("hungarian")])
    digests = []
    for name, overrides in (
        ("whole", [f"data.source=csv:{real_data / 'heart'}"]),
        ("replayed", [f"data.source=csv:{real_data / 'heart'}", "data.without=[hungarian]"]),
        ("never", [f"data.source=csv:{never}"]),
    ):
        more = ["ray.address=local", "tracking.enabled=false", "rounds=3"]
        result = fedray.run(ROOT / "configs" / config, overrides=[*overrides, *more], output=str(tmp_path / name))
        digests.append(result.summary["model_sha256"])
        rows = RunFiles(result.output).rows()
        assert rows[-1]["metrics"]["round/clients_completed"] == (4 if name == "whole" else 3)
    assert digests[1] == digests[2] != digests[0]
