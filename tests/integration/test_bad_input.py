"""Bad input: one sentence, the right exit code, and nothing started where it can be known before."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedray.cli import cli

BASE = """
name: bad
seed: 1
rounds: 2
data: {source: "sklearn:digits", partition: {kind: iid, clients: 4}}
model: {kind: softmax}
training: {lr: 0.5, batch_size: 32, epochs: 1}
tracking: {enabled: false}
ray: {address: local, cpus: 2}
"""
DP = [
    "privacy={regime: record, noise_multiplier: 1.0, delta: 1e-5}",
    "training={lr: 1.0, sampling_rate: 0.2, expected_batch: 40, steps: 2}",
]

BATCHNORM = """
from torch import nn
def batchnorm(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, outputs))
def wrong_outputs(input_shape, outputs):
    return nn.Linear(64, 7)
def not_a_model(input_shape, outputs):
    return 3
def nan_data():
    import numpy as np
    x = np.ones((40, 64), dtype=np.float32); x[3, 5] = np.nan
    return x, np.arange(40) % 2
def unequal():
    import numpy as np
    return np.ones((40, 3), dtype=np.float32), np.arange(39) % 2
def empty_client():
    import numpy as np
    return {"a": (np.ones((4, 3), dtype=np.float32), np.arange(4) % 2), "b": (np.ones((0, 3), dtype=np.float32), np.zeros(0, dtype=np.int64))}
"""

CASES: dict[str, tuple[list[str], str, int]] = {
    "unknown key": (["rouns=3"], "rouns: unknown key. Did you mean 'rounds'?", 2),
    "wrong type": (["rounds=many"], "rounds: input should be a valid integer", 2),
    "negative clip": (["privacy.clip=-1.0"], "privacy.clip: input should be greater than 0", 2),
    "missing file": (["data.source=npz:nowhere.npz"], "nowhere.npz", 2),
    "unknown data set": (["data.source=sklearn:digts"], "digits", 2),
    "label column that is not there": (["data={source: 'csv:table.csv', label: outcome}"], "outcome", 2),
    "NaN features": (["data.source=python:badparts:nan_data"], "NaN", 2),
    "features and labels of different length": (["data.source=python:badparts:unequal"], "39", 2),
    "an empty client": (["data={source: 'python:badparts:empty_client', holdout: {fraction: 0.0}}"], "b", 2),
    "more clients than records": (["data.partition.clients=5000"], "5000", 2),
    "model whose output does not fit": (["model.kind=python:badparts:wrong_outputs"], "7", 2),
    "model that is none": (["model.kind=python:badparts:not_a_model"], "int", 2),
    "module that is not there": (["model.kind=python:nowhere:f"], "cannot import 'nowhere'", 2),
    "unknown model": (["model.kind=sofmax"], "Did you mean 'softmax'?", 2),
    "unknown model argument": (["model.hiden=3"], "model.hiden: unknown argument", 2),
    "BatchNorm under DP": ([*DP, "model.kind=python:badparts:batchnorm"], "privacy.incompatible.record.batchnorm", 2),
    "shuffled batches under DP": (DP[:1], "privacy.incompatible.record.shuffled_batches", 2),
    "delta too large": ([*DP, "privacy.delta=0.01"], "privacy.delta.too_large", 2),
    "DP without delta": ([*DP, "privacy.delta=null"], "privacy.delta", 2),
    "federated evaluation under DP": (
        [*DP, "evaluation.federated=true", "data.holdout.at=clients"],
        "privacy.incompatible.record.federated_evaluation",
        2,
    ),
    "dedicated clients whose ledger ends with the run": (
        [*DP, "clients.placement=dedicated"],
        "privacy.incompatible.dedicated.ledger_run",
        2,
    ),
    "statistics of private data under DP": (
        [*DP, "data.normalize.kind=standardize_client", "data.holdout.at=clients"],
        "privacy.incompatible.record.private_statistics",
        2,
    ),
    "privacy settings without a regime": (["privacy.target_epsilon=3.0"], "privacy.regime is none", 2),
    "unreachable Ray": (["ray.address=127.0.0.1:1"], "nothing answers at 127.0.0.1:1", 2),
    "no Ray address at all": (["ray.address=over-there"], "should be auto, local, or HOST:PORT", 2),
    "unwritable output": (["--output", "/proc/fedray"], "cannot be written", 2),
    "output that is a file": (["--output", "c.yaml"], "is a file", 2),
    "cohort larger than the population": (["cohort={kind: fixed, size: 9}"], "cohort.size", 2),
    "metric that is not known": (["evaluation.metrics=[acuracy]"], "accuracy", 2),
    "federated evaluation with nothing to evaluate": (["evaluation.federated=true"], "evaluation.federated", 2),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "c.yaml").write_text(BASE)
    (tmp_path / "badparts.py").write_text(BATCHNORM)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n3,4\n")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_exit_code(case: str, folder: Path) -> None:
    arguments, expected, code = CASES[case]
    before = {p.name for p in folder.iterdir()}
    result = CliRunner().invoke(cli, ["run", "c.yaml", *arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    text = result.stderr.strip()
    assert expected in text
    assert text.startswith("fedray: ")
    assert "Traceback" not in result.output
    assert len(text.splitlines()) == 1
    assert {p.name for p in folder.iterdir()} - before <= {"__pycache__", "runs"}
    assert not list(folder.glob("runs/*/metrics.jsonl"))


DURING: dict[str, tuple[list[str], str, int]] = {
    "no room for the clients": (["clients.placement=dedicated"], "actors ask for 4 CPU, but the cluster has 2 free", 2),
    "unreachable tracking server": (["tracking={uri: 'http://127.0.0.1:9', enabled: true, open_timeout: 1}"], "tracking.uri", 2),
    "training diverges": (["training.lr=1e12", "cohort={kind: all}"], "That was round 2 in a row", 1),
}


SLOW = {"unreachable tracking server", "training diverges"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in DURING])
def test_errors_that_need_a_cluster(case: str, folder: Path) -> None:
    arguments, expected, code = DURING[case]
    result = CliRunner().invoke(cli, ["run", "c.yaml", *arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    assert expected in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("cluster")
def test_the_wrong_silo_is_named_before_training_and_leaves_no_run_in_mlflow(folder: Path) -> None:
    silos = folder / "silos"
    silos.mkdir()
    (silos / "a.csv").write_text("x,y\n1,0\n2,1\n3,0\n4,1\n5,1\n6,0\n7,0\n8,1\n")
    (silos / "b.csv").write_text("x,y\n1,0\noops,1\n3,0\n4,1\n")
    arguments = [
        f"data={{source: 'csv:{silos}', label: y, classes: 2, holdout: {{fraction: 0.0}}}}",
        "clients={placement: dedicated, resources: {cpu: 0.5}}",
        "tracking.enabled=true",
    ]
    result = CliRunner().invoke(cli, ["run", "c.yaml", *arguments])
    assert result.exit_code == 2, result.output + str(result.exception)
    assert "b.csv" in result.stderr
    assert "x" in result.stderr
    assert not np.any([p.name == "metrics.jsonl" for p in folder.rglob("*")])
    assert not list(folder.rglob("tracking.json"))
    store = folder / "runs" / "mlflow.db"
    if store.exists():  # it is reached while the silos read their records
        with closing(sqlite3.connect(store)) as opened:
            assert opened.execute("select count(*) from runs").fetchone() == (0,)
