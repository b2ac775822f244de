"""Rules of single updates through Ray: the same bytes with a dying actor, after a resume, and for a rule by import path; parts that are lost."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pools import CLIENTS, Ground, several_nodes
from shortruns import short_run

import fedray
from fedray.aggregation.each import Each, PartLost, RowsAt, segments_for
from fedray.aggregation.median import CoordinateMedian
from fedray.aggregation.rule import combined
from fedray.checkpoint import load_latest
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.pool import Pool, RoundLog
from fedray.rounds.clientstates import ClientStates
from fedray.runfiles import RunFiles

CLIPPING = {"kind": "centered_clipping", "radius": 0.5}


run = partial(
    short_run,
    data={"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}, "holdout": {"fraction": 0.2, "at": "driver"}},
    cohort={"kind": "fixed", "size": 5},
    algorithm={"kind": "scaffold"},
    aggregation=CLIPPING,
    evaluation={"every": 3, "metrics": ["accuracy"]},
    checkpoint={"every": 1},
)


def digest(result: fedray.Result) -> str:
    return str(result.summary["model_sha256"])


@pytest.mark.usefixtures("cluster")
class TestRuns:
    @pytest.mark.slow
    def test_the_bytes_are_the_same_with_a_dying_actor_and_after_a_resume_with_another(self, tmp_path: Path) -> None:
        calm = run(tmp_path / "calm")
        died = run(tmp_path / "died", algorithm={"kind": "python:stateparts:Dying", "mark": str(tmp_path / "mark")})
        assert died.summary["faults"]["actor_deaths"] == 1
        run(tmp_path / "resumed", rounds=2, clients={"actors": 1})
        resumed = run(tmp_path / "resumed", resume=True)
        assert digest(died) == digest(resumed) == digest(calm)
        remembered = [load_latest(tmp_path / name / "checkpoints") for name in ("calm", "died", "resumed")]
        assert len({saved.rule["previous"].tobytes() for saved in remembered if saved is not None}) == 1

    @pytest.mark.slow
    def test_a_rule_by_import_path_gives_the_bytes_of_the_built_in_one_even_if_an_actor_dies(self, tmp_path: Path) -> None:
        calm = run(tmp_path / "calm", rounds=2, aggregation={"kind": "median"})
        dying = {"kind": "python:stateparts:Dying", "mark": str(tmp_path / "mark")}
        died = run(tmp_path / "died", rounds=2, algorithm=dying, aggregation={"kind": "python:ruleparts:Middle"})
        assert died.summary["faults"]["actor_deaths"] == 1
        assert digest(died) == digest(calm)

    @pytest.mark.slow
    def test_clients_whose_updates_are_gone_do_not_count_and_the_others_do(self, tmp_path: Path) -> None:
        mark, model = tmp_path / "mark", {"kind": "mlp", "hidden": [1500]}  # larger than what Ray sends within a reply
        result = run(tmp_path / "run", rounds=1, model=model, aggregation={"kind": "python:ruleparts:Losing", "mark": str(mark)})
        lost = {int(index) for index in mark.read_text().split()}
        assert 0 < len(lost) < 5
        (row,) = RunFiles(result.output).rows()
        assert row["metrics"]["round/clients_completed"] == 5 - len(lost)
        assert row["metrics"]["round/clients_failed"] == len(lost)
        assert result.summary["faults"]["client_failures"] == len(lost)
        faults = [fault["what"] for fault in RunFiles(result.output).faults()]
        assert any("were lost before they were combined: its node has left" in what for what in faults)
        saved = load_latest(tmp_path / "run" / "checkpoints")
        assert saved is not None
        states = ClientStates(tmp_path / "run" / "states", 1, saved.states)
        kept = {t.index for t in states.attached([ClientTask(i, str(i)) for i in range(6)]) if t.state is not None}
        assert len(kept) == 5 - len(lost)
        assert not kept & lost

    @pytest.mark.slow
    def test_updates_that_are_private_by_themselves_may_have_a_median(self, tmp_path: Path) -> None:
        privacy = {"regime": "local", "noise_multiplier": 20.0, "clip": 1.0, "delta": 1e-2, "insecure_seed": 5}
        sections: dict[str, Any] = {"rounds": 1, "cohort": {"kind": "all"}, "aggregation": {"kind": "median"}}
        made = [
            run(
                tmp_path / str(actors),
                privacy=privacy,
                algorithm={"kind": "fedavg", "weights": "uniform"},
                **sections,
                clients={"actors": actors},
            )
            for actors in (1, 3)
        ]
        assert digest(made[0]) == digest(made[1])
        assert np.isfinite(made[0].summary["privacy"]["epsilon"])


def single(ground: Ground, pool: Pool, number: int = 0) -> tuple[Each, RoundLog]:
    """A round of single updates by hand."""
    size = ground.model.facts.layout.size
    segments = segments_for(CLIENTS, size)
    got, log = Each(size, segments), RoundLog()
    cohort = [ClientTask(i, name) for i, name in enumerate(ground.prepared.names)]
    for part in pool.train(cohort, RoundTask(number, 1e4, collect="each", segments=segments), ground.weights, log):
        assert isinstance(part, RowsAt)
        got = got.joined(part)
    assert got.clients == list(range(CLIENTS))
    return got, log


@pytest.mark.slow
def test_a_node_that_leaves_takes_its_clients_updates_with_it() -> None:
    resources = {"resources": {"cpu": 1.0}}
    with several_nodes({"num_cpus": 2}, {"num_cpus": 2}) as (cluster, others):
        ground = Ground(clients=resources, model={"kind": "mlp", "hidden": [20_000]})
        pool = ground.pool(4)
        try:
            pool.wait_ready(90, everyone=True)
            node_of = {slot.place.key: slot.node for slot in pool.slots}
            assert len(set(node_of.values())) == 2
            got, _ = single(ground, pool)
            size = got.size
            whole, _ = combined(CoordinateMedian(), got, {}, size)
            again, _ = single(ground, pool)
            cluster.remove_node(others[0])
            lost: list[int] = []
            left = again
            while True:
                try:
                    vector, _ = combined(CoordinateMedian(), left, {}, size)
                    break
                except PartLost as error:
                    lost += error.part.clients
                    left = left.without(error.part)
            assert 0 < len(lost) < CLIENTS
            assert sorted([*lost, *left.clients]) == list(range(CLIENTS))
            rest = [n for n in range(CLIENTS) if n not in lost]
            expected = np.concatenate([np.median(columns[rest].astype(np.float64), axis=0) for _, _, columns in got.blocks()])
            assert vector.tobytes() == (expected.astype(np.float32) + np.float32(0.0)).tobytes()
            assert vector.tobytes() != whole.tobytes()
        finally:
            pool.shutdown()
