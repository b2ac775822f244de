"""The claim that staged unfreezing is three times faster, on MNIST: from scratch, and from a model that was trained on other digits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked import mnist, of_parts
from cells import keep_table
from rehearsed import Rehearsed, config_of
from safetensors.torch import save_file

from fedray.choices import ModelChoice
from fedray.config import Training
from fedray.data.partition import dirichlet
from fedray.data.records import Records
from fedray.models.build import build_model
from fedray.training.engine import LocalJob
from fedray.training.losses import find_loss
from fedray.training.plain import plain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CLIENTS, RECORDS, ROUNDS, SEEDS, GOAL = 10, 3000, 10, 2, 0.9
STAGES = [{"round": 1, "layers": ["fc3"]}, {"round": 3, "layers": ["fc1", "fc2"]}, {"round": 5, "layers": ["conv1", "conv2"]}]
WAYS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "all layers, cosine": {"schedule": {"kind": "cosine"}},
    "staged": {"unfreeze": STAGES},
    "staged, cosine": {"unfreeze": STAGES, "schedule": {"kind": "cosine"}},
}


def pretrained(train: Records, folder: Path) -> str:
    """LeNet after three epochs on the digits 0 to 4."""
    model, few = build_model(ModelChoice(kind="lenet"), train.x.shape[1:], 10, 7), train.y < 5
    training = Training(lr=0.05, momentum=0.9, batch_size=32, epochs=3)
    x, y = torch.from_numpy(train.x[few]), torch.from_numpy(train.y[few])
    plain(model, x, y, LocalJob(training, 0.05, find_loss("cross_entropy"), np.random.default_rng(0)))
    save_file(model.state_dict(), folder / "first.safetensors")
    return str(folder / "first.safetensors")


def reached(accuracies: list[float], seconds: list[float]) -> dict[str, float | None]:
    """The first round with the goal's accuracy, and the processor's seconds until then; None where it is never reached."""
    first = next((n for n, accuracy in enumerate(accuracies) if accuracy >= GOAL), None)
    found = (None, None) if first is None else (first + 1, round(sum(seconds[: first + 1]), 2))
    return {"rounds": found[0], "seconds": found[1], "last": accuracies[-1]}


@pytest.mark.parametrize("start", ["scratch", "pretrained"])
def test_staged_unfreezing_beside_training_all_layers(start: str, real_data: Path, tmp_path: Path) -> None:
    train, test = mnist(real_data)
    weights = {"weights": pretrained(train, tmp_path)} if start == "pretrained" else {}
    first = dict[str, float]()
    for name, way in WAYS.items():
        found = []
        for seed in range(SEEDS):
            others = np.flatnonzero(train.y >= 5)[:RECORDS]
            some = Records(train.x[others], train.y[others])
            parts = dirichlet(some.y, None, np.random.default_rng(seed), clients=CLIENTS, alpha=0.5, min_records=20)
            training = {"lr": 0.1, "batch_size": 16, "epochs": 1, **way}
            config = config_of({"kind": "fedavg"}, model={"kind": "lenet", **weights}, rounds=ROUNDS, seed=seed, training=training)
            run, accuracies, seconds = Rehearsed(config, of_parts(some, parts)), list[float](), list[float]()
            judged = Records(test.x[test.y >= 5], test.y[test.y >= 5])
            run.host(0)
            for _ in range(ROUNDS):
                began = time.process_time()
                run.train([range(CLIENTS)])
                seconds.append(time.process_time() - began)
                accuracies.append(round(run.accuracy(judged), 4))
            found.append({**reached(accuracies, seconds), "accuracies": accuracies, "seconds_a_round": [round(s, 3) for s in seconds]})
        first[name] = float(np.mean([f["rounds"] or np.inf for f in found]))
        keep_table("unfreezing", {f"{start}, {name}": {"seeds": found}}, source=__doc__)
    for suffix in ("", ", cosine"):  # not faster at all, and so not three times; all of it is in ``curves/unfreezing.json``
        assert first[f"staged{suffix}"] >= first[f"all layers{suffix}"]
    assert first["staged"] < ROUNDS or start == "scratch"
