"""Cohorts and batches have the promised rates, counted by the parts themselves while a run is on Ray.

Each test fails by chance with a probability below 1e-6.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import fedray

CHANCE = 5e-7
CLIENTS, RECORDS = 8, 30


def config(**sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "rates",
        "data": {"source": "python:stillparts:data", "clients": CLIENTS, "records": RECORDS, "classes": 10, "holdout": {"fraction": 0.0}},
        "model": {"kind": "softmax"},
        "clients": {"actors": 1},
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "tracking": {"enabled": False},
    }
    return base | sections


@pytest.mark.usefixtures("cluster")
class TestRates:
    @pytest.mark.slow
    def test_poisson_cohorts(self, tmp_path: Path) -> None:
        log, rounds, q = tmp_path / "turns", 60, 0.3
        result = fedray.run(
            config(
                rounds=rounds,
                cohort={"kind": "poisson", "fraction": q, "min_clients": 0},
                model={"kind": "python:stillparts:counting", "log": str(log)},
                training={"lr": 0.1, "batch_size": RECORDS, "steps": 1},
                privacy={"regime": "client", "noise_multiplier": 1.0, "delta": 1e-3},
                checkpoint={"every": 0},
            ),
            output=str(tmp_path / "run"),
        )
        assert result.status == "completed"
        turns = np.bincount([int(line) for line in log.read_text().split()], minlength=CLIENTS)
        # each client's turns are Binomial(rounds, q), independent of the others'
        pulls = (turns - rounds * q) / np.sqrt(rounds * q * (1 - q))
        assert stats.chi2.sf(float(pulls @ pulls), CLIENTS) > CHANCE
        assert stats.binomtest(int(turns.sum()), rounds * CLIENTS, q).pvalue > CHANCE
        rows = [json.loads(line)["metrics"] for line in (result.output / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == rounds
        assert not any(key.startswith("round/clients") for row in rows for key in row)  # who and how many is not released

    @pytest.mark.slow
    def test_poisson_batches(self, tmp_path: Path) -> None:
        log, q, steps, rounds = tmp_path / "batches", 0.1, 20, 3
        fedray.run(
            config(
                rounds=rounds,
                model={"kind": "python:stillparts:watching", "log": str(log)},
                training={"lr": 0.1, "sampling_rate": q, "steps": steps, "expected_batch": 3, "engine": "hooks", "physical_batch": 64},
                privacy={"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3},
            ),
            output=str(tmp_path / "run"),
        )
        sizes = [int(line) for line in log.read_text().split()]
        all_steps = CLIENTS * steps * rounds
        counts = np.bincount(sizes, minlength=RECORDS + 1)
        counts[0] = all_steps - len(sizes)  # an empty batch is a step of noise that no record is part of
        law = stats.binom.pmf(np.arange(RECORDS + 1), RECORDS, q) * all_steps
        cells = np.minimum(np.arange(RECORDS + 1), 7)
        observed, expected = (np.bincount(cells, weights=w) for w in (counts, law))
        assert counts[0] > 0
        assert stats.chisquare(observed, expected).pvalue > CHANCE
