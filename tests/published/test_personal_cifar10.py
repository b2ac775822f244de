"""Personal models on CIFAR-10 with two classes a client, measured on the clients' own test records, beside one model that is fine-tuned there.

Figures are means over the clients after 20 rounds, and of the worst client; the last five rounds' mean is compared. Kept in
``curves/personal-cifar10.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import cell, keep_table
from published import curve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(10_800)]

LAST = 5
ARMS: dict[str, dict[str, Any]] = {
    "fedavg": {"evaluation__fine_tune__epochs": 1},
    "fedper": {"algorithm__kind": "fedper", "algorithm__personal": ["fc3"]},
    "fedrep": {"algorithm__kind": "fedrep", "algorithm__personal": ["fc3"], "algorithm__head_trainings": 3},
    "ditto": {"algorithm__kind": "ditto", "algorithm__pull": 1.0},
    "perfedavg": {"algorithm__kind": "perfedavg", "algorithm__alpha": 0.02},
    "pfedme": {"algorithm__kind": "pfedme"},
}


def test_personal_layers_beat_one_model_at_the_clients(real_data: Path) -> None:
    reached: dict[str, float] = {}
    cells = {}
    for arm, sections in ARMS.items():
        found = cell("personal-cifar10", arm, f"parquet:{real_data / 'cifar10-train.parquet'}", metric="fairness/accuracy_mean", **sections)
        figures = {"": "fairness", " fine-tuned": "fine_tuned"} if arm == "fedavg" else {"": "fairness"}
        for suffix, model in figures.items():
            mean, worst = (curve(found.result, f"{model}/accuracy_{what}") for what in ("mean", "worst"))
            reached[arm + suffix] = float(np.mean(mean[-LAST:]))
            cells[arm + suffix] = {"accuracy": reached[arm + suffix], "worst": float(np.mean(worst[-LAST:])), "mean_by_round": mean}
    keep_table("personal-cifar10", cells, source=__doc__)
    assert max(reached["fedper"], reached["fedrep"]) >= reached["fedavg"] + 0.15, reached
