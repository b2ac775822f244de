"""Rotated MNIST, by Ghosh, Chung, Yin, Ramchandran 2020, An Efficient Framework for Clustered Federated Learning: each client sees
its images turned by 0, 90, 180 or 270 degrees.

Here 40 clients with 200 training images each, 8 rounds of two epochs; the paper has 1,200 such clients, and trains longer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import keep_table
from rehearsed import Rehearsed, config_of
from sklearn.metrics import adjusted_rand_score

from fedray.data.records import Federation, Records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS, TRAIN, TEST, ROTATIONS, ROUNDS, SEEDS = 40, 200, 50, 4, 8, 3
#: ``flhc`` is given twice as many models as there are rotations, and finds out how many it needs.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "fedavg": {"kind": "fedavg"},
    "ifca": {"kind": "ifca", "clusters": ROTATIONS},
    "flhc": {"kind": "flhc", "clients": CLIENTS, "clusters": 2 * ROTATIONS, "after": 2, "distance": 0.7},
}
#: The paper's, of 1,200 clients with 200 images each; its one model is averaged gradient by gradient.
REPORTED = {"fedavg": 0.8973, "ifca": 0.9525}


def rotated(folder: Path, seed: int) -> tuple[Federation, list[int]]:
    """A part of MNIST, dealt at random to clients that see it turned; and how often each turns it by 90 degrees."""
    with np.load(folder / "mnist.npz") as file:
        images, labels = file["x_train"], file["y_train"]
    draws, each = np.random.default_rng(seed), TRAIN + TEST
    rows, turns = draws.permutation(len(images))[: CLIENTS * each], draws.permutation(np.arange(CLIENTS) % ROTATIONS).tolist()
    x, y = images[rows].reshape(CLIENTS, each, 28, 28), labels[rows].astype(np.int64).reshape(CLIENTS, each)
    x = np.stack([np.rot90(mine, k, axes=(1, 2)) for mine, k in zip(x, turns, strict=True)])
    x = (x / 255).astype(np.float32).reshape(CLIENTS, each, 784)
    train, test = (Records(x[:, part].reshape(-1, 784), y[:, part].ravel()) for part in (slice(TRAIN), slice(TRAIN, None)))
    steps = np.arange(CLIENTS + 1, dtype=np.int64)
    names = [f"client-{k:02d}" for k in range(CLIENTS)]
    return Federation(names, train, steps * TRAIN, None, test, steps * TEST, 10), turns


@pytest.fixture(scope="module")
def found(real_data: Path) -> dict[str, list[tuple[float, float, int]]]:
    """Of each algorithm and seed the mean accuracy at the clients, the adjusted Rand index of the clusters, and how many there are."""
    found: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in ALGORITHMS}
    for seed in range(SEEDS):
        federation, turns = rotated(real_data, seed)
        for kind, algorithm in ALGORITHMS.items():
            training = {"lr": 0.1, "batch_size": 20, "epochs": 2}
            model, evaluation = {"kind": "mlp", "hidden": [100]}, {"federated": True}
            run = Rehearsed(config_of(algorithm, seed=seed, training=training, model=model, evaluation=evaluation), federation)
            for _ in range(ROUNDS):
                run.train([range(CLIENTS)])
            told = run.at_clients()
            clusters = [0 if one.cluster is None else one.cluster for one in told]
            accuracy = float(np.mean([one.metrics["accuracy"] for one in told]))
            found[kind].append((accuracy, float(adjusted_rand_score(turns, clusters)), len(set(clusters))))
    cells = {
        f"{kind}, seed {seed}": {"accuracy": round(accuracy, 4), "adjusted_rand": round(rand, 4), "clusters": clusters}
        for kind, each in found.items()
        for seed, (accuracy, rand, clusters) in enumerate(each)
    }
    keep_table("rotated-mnist", cells, source=" ".join((__doc__ or "").split()), reported=REPORTED)
    return found


@pytest.mark.parametrize("kind", ["ifca", "flhc"])
def test_the_clusters_are_the_rotations(kind: str, found: dict[str, list[tuple[float, float, int]]]) -> None:
    assert all(rand > 0.95 and clusters == ROTATIONS for _, rand, clusters in found[kind])


@pytest.mark.parametrize("kind", ["ifca", "flhc"])
def test_a_model_for_each_cluster_beats_one_for_all(kind: str, found: dict[str, list[tuple[float, float, int]]]) -> None:
    gained = [mine - one for (mine, _, _), (one, _, _) in zip(found[kind], found["fedavg"], strict=True)]
    assert min(gained) > 0.15, gained
