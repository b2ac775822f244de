"""Newton's method over the four hospitals of FLamby's Fed-Heart-Disease.

Protocol: FLamby's features and split (Ogier du Terrail et al. 2022; scikit-learn's train_test_split of each centre's 740 complete records,
34 % test, seed 43, stratified where both labels occur more than twice), z-scores from each centre's training part, weights that begin at
zero, four steps with the identity added to the summed Hessian. Published by NVFlare's example of federated logistic regression with
second-order Newton-Raphson: accuracy 0.75, 0.7528, 0.75, 0.6 and precision 0.7115, 0.6122, 1, 0.9048.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flamby import CENTRES, SPLIT, pooled, write_split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from rehearsed import Rehearsed

import fedray
from fedray.config import Config
from fedray.configfile import load_config
from fedray.data.dataset import load_federation
from fedray.data.records import Federation, Records, offsets_of
from fedray.parameters import fingerprint, set_vector
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import find_loss

PUBLISHED = {"accuracy": (0.75, 0.7528, 0.75, 0.6), "precision": (0.7115, 0.6122, 1.0, 0.9048)}


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete records of each centre, with a column that says which are its test set."""
    return write_split(real_data, tmp_path_factory.mktemp("heart"))


def config_for(folder: Path) -> Config:
    return load_config(ROOT / "configs" / "heart-newton.yaml", [f"data.source=csv:{folder}", *SPLIT])


def trained(config: Config, federation: Federation, split: list[list[int]]) -> Rehearsed:
    run = Rehearsed(config, federation)
    for _ in range(config.rounds):
        run.train(split)
    return run


def test_accuracy_and_precision_of_the_four_centres(folder: Path) -> None:
    config = config_for(folder)
    federation = load_federation(config.data, config.seed)
    assert tuple(federation.names) == CENTRES and federation.sizes.tolist() == [199, 172, 30, 85]
    run = trained(config, federation, [[0, 1], [2, 3]])
    set_vector(run.model, run.layout, run.globals)
    for k in range(4):
        test = federation.client(k).test
        assert test is not None and len(test) == (104, 89, 16, 45)[k]
        metrics, loss = find_metrics(PUBLISHED), find_loss("binary_cross_entropy")
        found = evaluate(run.model, torch.from_numpy(test.x), torch.from_numpy(test.y), metrics, loss)
        assert {name: round(value, 4) for name, value in found.items()} == {name: values[k] for name, values in PUBLISHED.items()}
    assert trained(config, pooled(federation), [[0]]).globals.tobytes() == run.globals.tobytes()


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), clients=st.integers(2, 9))
def test_any_split_of_the_records_gives_the_same_bytes(folder: Path, seed: int, clients: int) -> None:
    config, draws = config_for(folder), np.random.default_rng(seed)
    whole = pooled(load_federation(config.data, config.seed))
    order, n = draws.permutation(len(whole.train)), len(whole.train)
    bounds = [0, *sorted(draws.choice(np.arange(1, n), clients - 1, replace=False)), n]
    train = Records(whole.train.x[order], whole.train.y[order])
    dealt = Federation([f"c{k}" for k in range(clients)], train, offsets_of(np.diff(bounds)), None, None, None, whole.classes)
    cut = int(draws.integers(0, clients + 1))
    split = [list(range(cut)), list(range(cut, clients))]
    assert trained(config, dealt, split).globals.tobytes() == trained(config, whole, [[0]]).globals.tobytes()


@pytest.mark.slow
def test_hospitals_that_read_their_own_files_give_the_model_of_all_records(folder: Path, tmp_path: Path) -> None:
    config = config_for(folder)
    overrides = [f"data.source=csv:{folder}", *SPLIT, "ray.address=local", "tracking.enabled=false"]
    result = fedray.run(ROOT / "configs" / "heart-newton.yaml", overrides=overrides, output=str(tmp_path / "run"))
    alone = trained(config, pooled(load_federation(config.data, config.seed)), [[0]])
    assert result.summary["model_sha256"] == fingerprint(alone.globals)
    assert round(result.summary["final"]["fairness/accuracy_mean"], 4) == 0.7132
