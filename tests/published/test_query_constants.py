"""Normalisation by private answers on four hospitals' records (UCI Heart Disease), against exact means and deviations.

Features that are scaled by the answers of configs/heart-queries.yaml (epsilon 0.5 for all of them) train as well as with exact constants.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paths import ROOT

from fedray.configfile import resolve_config
from fedray.data.dataset import load_federation, transform_of
from fedray.data.records import Federation
from fedray.privacy.csprng import InsecureSeeded
from fedray.privacy.integersums import noised
from fedray.privacy.queryplan import plan_queries
from fedray.queries.asked import asked_of, bounds_of, facts_of, summed
from fedray.queries.statistic import GRID, NoisedSums
from fedray.queryconfig import load_query

SEEDS = 20


def answers(folder: Path, federation: Federation, seed: int | None) -> dict[str, Any]:
    """The answers of the shipped query, exact or with the noise of four hospitals."""
    config = load_query(ROOT / "configs" / "heart-queries.yaml", [f"data.source=csv:{folder}"])
    asked = asked_of(config)
    plan, facts, found = plan_queries(config, bounds_of(asked, 2)), facts_of(federation.client(0), ["no", "yes"]), dict[str, Any]()
    for one, limit in zip(asked, plan.sums, strict=True):
        sums = [summed(one, facts, federation.client(k).train, limit, None) for k in range(4)]
        if seed is not None:
            sums = [noised(total, limit.variance, InsecureSeeded(seed, 0, f"{one.name} {k}")) for k, total in enumerate(sums)]
        std = 0.0 if seed is None else math.sqrt(4 * limit.variance) / GRID
        found[one.name] = {
            "kind": one.kind,
            **one.statistic.answer(facts, NoisedSums(np.sum(sums, axis=0) / GRID, std, len(federation.train))),
        }
    told = {
        "query": "q",
        "run": "q-1",
        "private": seed is not None,
        "claim": "valid",
        "epsilon": 0.5,
        "delta": 3e-4,
        "ledger": "l",
        "source": "s",
    }
    return {**told, "normalize": "none", "columns": list(facts.columns), "answers": found}


def accuracy(folder: Path, query: Path) -> float:
    """Accuracy on the held-out records of logistic regression on records scaled by a query's answers, without privacy in training."""
    raw = load_query(ROOT / "configs" / "heart-queries.yaml", [f"data.source=csv:{folder}"]).data.model_dump(exclude_unset=True)
    raw["normalize"] = {"kind": "constants", "from": str(query)}
    data = resolve_config(
        {"name": "n", "rounds": 1, "data": raw, "model": {"kind": "logistic"}, "training": {"batch_size": 1, "epochs": 1}}
    ).data
    assert transform_of(data).in_torch is not None
    federation = load_federation(data, 0)
    x, y, test = torch.from_numpy(federation.train.x).double(), torch.from_numpy(federation.train.y).double(), federation.client_test
    assert test is not None
    w, b = torch.zeros(x.shape[1], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for _ in range(300):
        error = torch.sigmoid(x @ w + b) - y
        w, b = w - 0.1 * (x.T @ error) / len(y), b - 0.1 * error.mean()
    return float((((torch.from_numpy(test.x).double() @ w + b) > 0).numpy() == test.y).mean())


def test_private_constants_are_within_a_point_of_exact_ones(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "heart"
    federation = load_federation(load_query(ROOT / "configs" / "heart-queries.yaml", [f"data.source=csv:{folder}"]).data, 0)
    found = []
    for seed in (None, *range(SEEDS)):
        query = tmp_path / f"query-{seed}"
        query.mkdir()
        (query / "answers.json").write_text(json.dumps(answers(folder, federation, seed)))
        found.append(accuracy(folder, query))
    exact, private = found[0], np.array(found[1:])
    assert exact > 0.78
    assert abs(private.mean() - exact) < 0.01
    assert np.abs(private - exact).max() < 0.03
