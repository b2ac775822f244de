"""Boosted trees on Wisconsin Diagnostic Breast Cancer and on the four hospitals of UCI Heart Disease, beside XGBoost on all records pooled.

Breast cancer is that of configs/breast-cancer-trees.yaml; of heart disease each hospital holds out a third of its records, and features are
neither scaled nor otherwise changed. XGBoost grows as many trees of the same depth, with its ``hist`` method and otherwise its defaults.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from rehearsed import Rehearsed

import fedray
from fedray.config import Config
from fedray.configfile import load_config
from fedray.data.dataset import load_federation
from fedray.data.records import Federation, Records, offsets_of
from fedray.parameters import fingerprint, set_vector

SEEDS = range(5)
HEART = ["data.normalize={kind: none}", "model={kind: trees, trees: 20, depth: 3}", "rounds=65"]


def config_for(data: str, folder: Path, *overrides: str) -> Config:
    if data == "breast_cancer":
        return load_config(ROOT / "configs" / "breast-cancer-trees.yaml", list(overrides))
    heart = [f"data.source=csv:{folder / 'heart'}", *HEART, "algorithm={kind: histogram_trees}"]
    return load_config(ROOT / "configs" / "heart-newton.yaml", [*heart, *overrides])


def pooled(federation: Federation) -> Federation:
    """One client with all training records."""
    return Federation(["all"], federation.train, offsets_of([len(federation.train)]), None, None, None, federation.classes)


def held_out(federation: Federation) -> Records:
    """The held-out records, wherever they are."""
    found = federation.client_test if federation.test is None else federation.test
    assert found is not None
    return found


def trained(config: Config, federation: Federation, split: list[list[int]]) -> Rehearsed:
    run = Rehearsed(config, federation)
    for _ in range(config.rounds):
        run.train(split)
    return run


def accuracy(run: Rehearsed, test: Records) -> float:
    set_vector(run.model, run.layout, run.globals[: run.layout.size])
    with torch.no_grad():
        logits = run.model(torch.from_numpy(test.x)).numpy()[:, 0]
    return float(((logits > 0) == test.y).mean())


def xgboosts(config: Config, federation: Federation) -> float:
    """The accuracy of XGBoost on all training records."""
    xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed")
    train, test = federation.train, held_out(federation)
    size = {"n_estimators": config.model.arguments["trees"], "max_depth": config.model.arguments["depth"]}
    made = xgboost.XGBClassifier(**size, learning_rate=0.3, tree_method="hist", n_jobs=1).fit(train.x, train.y)
    return float((made.predict(test.x) == test.y).mean())


@pytest.mark.parametrize("data", ["breast_cancer", "heart"])
def test_trees_of_a_federation_are_those_of_all_records_in_one_place(data: str, real_data: Path) -> None:
    config = config_for(data, real_data, "model.trees=1", "rounds=8")
    federation = load_federation(config.data, config.seed)
    apart = trained(config, federation, [[0, 1], [2, 3]])
    assert trained(config, pooled(federation), [[0]]).globals.tobytes() == apart.globals.tobytes()
    assert accuracy(apart, held_out(federation)) > {"breast_cancer": 0.85, "heart": 0.65}[data]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["breast_cancer", "heart"])
def test_they_are_as_accurate_as_xgboosts_of_all_records(data: str, real_data: Path) -> None:
    found = []
    for seed in SEEDS:
        config = config_for(data, real_data, f"seed={seed}")
        federation = load_federation(config.data, config.seed)
        run = trained(config, federation, [[0, 1], [2, 3]])
        if seed == 0:
            assert trained(config, pooled(federation), [[0]]).globals.tobytes() == run.globals.tobytes()
        found.append((accuracy(run, held_out(federation)), xgboosts(config, federation)))
    ours, theirs = np.mean(found, 0)
    print(data, found, ours, theirs)
    assert ours >= theirs - 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("data", "rounds", "depth"), [("breast_cancer", 20, 3), ("heart", 50, 1)])
def test_bagging_is_within_two_points_of_xgboosts_of_all_records(data: str, rounds: int, depth: int, real_data: Path) -> None:
    pytest.importorskip("xgboost", reason="xgboost is not installed")
    bagging = "algorithm={kind: bagged_trees}", f"rounds={rounds}", f"model={{kind: trees, trees: {4 * rounds}, depth: {depth}}}"
    found = []
    for seed in SEEDS:
        config = config_for(data, real_data, f"seed={seed}", *bagging)
        federation = load_federation(config.data, config.seed)
        run = trained(config, federation, [[0, 1], [2, 3]])
        found.append((accuracy(run, held_out(federation)), xgboosts(config_for(data, real_data), federation)))
    ours, theirs = np.mean(found, 0)
    print(data, found, ours, theirs)
    assert ours >= theirs - 0.02


@pytest.mark.slow
def test_a_run_of_silos_has_the_model_of_all_records(tmp_path: Path) -> None:
    overrides = ["ray.address=local", "tracking.enabled=false"]
    result = fedray.run(ROOT / "configs" / "breast-cancer-trees.yaml", overrides=overrides, output=str(tmp_path / "run"))
    config = load_config(ROOT / "configs" / "breast-cancer-trees.yaml")
    federation = load_federation(config.data, config.seed)
    alone = trained(config, pooled(federation), [[0]])
    assert result.summary["model_sha256"] == fingerprint(alone.globals[: alone.layout.size])
    assert result.summary["final"]["eval/accuracy"] == pytest.approx(accuracy(alone, held_out(federation)))
