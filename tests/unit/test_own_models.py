"""The model of one client, from a run's directory, where clients have layers or a model of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from virtualray import drive

from fedray.configfile import build_config
from fedray.errors import FedrayError
from fedray.experiment.launch import Result
from fedray.planning.preparation import prepare
from fedray.runfiles import RunFiles
from fedray.storage import write_json

ALGORITHMS: dict[str, dict[str, Any]] = {
    "fedper": {"kind": "fedper", "personal": ["out"]},
    "fedrep": {"kind": "fedrep", "personal": ["out"], "head_trainings": 1},
    "ditto": {"kind": "ditto", "pull": 0.01},
    "pfedme": {"kind": "pfedme", "pull": 5.0, "inner_lr": 0.1, "inner_steps": 2},
}


def finished(folder: Path, algorithm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Result:
    config = build_config(
        {
            "name": "own",
            "rounds": 3,
            "data": {"source": "sklearn:digits", "partition": {"kind": "shards", "clients": 4}, "holdout": {"at": "clients"}},
            "model": {"kind": "mlp", "hidden": [8]},
            "cohort": {"kind": "fixed", "size": 2},
            "training": {"lr": 0.5, "batch_size": 16, "epochs": 5},
            "algorithm": algorithm,
            "evaluation": {"metrics": ["accuracy"], "federated": True},
            "tracking": {"enabled": False},
        }
    )
    drive(config, folder, lambda client: 1.0, 1, monkeypatch)
    prepared, files = prepare(config), RunFiles(folder)
    assert prepared.model is not None
    write_json(files.partition, {**prepared.partition, "model": prepared.model.document()})
    return Result("completed", {}, folder, config)


@pytest.mark.parametrize("kind", list(ALGORITHMS))
def test_each_client_that_took_part_has_a_model_of_its_own(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = finished(tmp_path, ALGORITHMS[kind], monkeypatch)
    federation = prepare(result.config).federation
    assert federation is not None
    models, untrained = {}, []
    for name in federation.names:
        try:
            models[name] = result.model(client=name)
        except FedrayError as error:
            assert f"client '{name}' never took part" in str(error)
            untrained.append(name)
    assert models and len(models) + len(untrained) == 4
    outputs = []
    for k, name in enumerate(federation.names):
        if name in models:
            own = federation.client(k).train
            with torch.no_grad():
                given = models[name](torch.from_numpy(own.x)).numpy()
            assert (given.argmax(1) == own.y).mean() > 0.5  # a client has two of ten classes
            outputs.append(models[name](torch.ones(1, 64)).detach().numpy())
    assert not any(np.array_equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])
    with pytest.raises(FedrayError, match="has no client 'client-9999' among its 4"):
        result.model(client="client-9999")


def test_algorithms_without_clients_models_say_so(tmp_path: Path) -> None:
    config = build_config(
        {
            "name": "x",
            "rounds": 1,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 2}},
            "model": {"kind": "softmax"},
            "training": {"batch_size": 8, "epochs": 1},
        }
    )
    with pytest.raises(FedrayError, match="the clients of 'fedavg' keep no model of their own"):
        Result("completed", {}, tmp_path, config).model(client="client-0000")
