"""Clusters of clients by how their updates point, and what a run says of clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, half_rotated
from sklearn.cluster import AgglomerativeClustering
from virtualray import drive

from fedray.algorithms.flhc import nearest_merged, sketched
from fedray.clients.messages import LocalEvaluation
from fedray.configfile import build_config
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal
from fedray.experiment.launch import Result
from fedray.parameters import Layout, get_vector
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.reporting.report_clients import clusters
from fedray.rounds.clusters import Clusters
from fedray.runfiles import CLUSTERS, RunFiles
from fedray.storage import read_json, write_json
from fedray.tracking.charts import charts
from fedray.tracking.rundata import RunData

FLHC: dict[str, Any] = {"kind": "flhc", "clients": 10, "clusters": 3, "after": 2, "distance": 0.75}
TRAINING = {"lr": 0.1, "batch_size": 10, "epochs": 1}
HALVES = [0] * 5 + [1] * 5


def run(algorithm: dict[str, Any] = FLHC, **sections: Any) -> Rehearsed:
    return Rehearsed(config_of(algorithm, training=TRAINING, evaluation={"federated": True}, **sections), half_rotated())


def found(rehearsed: Rehearsed) -> list[int]:
    return np.asarray(rehearsed.exchange.views(rehearsed.globals, "down")["cluster"]).astype(int).tolist()


@given(st.integers(0, 2**32), st.sampled_from([64, 256, 1024]))
def test_sketches_keep_the_cosine_of_two_updates(seed: int, size: int) -> None:
    draws = np.random.default_rng(seed)
    a, b = draws.normal(size=(2, 5000)).astype(np.float32)
    b = (a * draws.uniform(-2, 2) + b).astype(np.float32)
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert sketched(a, size) @ sketched(b, size) == pytest.approx(cosine, abs=8 / np.sqrt(size))
    np.testing.assert_array_equal(sketched(a * np.float32(4.0), size), sketched(a, size))
    assert not sketched(np.zeros(10, dtype=np.float32), size).any()


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_merging_is_average_linkage(seed: int, count: int, most: int, near: float) -> None:
    distances = np.random.default_rng(seed).random((count, count))
    distances = (distances + distances.T) / 2
    mine = nearest_merged(distances, most, near)
    assert mine[0] == 0 and all(label <= mine[:k].max() + 1 for k, label in enumerate(mine) if k)
    if count > 1:
        linkage = {"metric": "precomputed", "linkage": "average"}
        np.fill_diagonal(distances, 0)
        theirs = AgglomerativeClustering(n_clusters=None, distance_threshold=near, **linkage).fit(distances).labels_
        if len(set(theirs)) > most:
            theirs = AgglomerativeClustering(n_clusters=most, **linkage).fit(distances).labels_
        assert (mine[:, None] == mine).tolist() == (theirs[:, None] == theirs).tolist()


def test_the_two_groups_are_found_and_go_on_apart() -> None:
    flhc, fedavg = run(), run({"kind": "fedavg"})
    for number in range(6):
        for one in (flhc, fedavg):
            one.train([range(10)])
        assert found(flhc) == ([-1] * 10 if number == 0 else HALVES)
        if number < 2:  # until then it is FedAvg, whose models are all one
            models = np.split(flhc.globals[: flhc.exchange.model_size], 3)
            np.testing.assert_allclose(models, [fedavg.globals] * 3, rtol=0, atol=1e-5)
    assert [told.cluster for told in flhc.at_clients()] == HALVES
    assert [told.cluster for told in fedavg.at_clients()] == [None] * 10
    assert flhc.client_accuracy() > fedavg.client_accuracy() + 0.03


def test_actors_and_restarts_change_no_cluster() -> None:
    alone, split = run(), run()
    for _ in range(3):
        alone.train([range(10)])
        split.train([[9, 0, 4], [3, 5], [1, 2, 6, 7, 8]], [2, 0, 1])
        split.restart()
    assert alone.globals.tobytes() == split.globals.tobytes()


def test_who_comes_late_joins_the_nearest_cluster_and_counts_from_then_on() -> None:
    here = [0, 1, 2, 5, 6, 7]
    rehearsed = run()
    for _ in range(2):
        rehearsed.train([here])
    assert found(rehearsed) == [0, 0, 0, -2, -2, 1, 1, 1, -2, -2]
    before = rehearsed.globals[: rehearsed.exchange.model_size]
    rehearsed.train([[3, 8]])
    assert found(rehearsed) == [0, 0, 0, 0, -2, 1, 1, 1, 1, -2]
    np.testing.assert_array_equal(rehearsed.globals[: rehearsed.exchange.model_size], before)
    rehearsed.train([[8]])
    changed = np.split(rehearsed.globals[: rehearsed.exchange.model_size] != before, 3)
    assert [bool(part.any()) for part in changed] == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clients": 1}, "algorithm.clients: 1 is below 2"),
        ({"clusters": 1}, "algorithm.clusters: 1 is below 2"),
        ({"after": 0}, "algorithm.after: 0 is below 1"),
        ({"sketch": 1}, "algorithm.sketch: 1 is below 2"),
        ({"distance": 2.5}, "algorithm.distance: 2.5 is no cosine distance"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_only(config_of({**FLHC, **changes}))


def test_another_number_of_clients_is_refused() -> None:
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}, "holdout": {"at": "clients"}}
    with pytest.raises(ConfigError, match=r"algorithm.clients: says 10, but the run has 4; set it to that\."):
        prepare(config_of(FLHC, data=data, evaluation={"federated": True}))


def test_a_secure_sum_would_tell_what_it_hides() -> None:
    with pytest.raises(PrivacyRefusal) as refusal:
        check_only(config_of(FLHC, secure={"kind": "secagg"}, cohort={"kind": "all", "min_clients": 3}))
    assert refusal.value.code == "privacy.incompatible.secure.singles"


def test_the_file_has_the_last_evaluation_and_what_moved(tmp_path: Path) -> None:
    def told(*of: int | None) -> list[LocalEvaluation]:
        return [LocalEvaluation(f"c{k}", 5, {"accuracy": 0.5 + k / 10}, {}, cluster) for k, cluster in enumerate(of)]

    kept = Clusters(tmp_path, "accuracy")
    assert kept.take(1, told(None, None)) == {} and not (tmp_path / CLUSTERS).exists()
    assert kept.take(1, told(0, 2, 2)) == {"clusters/0_clients": 1, "clusters/1_clients": 0, "clusters/2_clients": 2, "clusters/moved": 0}
    for again in (kept, Clusters(tmp_path, "accuracy")):  # also of a driver that evaluates the round once more
        assert again.take(2, told(0, 0, 2)) == {
            "clusters/0_clients": 2,
            "clusters/1_clients": 0,
            "clusters/2_clients": 1,
            "clusters/moved": 1,
        }
    document = json.loads((tmp_path / CLUSTERS).read_text())
    assert document == {
        "round": 2,
        "rows": [
            {"client": "c0", "cluster": 0, "before": 0, "accuracy": 0.5},
            {"client": "c1", "cluster": 0, "before": 2, "accuracy": 0.6},
            {"client": "c2", "cluster": 2, "before": 2, "accuracy": 0.7},
        ],
    }
    text = "\n".join(clusters(document))
    assert "| 0 | 2 | 0.5500 | c0, c1 |" in text and "| 2 | 1 | 0.7000 | c2 |" in text
    assert list(clusters({})) == []


@pytest.mark.parametrize("algorithm", [{**FLHC, "clients": 6, "after": 1}, {"kind": "ifca", "clusters": 2}], ids=lambda part: part["kind"])
def test_a_run_says_who_is_where_and_gives_each_client_its_model(
    algorithm: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(
        {
            "name": "t",
            "rounds": 2,
            "data": {"source": "sklearn:digits", "partition": {"kind": "shards", "clients": 6}, "holdout": {"at": "clients"}},
            "model": {"kind": "mlp", "hidden": [8]},
            "training": TRAINING,
            "algorithm": algorithm,
            "evaluation": {"metrics": ["accuracy"], "federated": True},
            "tracking": {"enabled": False},
        }
    )
    drive(config, tmp_path, lambda client: 1.0, 1, monkeypatch)
    prepared, files = prepare(config), RunFiles(tmp_path)
    rows = files.rows()
    assert prepared.model is not None
    write_json(files.partition, {**prepared.partition, "model": prepared.model.document()})
    document = read_json(tmp_path / CLUSTERS)
    assert document is not None and document["round"] == 2 and len(document["rows"]) == 6
    for row in rows:
        assert sum(value for name, value in row["metrics"].items() if name.startswith("clusters/") and name.endswith("_clients")) == 6
    assert "clusters" in [chart.name for chart in charts(RunData(rows))]
    result, outputs = Result("completed", {}, tmp_path, config), {}
    for row in document["rows"]:
        model = result.model(client=row["client"])
        outputs.setdefault(row["cluster"], get_vector(model, Layout.of(model)))
        np.testing.assert_array_equal(outputs[row["cluster"]], get_vector(model, Layout.of(model)))
    assert len({vector.tobytes() for vector in outputs.values()}) == len(outputs)
    (tmp_path / CLUSTERS).unlink()
    with pytest.raises(FedrayError, match="it was never evaluated; train with evaluation.federated=true"):
        result.model(client=document["rows"][0]["client"])
