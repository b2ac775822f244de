"""What reaches the model in every regime, measured through the whole pipeline on Ray.

Clients send updates of zero, so the model moves by noise alone. Each test of a law fails by chance with a probability
below 1e-6 (two-sided Kolmogorov-Smirnov and chi-square quantiles at 5e-7 each).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

import fedray
from fedray.checkpoint import load_latest
from fedray.models.build import build_model
from fedray.parameters import Layout, get_vector
from fedray.runfiles import RunFiles

CHANCE = 5e-7
CLIENTS = 8


def run(output: Path, rounds: int, privacy: dict[str, Any], **sections: Any) -> npt.NDArray[np.float64]:
    """How far the model moved in all."""
    raw: dict[str, Any] = {
        "name": "noise",
        "rounds": rounds,
        "data": {"source": "python:stillparts:data", "clients": CLIENTS, "classes": 10, "holdout": {"fraction": 0.0}},
        "model": {"kind": "softmax"},
        "clients": {"actors": 1},
        "cohort": {"kind": "all"},
        "training": {"lr": 0.5, "batch_size": 10, "epochs": 1, "engine": "python:stillparts:still"},
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "privacy": {"delta": 1e-3, **privacy},
        "checkpoint": {"keep": rounds},
        "tracking": {"enabled": False},
    } | sections
    result = fedray.run(raw, output=str(output))
    assert result.status == "completed"
    checkpoint = load_latest(RunFiles(result.output).checkpoints)
    assert checkpoint is not None
    model = build_model(result.config.model, (100,), 10, result.config.seed)
    return (checkpoint.weights - get_vector(model, Layout.of(model))).astype(np.float64)


def check_normal(values: npt.NDArray[np.float64], std: float) -> None:
    """Standard deviation, shape, and no correlation between neighbours."""
    n = len(values)
    assert stats.kstest(values / std, "norm").pvalue > CHANCE
    low, high = stats.chi2.ppf([CHANCE / 2, 1 - CHANCE / 2], n)
    assert low < (values / std) @ (values / std) < high
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < stats.norm.isf(CHANCE / 2) / math.sqrt(n - 1)


@pytest.mark.usefixtures("cluster")
class TestNoiseThatReachesTheModel:
    def test_record_level(self, tmp_path: Path) -> None:
        training = {"lr": 0.5, "sampling_rate": 0.2, "steps": 3, "expected_batch": 6, "loss": "python:stillparts:no_loss"}
        moved = run(tmp_path / "r", 2, {"regime": "record", "noise_multiplier": 1.5, "clip": 0.7}, training=training)
        # 3 steps of std 1.5 x 0.7 / 6 x lr at each of 8 clients, averaged, twice
        check_normal(moved, 1.5 * 0.7 / 6 * 0.5 * math.sqrt(3 * 2 / CLIENTS))

    @pytest.mark.slow
    def test_client_level(self, tmp_path: Path) -> None:
        privacy = {"regime": "client", "noise_multiplier": 2.0, "clip": 0.3}
        # the denominator is the expected cohort, whatever the coins were
        poisson = run(tmp_path / "p", 3, privacy, cohort={"kind": "poisson", "fraction": 0.25})
        check_normal(poisson, 2.0 * 0.3 / 2 * math.sqrt(3))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("cohort", "divisor"), [({"kind": "all"}, CLIENTS), ({"kind": "fixed", "size": 4}, 4), ({"kind": "cyclic", "size": 2}, 2)]
    )
    def test_client_level_with_other_cohorts(self, cohort: dict[str, Any], divisor: int, tmp_path: Path) -> None:
        moved = run(tmp_path / "c", 2, {"regime": "client", "noise_multiplier": 2.0, "clip": 0.3}, cohort=cohort)
        check_normal(moved, 2.0 * 0.3 / divisor * math.sqrt(2))

    @pytest.mark.slow
    def test_an_empty_cohort_is_a_round_of_noise(self, tmp_path: Path) -> None:
        moved = run(
            tmp_path / "e",
            2,
            {"regime": "client", "noise_multiplier": 1.0, "clip": 1.0, "denominator": 2.0},
            cohort={"kind": "poisson", "fraction": 0.0001},
        )
        check_normal(moved, 1.0 / 2 * math.sqrt(2))

    @pytest.mark.slow
    def test_adaptive_clip_splits_the_noise(self, tmp_path: Path) -> None:
        privacy = {"regime": "client", "noise_multiplier": 1.0, "clip": 0.5, "adaptive_clip": {"bit_noise": 0.6, "rate": 1e-9}}
        moved = run(tmp_path / "c", 2, privacy)
        z = (1.0**-2 - (2 * 0.6) ** -2) ** -0.5
        check_normal(moved, z * 0.5 / CLIENTS * math.sqrt(2))

    @pytest.mark.slow
    def test_tree_aggregation(self, tmp_path: Path) -> None:
        privacy = {"regime": "client", "mechanism": {"kind": "tree"}, "noise_multiplier": 1.0, "clip": 1.0}
        moved = run(tmp_path / "t", 5, privacy, cohort={"kind": "cyclic", "size": 1})
        check_normal(moved, math.sqrt(2))  # 5 = 101b: the prefix is two nodes; the denominator is 1

    @pytest.mark.slow
    def test_banded_factorization(self, tmp_path: Path) -> None:
        privacy = {"regime": "client", "mechanism": {"kind": "banded", "band": 2}, "noise_multiplier": 1.0, "clip": 1.0}
        moved = run(tmp_path / "b", 4, privacy, cohort={"kind": "cyclic", "size": 4})
        c = np.eye(4) + 0.5 * np.eye(4, k=-1)
        c /= np.linalg.norm(c, axis=0).max()
        check_normal(moved, float(np.linalg.norm(np.linalg.inv(c).sum(axis=0))) / 4)

    @pytest.mark.slow
    def test_local_gaussian(self, tmp_path: Path) -> None:
        moved = run(tmp_path / "l", 2, {"regime": "local", "noise_multiplier": 3.0, "clip": 0.5})
        check_normal(moved, 3.0 * 0.5 * math.sqrt(2 / CLIENTS))

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["ddg", "skellam"])
    def test_distributed_noise_has_its_discrete_law(self, kind: str, tmp_path: Path) -> None:
        mechanism = {"kind": kind, "scale": 4.0, "bits": 16}
        privacy = {"regime": "distributed", "mechanism": mechanism, "noise_multiplier": 1.5, "clip": 0.5}
        moved = run(tmp_path / kind, 1, privacy, cohort={"kind": "all", "min_clients": 4}) * CLIENTS * 4.0
        steps = np.rint(moved).astype(int)
        assert np.abs(moved - steps).max() < 1e-3  # on the grid
        sigma = 1.5 * 0.5 * 4.0 / math.sqrt(4)  # of each of the clients, four of whom must be enough
        reach = np.arange(-60, 61)
        if kind == "ddg":
            law = np.exp(-(reach**2) / (2 * sigma**2))
        else:
            law = stats.skellam.pmf(reach, sigma**2 / 2, sigma**2 / 2)
        total = np.array([1.0])
        for _ in range(CLIENTS):
            total = np.convolve(total, law / law.sum())
        where = np.arange(len(total)) - len(total) // 2
        cells = np.clip(where, -10, 10)
        expected = np.array([total[cells == c].sum() for c in range(-10, 11)]) * len(steps)
        counts = np.array([(np.clip(steps, -10, 10) == c).sum() for c in range(-10, 11)])
        assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > CHANCE

    @pytest.mark.slow
    def test_joint_use_has_both_noises(self, tmp_path: Path) -> None:
        training = {"lr": 0.5, "sampling_rate": 0.2, "steps": 3, "expected_batch": 6, "loss": "python:stillparts:no_loss"}
        joint = {"noise_multiplier": 1.0, "clip": 1e3, "delta": 1e-3}
        privacy = {"regime": ["record", "client"], "noise_multiplier": 1.5, "clip": 0.7, "joint": joint, "denominator": 1000.0}
        moved = run(tmp_path / "j", 1, privacy, training=training)
        local = 1.5 * 0.7 / 6 * 0.5 * math.sqrt(3 * CLIENTS) / 1000
        check_normal(moved, math.hypot(local, 1e3 / 1000))
        summary = json.loads(RunFiles(tmp_path / "j").summary.read_text())
        assert summary["privacy"]["unit"] == "record"
        assert summary["privacy"]["joint"]["unit"] == "client"
