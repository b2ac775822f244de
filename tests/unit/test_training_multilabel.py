"""Several labels a record: the loss, its metrics, tables of them, and training with and without record-level privacy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Data
from fedray.configfile import build_config
from fedray.data.dataset import load_client, load_federation
from fedray.data.labels import label_array, number_classes
from fedray.errors import ConfigError, DataError
from fedray.planning.preparation import prepare
from fedray.training.multilabel import bce, mean_auroc, micro_f1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two silos: three features, of which each decides one of three labels."""
    for k, n in enumerate((40, 30)):
        u = np.random.default_rng(k).normal(size=(n, 3))
        frame = pd.DataFrame({f"u{i}": u[:, i] for i in range(3)} | {f"y{i}": (u[:, i] > 0).astype(int) for i in range(3)})
        frame.to_csv(tmp_path / f"silo{k}.csv", index=False)
    return tmp_path


def data(folder: Path, **more: Any) -> dict[str, Any]:
    return {"source": f"csv:{folder}", "label": ["y0", "y1", "y2"], "holdout": {"fraction": 0.2, "at": "clients"}} | more


# -- loss and metrics --------------------------------------------------------------------------------


def batches(most: int = 12) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    def pair(size: tuple[int, int]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
        n, k = size
        logits = st.lists(st.lists(st.integers(-3, 3), min_size=k, max_size=k), min_size=n, max_size=n).map(lambda v: np.array(v) / 2 + 0.1)
        return st.tuples(logits, st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=n, max_size=n).map(np.array))

    return st.tuples(st.integers(2, most), st.integers(2, 4)).flatmap(pair)


@given(batches())
def test_the_loss_is_the_mean_over_a_records_labels(batch: tuple[np.ndarray, np.ndarray]) -> None:
    logits, holds = batch
    p = 1 / (1 + np.exp(-logits))
    expected = -np.where(holds, np.log(p), np.log(1 - p)).mean(1)
    for targets in (holds, holds.astype(np.float32), holds.astype(np.int64)):
        np.testing.assert_allclose(bce(torch.from_numpy(logits), torch.from_numpy(targets)).numpy(), expected, rtol=1e-9)


@given(batches())
def test_metrics_are_scikit_learns(batch: tuple[np.ndarray, np.ndarray]) -> None:
    logits, holds = batch
    outputs, targets = torch.from_numpy(logits), torch.from_numpy(holds.astype(np.float32))
    found = micro_f1(outputs, targets)
    if holds.any() or (logits > 0).any():
        assert found == pytest.approx(f1_score(holds, logits > 0, average="micro", zero_division=0))
    else:
        assert math.isnan(found)
    areas = [roc_auc_score(holds[:, k], logits[:, k]) for k in range(holds.shape[1]) if 0 < holds[:, k].sum() < len(holds)]
    mean = mean_auroc(outputs, targets)
    assert mean == pytest.approx(np.mean(areas)) if areas else math.isnan(mean)


def test_metrics_refuse_other_shapes() -> None:
    for metric in (micro_f1, mean_auroc):
        with pytest.raises(ConfigError, match="an output for each label"):
            metric(torch.zeros(4, 3), torch.zeros(4, 2))


# -- data --------------------------------------------------------------------------------------------


def test_several_columns_are_several_targets_wherever_they_are_read(folder: Path) -> None:
    section = Data.model_validate(data(folder))
    together = load_federation(section, 0)
    assert (together.train.y.dtype, together.target_shape, together.classes, together.columns) == (
        np.float32,
        (3,),
        None,
        ("u0", "u1", "u2"),
    )
    assert together.declared
    np.testing.assert_array_equal(together.train.y, together.train.x > 0)
    alone = load_client(section, 0, "silo1")
    np.testing.assert_array_equal(alone.train.y, together.client(1).train.y)


def test_parquet_tables_and_arrays_give_the_same(folder: Path) -> None:
    frame = pd.read_csv(folder / "silo0.csv")
    frame.to_parquet(folder / "one.parquet")
    np.savez(folder / "one.npz", x_train=frame.iloc[:, :3].to_numpy(np.float32), y_train=frame.iloc[:, 3:].to_numpy())
    one = {"partition": {"kind": "iid", "clients": 2}, "holdout": {"fraction": 0.2}}
    table = load_federation(Data.model_validate({"source": f"parquet:{folder / 'one.parquet'}", "label": ["y0", "y1", "y2"], **one}), 0)
    arrays = load_federation(Data.model_validate({"source": f"npz:{folder / 'one.npz'}", **one}), 0)
    np.testing.assert_array_equal(table.train.y, arrays.train.y)
    assert arrays.train.y.dtype == np.float32


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"label": ["y0"]}, "two or more columns"),
        ({"label": ["y0", "y0"]}, "each once"),
        ({"label": ["y0", "z"]}, "no column 'z'"),
        ({"classes": 2}, "data.classes: is for one label"),
        ({"regression": True}, "data.regression: is for one label"),
        ({"features": ["u0", "y1"]}, "'y1' is the label"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(folder: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_federation(Data.model_validate(data(folder, **more)), 0)


@pytest.mark.parametrize("partition", [{"kind": "dirichlet", "clients": 2, "alpha": 1.0}, {"kind": "shards", "clients": 2}])
def test_partitions_by_label_need_one(folder: Path, partition: dict[str, Any]) -> None:
    section = data(folder, source=f"csv:{folder / 'silo0.csv'}", partition=partition)
    with pytest.raises(DataError, match="each record has several targets"):
        load_federation(Data.model_validate(section | {"holdout": {"fraction": 0.0}}), 0)


def test_several_integers_are_numbers_unless_classes_are_declared() -> None:
    y = label_array([[0, 2], [1, 1]], "here")
    assert number_classes([y], "here").targets[0].dtype == np.float32
    classified = number_classes([y], "here", classes=3)
    assert (classified.targets[0].dtype, classified.targets[0].tolist(), classified.classes) == (np.int64, [[0, 2], [1, 1]], 3)
    with pytest.raises(DataError, match="found the label '2'"):
        number_classes([y], "here", classes=2)
    with pytest.raises(DataError, match="one label a record"):
        number_classes([y], "here", labels=["a", "b"])


# -- clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "privacy"),
    [
        ({"lr": 1.0, "batch_size": 8, "epochs": 20}, {}),
        (
            {"lr": 1.0, "sampling_rate": 0.5, "steps": 60, "expected_batch": 14},
            {
                "regime": "record",
                "noise_multiplier": 1.0,
                "delta": 1e-3,
                "ledger": "run",
                "insecure_seed": 0,
                "unprotected": ["evaluation"],
            },
        ),
    ],
    ids=["open", "record"],
)
def test_labels_are_learned_also_under_record_level_privacy(folder: Path, training: dict[str, Any], privacy: dict[str, Any]) -> None:
    config = build_config(
        {
            "name": "labels",
            "rounds": 1,
            "data": data(folder),
            "model": {"kind": "mlp", "hidden": []},
            "training": {**training, "loss": "bce"},
            "evaluation": {"federated": True, "metrics": ["micro_f1", "mean_auroc", "loss"]},
            "tracking": {"enabled": False},
        }
        | ({"privacy": privacy} if privacy else {})
    )
    prepared = prepare(config)
    assert prepared.model is not None
    assert prepared.model.facts.outputs == 3
    federation = load_federation(config.data, config.seed)
    host = ClientHost(
        make_terms(config, make_groups(config, federation.names)[0], prepared.plans[0], prepared.model.facts),
        Site(device="cpu"),
        federation,
    )
    host.ready()
    if privacy:
        assert 0.99 < host.preflight() <= 1 + 1e-5
    tasks = [ClientTask(k, name) for k, name in enumerate(federation.names)]
    reports = host.train(RoundTask(0, 1e4), prepared.model.weights.value, tasks)
    assert [report.status for report in reports] == ["done", "done"], reports
    weights = prepared.model.weights.value + host.collect(RoundTask(0, 1e4)).total.mean()
    rows = host.evaluate(weights, tasks)
    assert min(row.metrics["mean_auroc"] for row in rows) > 0.85
    assert min(row.metrics["micro_f1"] for row in rows) > 0.6
