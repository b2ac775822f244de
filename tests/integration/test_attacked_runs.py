"""Attacked runs through Ray: the same bytes with other actors and after a resume, and marked as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shortruns import short_run

import fedray
from fedray.runfiles import RunFiles


def run(output: Path, attack: dict[str, Any], **sections: Any) -> fedray.Result:
    config: dict[str, Any] = {
        "rounds": 2,
        "aggregation": {"kind": "bucketing", "rule": {"kind": "geometric_median"}},
        "attack": {"fraction": 0.3, **attack},
    }
    return short_run(output, **{**config, **sections})


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("kind", ["label_flip", "sign_flip", "mimic"])
def test_an_attacked_run_ends_the_same_with_other_actors_and_says_that_it_was_attacked(kind: str, tmp_path: Path) -> None:
    attack = {"kind": kind}
    calm = run(tmp_path / "calm", attack)
    run(tmp_path / "resumed", attack, rounds=1, clients={"actors": 1})
    resumed = run(tmp_path / "resumed", attack, resume=True)
    assert resumed.summary["model_sha256"] == calm.summary["model_sha256"]
    said = calm.summary["attack"]
    assert said.startswith("attack.kind: 2 of 6 clients (client-000")
    assert f"by '{kind}'" in said
    assert calm.summary["privacy"] == {"unit": None, "regime": "none", "epsilon": None}
    assert (RunFiles(Path(calm.output)).read_summary() or {})["attack"] == said
