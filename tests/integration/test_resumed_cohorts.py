"""Through Ray, a resumed run draws the cohorts of the run that never stopped, and the number of actors decides nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shortruns import short_run

import fedray
from fedray.errors import ConfigError
from fedray.runfiles import RunFiles

NAMES = [f"client-{k:04}" for k in range(8)]
COHORTS: dict[str, dict[str, Any]] = {
    "importance": {"kind": "importance", "size": 3},
    "power_of_choice": {"kind": "power_of_choice", "size": 2, "candidates": 5, "stragglers": {"share": 0.5}},
    "traces": {"kind": "fixed", "size": 3, "stragglers": {"share": 0.4, "drop": True}},
}


def column(result: fedray.Result, name: str) -> list[float]:
    return [row["metrics"][name] for row in RunFiles(result.output).rows()]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("name", COHORTS)
def test_a_resumed_run_has_the_same_cohorts(tmp_path: Path, name: str) -> None:
    file, cohort = tmp_path / "traces.json", COHORTS[name]
    file.write_text(json.dumps({client: [[1 + k % 3, 4], 6] for k, client in enumerate(NAMES)}))
    cohort = {**cohort, "availability": str(file)} if name == "traces" else cohort

    def run(folder: Path, rounds: int = 6, **more: Any) -> fedray.Result:
        data = {"source": "sklearn:digits", "partition": {"kind": "dirichlet", "alpha": 0.5, "clients": 8}}
        training = {"lr": 0.1, "batch_size": 20, "epochs": 3}
        return short_run(folder, rounds=rounds, data=data, cohort=cohort, training=training, evaluation={"metrics": []}, **more)

    one, three = (run(tmp_path / str(n), clients={"actors": n}) for n in (1, 3))
    run(tmp_path / "resumed", rounds=3)
    resumed = run(tmp_path / "resumed", resume=True)
    assert len({r.summary["model_sha256"] for r in (one, three, resumed)}) == 1
    for metric in ("round/clients_sampled", "round/clients_completed", "round/clients_late"):
        assert column(one, metric) == column(three, metric) == column(resumed, metric)
    if name == "traces":
        assert column(one, "round/clients_sampled")[4] == 0
        file.write_text(json.dumps({client: [[1, 6]] for client in NAMES}))
        with pytest.raises(ConfigError, match="--resume"):
            run(tmp_path / "resumed", rounds=7, resume=True)
