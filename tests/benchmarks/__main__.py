"""Clients a second against a loop written by hand, in turn in the same run; prints and keeps ratios.

``python -m tests.benchmarks [--repeats 3]``. Work: softmax regression on 784 features, 3000 clients of 20
records, cohort 200, batch 10 (the W3 of simulator comparisons); synthetic records, which take the same
time as real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedray
from fedray.runfiles import RunFiles
from tests.benchmarks.plain_loop import rounds_per_second

CLIENTS, RECORDS, COHORT, BATCH, ROUNDS, SKIP = 3000, 20, 200, 10, 20, 3
RESULTS = Path(__file__).parent / "results"


def records() -> tuple[np.ndarray, np.ndarray]:
    """Synthetic records of MNIST's shape."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, CLIENTS * RECORDS)
    x = rng.random((len(y), 784), dtype=np.float32) + y[:, None].astype(np.float32) / 10
    return x, y


def with_fedray(actors: int) -> dict[str, Any]:
    """One run; seconds a round (median) and seconds from the call to the first finished round."""
    config = {
        "name": "bench",
        "rounds": ROUNDS,
        "data": {"source": "python:given:data", "partition": {"kind": "iid", "clients": CLIENTS}, "holdout": {"fraction": 0.0}},
        "model": {"kind": "softmax"},
        "clients": {"actors": actors},
        "cohort": {"kind": "fixed", "size": COHORT},
        "training": {"lr": 0.1, "batch_size": BATCH, "epochs": 1},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 0},
        "ray": {"address": "local", "cpus": actors},
    }
    first: list[float] = []
    began = time.perf_counter()

    def listen(kind: str, value: Any) -> None:
        if kind == "row" and not first:
            first.append(time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as folder:
        result = fedray.run(config, data=records, output=f"{folder}/run", callbacks=[listen])
        seconds = [r["metrics"]["time/round_s"] for r in RunFiles(result.output).rows()][SKIP:]
    return {"s_per_round": float(np.median(seconds)), "first_round_after_s": first[0]}


def main() -> None:
    """Run in turn, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    actors = os.cpu_count() or 1
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "fedray": []}
    for _ in range(repeats):
        x, y = records()
        runs["plain"].append({"s_per_round": float(np.median(rounds_per_second(x, y, CLIENTS, COHORT, ROUNDS, BATCH, 0.1)[SKIP:]))})
        runs["fedray"].append(with_fedray(actors))
    rate = {name: COHORT / float(np.median([r["s_per_round"] for r in found])) for name, found in runs.items()}
    figures = {
        "work": {"clients": CLIENTS, "records": RECORDS, "cohort": COHORT, "batch": BATCH, "model": "softmax 784x10"},
        "clients_per_second": rate,
        "ratio_to_plain_loop": rate["fedray"] / rate["plain"],
        "runs": runs,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"fedray": fedray.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rounds.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({k: figures[k] for k in ("clients_per_second", "ratio_to_plain_loop")}, indent=1))


if __name__ == "__main__":
    main()
