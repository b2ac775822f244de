"""The claim that federated training needs a learning rate ten times smaller than central training, on MNIST with Dirichlet(0.5) clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attacked import mnist, of_parts
from cells import keep_table
from rehearsed import Rehearsed, config_of

from fedray.data.partition import dirichlet
from fedray.data.records import Federation, Records

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CLIENTS, RECORDS, ROUNDS, SEEDS, GOAL = 10, 5000, 20, 2, 0.9
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
#: Passes over a client's records in a round; in central training a round is a pass over all.
WAYS = {"central": 1, "federated, 1 epoch": 1, "federated, 5 epochs": 5}


def dealt(train: Records, way: str, seed: int) -> Federation:
    if way == "central":
        return of_parts(train, [np.arange(len(train.y))])
    return of_parts(train, dirichlet(train.y, None, np.random.default_rng(seed), clients=CLIENTS, alpha=0.5, min_records=20))


def test_learning_rates_beside_those_of_central_training(real_data: Path) -> None:
    train, test = mnist(real_data)
    train, best = Records(train.x[:RECORDS], train.y[:RECORDS]), dict[str, float]()
    for way, epochs in WAYS.items():
        last = {}
        for lr in RATES:
            curves = []
            for seed in range(SEEDS):
                training = {"lr": lr, "batch_size": 32, "epochs": epochs}
                config = config_of({"kind": "fedavg"}, model={"kind": "mlp", "hidden": [32]}, rounds=ROUNDS, seed=seed, training=training)
                federation, accuracies = dealt(train, way, seed), list[float]()
                run = Rehearsed(config, federation)
                for _ in range(ROUNDS):
                    run.train([range(len(federation.names))])
                    accuracies.append(round(run.accuracy(test), 4))
                curves.append(accuracies)
            mean = np.mean(curves, axis=0)
            rounds = np.flatnonzero(mean >= GOAL)
            last[lr] = float(mean[-1])
            cell = {"last": round(last[lr], 4), "rounds_to_0.9": int(rounds[0]) + 1 if len(rounds) else None, "accuracies": curves}
            keep_table("learning-rates", {f"{way}, lr {lr:g}": cell}, source=__doc__)
        best[way] = max(last, key=last.__getitem__)
    assert best["federated, 1 epoch"] >= best["central"]
    assert best["federated, 5 epochs"] > best["central"] / 10
