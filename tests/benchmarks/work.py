"""The work that is measured: the workloads of simulator comparisons (W1 to W4), their records and models.

Real records where ``FEDRAY_DATA`` (or ``../shared/data`` beside the repository) has them, else random ones of the same shape, which
take the same time.
"""

from __future__ import annotations

import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # and not before it is needed: a command that trains imports torch while Ray starts
    from torch import Tensor, nn

    from fedray.training.engine import LocalJob, LocalResult

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Work:
    """One workload: ``clients`` with ``records`` each, of which ``cohort`` train a round for one pass.

    Attributes:
        dataset: mnist, cifar10, or none: a number a record.
        model: a built-in, or a function of this module.
        batch: records of a step; expected, under DP-SGD.
        noise: noise multiplier of record-level DP-SGD, None without privacy.
        rounds: that are timed, beside :data:`SKIP`.
        engine: of the local training; a function of this module is named by ``python:``.
    """

    dataset: str
    model: str
    clients: int
    records: int
    cohort: int
    batch: int
    lr: float
    noise: float | None = None
    clip: float = 1.0
    rounds: int = 10
    engine: str = "auto"


WORKS = {
    "W1": Work("mnist", "fedavg_cnn", 1000, 60, 50, 10, 0.1),
    "W2": Work("cifar10", "simple_cnn", 1000, 50, 50, 10, 0.1),
    "W3": Work("mnist", "softmax", 3000, 20, 200, 10, 0.1, rounds=200),
    "W4": Work("mnist", "opacus_cnn", 20, 3000, 10, 250, 0.25, noise=1.1, rounds=4),
}
#: Work of which only fedray's own part costs anything.
HOLLOW = {
    "empty": Work("none", "megabyte", 10_000, 1, 1000, 1, 0.1, engine="python:tests.benchmarks.work:nothing"),
    "heavy": Work("none", "hundred_megabytes", 1000, 1, 64, 1, 0.1, engine="python:tests.benchmarks.work:nothing"),
    "light": Work("none", "softmax", 1000, 1, 64, 1, 0.1, engine="python:tests.benchmarks.work:nothing"),
    "sleep": Work("none", "softmax", 1000, 1, 320, 1, 0.1, engine="python:tests.benchmarks.work:sleeping"),
}
#: Seconds that a sleeping client takes.
SLEEP = 0.05
#: Rounds at the start that do not count.
SKIP = 3


def records(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records [clients * records, channels, height, width] float32, normalised, and labels int64; each client's are neighbours."""
    work = (WORKS | HOLLOW)[name]
    if work.dataset == "none":
        return np.ones((work.clients * work.records, 1), dtype=np.float32), np.arange(work.clients * work.records) % 2
    x, y = _mnist() if work.dataset == "mnist" else _cifar10()
    drawn = np.random.default_rng(0).permutation(len(x))[: work.clients * work.records]
    return np.ascontiguousarray(x[drawn]), y[drawn]


def real(name: str) -> bool:
    """Whether the records are real ones."""
    return (DATA / {"mnist": "mnist.npz", "cifar10": "cifar10-train.parquet"}[WORKS[name].dataset]).exists()


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    if not (DATA / "mnist.npz").exists():
        return _random(60_000, (1, 28, 28))
    with np.load(DATA / "mnist.npz") as file:
        x, y = file["x_train"], file["y_train"]
    return ((x[:, None].astype(np.float32) / np.float32(255)) - np.float32(0.1307)) / np.float32(0.3081), y.astype(np.int64)


def _cifar10() -> tuple[np.ndarray, np.ndarray]:
    if not (DATA / "cifar10-train.parquet").exists():
        return _random(50_000, (3, 32, 32))
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(DATA / "cifar10-train.parquet")
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["img"].to_pylist()]
    x = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]))
    return (x - mean) / std, np.asarray(table["label"], dtype=np.int64)


def _random(count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, *shape), dtype=np.float32), rng.integers(0, 10, count)


def source(name: str) -> tuple[np.ndarray, np.ndarray]:
    """For configs: ``python:tests.benchmarks.work:source``."""
    return records(name)


def simple_cnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two 3x3 convolutions and 128 units with dropout: the CIFAR-10 network of pfl-research's benchmarks."""
    from torch import nn

    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, outputs),
    )


def megabyte(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """250,000 weights."""
    from torch import nn

    del input_shape
    return nn.Sequential(nn.Linear(1, 125_000 // outputs), nn.Linear(125_000 // outputs, outputs, bias=False))


def hundred_megabytes(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """25 million weights."""
    from torch import nn

    return nn.Sequential(nn.Linear(1, 5000), nn.Linear(5000, 4996), nn.Linear(4996, outputs))


def nothing(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """An engine that does no work."""
    from fedray.training.engine import LocalResult  # here, so that the hand-written loop imports no fedray

    del model, y, job
    return LocalResult(0, len(x), None)


def sleeping(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """An engine that sleeps."""
    time.sleep(SLEEP)
    return nothing(model, x, y, job)


def config(name: str, actors: int, rounds: int, **sections: Any) -> dict[str, Any]:
    """The run's config."""
    work = (WORKS | HOLLOW)[name]
    training: dict[str, Any] = {"lr": work.lr, "batch_size": work.batch, "epochs": 1, "engine": work.engine}
    privacy: dict[str, Any] = {"regime": "none"}
    if work.noise is not None:
        rate = work.batch / work.records
        training |= {"batch_size": None, "epochs": None}
        training |= {"sampling_rate": rate, "steps": round(1 / rate), "expected_batch": float(work.batch)}
        privacy = {"regime": "record", "noise_multiplier": work.noise, "clip": work.clip, "delta": 1e-5}
    kind = f"python:tests.benchmarks.work:{work.model}" if work.model in ("simple_cnn", "megabyte", "hundred_megabytes") else work.model
    base: dict[str, Any] = {
        "name": f"bench-{name.lower()}",
        "rounds": rounds,
        "data": {
            "source": "python:tests.benchmarks.work:source",
            "name": name,
            "classes": 2 if work.dataset == "none" else 10,
            "partition": {"kind": "iid", "clients": work.clients},
            "holdout": {"fraction": 0.0},
        },
        "model": {"kind": kind},
        "clients": {"actors": actors},
        "cohort": {"kind": "fixed", "size": work.cohort},
        "training": training,
        "privacy": privacy,
        "evaluation": {"every": 0},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 0},
        "ray": {"address": "local", "cpus": actors},
    }
    for key, value in sections.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return base
