"""What clients keep between their turns, through Ray: with actors that die, other actors after a resume, and models of their own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from keptstates import kept
from shortruns import short_run

from fedray.checkpoint import load_latest
from fedray.errors import FedrayError
from fedray.runfiles import CLUSTERS, RunFiles
from fedray.storage import read_json

FLHC = {"kind": "flhc", "clients": 6, "clusters": 3, "after": 2}

run = partial(
    short_run,
    data={
        "source": "sklearn:digits",
        "partition": {"kind": "dirichlet", "alpha": 0.3, "clients": 6, "min_records": 20},
        "holdout": {"fraction": 0.2, "at": "clients"},
    },
    cohort={"kind": "fixed", "size": 3},
    algorithm={"kind": "scaffold"},
    evaluation={"every": 3, "federated": True, "metrics": ["accuracy"]},
    checkpoint={"every": 1},
)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_state_is_the_same_with_a_dying_actor_and_after_a_resume_with_another(tmp_path: Path) -> None:
    calm = run(tmp_path / "calm")
    dying = {"kind": "python:stateparts:Dying", "mark": str(tmp_path / "mark")}
    died = run(tmp_path / "again", rounds=2, clients={"actors": 1}, algorithm=dying)
    assert died.summary["faults"]["actor_deaths"] == 1
    resumed = run(tmp_path / "again", algorithm=dying, resume=True)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("calm", "again")]
    assert resumed.summary["model_sha256"] == calm.summary["model_sha256"]
    assert models[0] == models[1]
    assert kept(tmp_path / "calm", "control") == kept(tmp_path / "again", "control") != {}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_clients_with_models_of_their_own_measure_those(tmp_path: Path) -> None:
    shared, own = (run(tmp_path / kind, algorithm={"kind": kind}).summary["final"]["eval/accuracy"] for kind in ("fedavg", "ditto"))
    assert own > shared


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "algorithm", [{"kind": "fedper", "personal": ["out"]}, {"kind": "ifca", "clusters": 3}, FLHC], ids=lambda a: a["kind"]
)
def test_models_apart_are_the_same_after_a_resume_and_measured_at_the_clients(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    sections: dict[str, Any] = {"algorithm": algorithm, "model": {"kind": "mlp", "hidden": [8]}}
    calm = run(tmp_path / "calm", **sections)
    run(tmp_path / "resumed", rounds=2, clients={"actors": 1}, **sections)
    resumed = run(tmp_path / "resumed", resume=True, **sections)
    assert resumed.summary["model_sha256"] == calm.summary["model_sha256"]
    assert resumed.summary["final"] == calm.summary["final"] and 0 < calm.summary["final"]["eval/accuracy"] <= 1
    with pytest.raises(FedrayError, match="the model of this run does not predict by itself"):
        calm.model()
    if algorithm["kind"] == "ifca":
        counts = [
            [v for name, v in row["metrics"].items() if name.startswith("round/cluster_")] for row in RunFiles(tmp_path / "calm").rows()
        ]
        assert [(len(row), sum(row)) for row in counts] == [(3, 3)] * 3
    elif algorithm["kind"] == "flhc":
        documents = [read_json(tmp_path / name / CLUSTERS) or {} for name in ("calm", "resumed")]
        of_calm, of_resumed = ({row["client"]: row["cluster"] for row in document["rows"]} for document in documents)
        assert of_calm == of_resumed and set(of_calm.values()) == {0, 1, 2}
    else:
        saved = load_latest(tmp_path / "calm" / "checkpoints")
        assert saved is not None and saved.weights.shape == (64 * 8 + 8,) and saved.rest is None


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("kind", ["feddyn", "afl"])
def test_the_drivers_part_of_the_method_goes_on_after_a_resume_with_other_actors(tmp_path: Path, kind: str) -> None:
    sections: dict[str, Any] = {"algorithm": {"kind": kind}, "server": {"kind": "sgd", "momentum": 0.5}}
    calm = run(tmp_path / "calm", **sections)
    run(tmp_path / "resumed", rounds=2, clients={"actors": 1}, **sections)
    resumed = run(tmp_path / "resumed", resume=True, **sections)
    assert resumed.summary["model_sha256"] == calm.summary["model_sha256"]
    saved = [load_latest(tmp_path / name / "checkpoints") for name in ("calm", "resumed")]
    assert saved[0] is not None and saved[1] is not None
    assert saved[0].globals.tobytes() == saved[1].globals.tobytes()
    assert {k: v.tobytes() for k, v in saved[0].server.items()} == {k: v.tobytes() for k, v in saved[1].server.items()}
