"""The driver with a million clients: its memory round by round, and what a round's draws and books cost; prints and keeps the figures.

``python -m tests.benchmarks.population [--clients N] [--rounds R]``. Real runs on a local Ray: a million hosted clients of two
records each, a thousand of them asked a round. Once without privacy, once with whole clients protected by secret Poisson cohorts, once
with a book in which each client's records are charged.

This module is imported in the driver actor too, as the run's server optimiser, and times the driver's own methods there: each row of
metrics.jsonl says how long sampling and bookkeeping took, and how much memory the process had to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

import fedray
from fedray.algorithms.server import ServerSGD
from fedray.rounds.books import Books
from fedray.rounds.dispatch import Dispatch
from fedray.rounds.drawing import CohortDraw
from fedray.rounds.record import Record
from fedray.runfiles import RunFiles

CLIENTS, COHORT, RECORDS, FEATURES, ROUNDS, WARM_UP = 1_000_000, 1000, 2, 8, 30, 5
ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"

#: The driver's methods that are sampling and bookkeeping: all that a round does but train, sum, step and evaluate.
STEPS = {
    "draw": (CohortDraw, "draw"),
    "receipts": (Dispatch, "check_receipts"),
    "row": (Record, "round_done"),
    "write": (Record, "_write"),
    "save": (Record, "save"),
}
REGIMES: dict[str, dict[str, Any]] = {
    "none": {"cohort": {"kind": "fixed", "size": COHORT}},
    "client": {
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "cohort": {"kind": "poisson"},
        "privacy": {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-7, "clip": 1.0, "budget": 100.0},
    },
    "record": {
        "cohort": {"kind": "poisson"},
        "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 0.05, "clip": 1.0, "budget": 1000.0},
        "training": {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 1, "steps": 1},
    },
}

_spent: Counter[str] = Counter()


def population(clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Two small records for each client."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, clients * RECORDS)
    return rng.standard_normal((len(y), FEATURES), dtype=np.float32) + y[:, None].astype(np.float32) / 4, y


def server() -> ServerSGD:
    """As built in. Naming it as the run's server optimiser brings this module, and its stopwatches, into the driver actor."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        _instrument()
    return ServerSGD()


def _timed(function: Callable[..., Any], step: str) -> Callable[..., Any]:
    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        began, worked = time.perf_counter(), time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            _spent[step] += time.perf_counter() - began
            _spent["processor"] += time.thread_time() - worked

    return run


def _told(row: Callable[..., Any]) -> Callable[..., Any]:
    """The row of a round with what was measured since the last one."""
    timed = _timed(row, "row")

    @wraps(row)
    def run(*arguments: Any) -> Any:
        made = timed(*arguments)
        made["metrics"] |= {f"measured/{step}_ms": _spent[step] * 1e3 for step in (*STEPS, "authorize", "commit", "processor")}
        made["metrics"]["measured/driver_uss"] = float(psutil.Process().memory_full_info().uss)
        _spent.clear()
        return made

    return run


@cache
def _instrument() -> None:
    for step, (owner, name) in STEPS.items():
        function = getattr(owner, name)
        setattr(owner, name, _told(function) if step == "row" else _timed(function, step))
    for name in ("authorize", "commit"):
        setattr(Books, name, _timed(getattr(Books, name), name))


@contextmanager
def watched(title: str) -> Iterator[list[int]]:
    """Memory that the process with this Ray title has to itself, bytes, looked at twice a second; from its start to its end."""
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        found: psutil.Process | None = None
        while not done.wait(0.5):
            try:
                if found is None:
                    found = next((p for p in psutil.Process().children(recursive=True) if title in " ".join(p.cmdline())), None)
                if found is not None:
                    seen.append(int(found.memory_full_info().uss))
            except psutil.Error:
                found = None

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def measure(regime: str, clients: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One run; medians over the rounds after the warm-up, in milliseconds and bytes."""
    config: dict[str, Any] = {
        "name": regime,
        "rounds": rounds,
        "data": {
            "source": "python:tests.benchmarks.population:population",
            "classes": 4,
            "clients": clients,
            "partition": {"kind": "iid", "clients": clients, "records_per_client": RECORDS},
            "holdout": {"fraction": 0.0},
        },
        "model": {"kind": "softmax"},
        "server": {"kind": "python:tests.benchmarks.population:server"},
        "clients": {"actors": 2},
        "training": {"lr": 0.1, "batch_size": 2, "epochs": 1},
        "evaluation": {"every": 0, "metrics": ["loss"]},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 1},
        **REGIMES[regime],
    }
    if config["cohort"]["kind"] == "poisson":
        config["cohort"] = {"kind": "poisson", "fraction": COHORT / clients}
    began = time.perf_counter()
    started: list[float] = []

    def listen(kind: str, value: Any) -> None:
        if kind == "started":
            started.append(time.perf_counter() - began)

    with watched("ray::Experiment") as all_along:
        result = fedray.run(config, output=str(folder / regime), callbacks=[listen])
    rows = [r["metrics"] for r in RunFiles(result.output).rows()]
    measured = {k.removeprefix("measured/") for k in rows[-1] if k.startswith("measured/")} - {"driver_uss", "processor_ms"}
    later = rows[WARM_UP:]
    together = [sum(r[f"measured/{step}"] for step in measured) for r in later]
    memory = [int(r["measured/driver_uss"]) for r in rows]
    return {
        "bookkeeping_ms": statistics.median(together),
        "bookkeeping_most_ms": max(together),
        "bookkeeping_processor_ms": statistics.median(r["measured/processor_ms"] for r in later),
        "steps_ms": {step: statistics.median(r[f"measured/{step}"] for r in later) for step in sorted(measured)},
        "driver_uss": {
            "first": memory[0],
            "after_warm_up": memory[WARM_UP - 1],
            "last": memory[-1],
            "most": max(memory),
            "most_from_start_to_end": max(all_along),
            "mib_by_round": [round(m / 2**20) for m in memory],
        },
        "growth_after_warm_up": statistics.median(memory[-5:]) - statistics.median(memory[WARM_UP : WARM_UP + 5]),
        # Rows do not say it where it would tell of secret cohorts.
        "round_s": statistics.median(r["time/round_s"] for r in later)
        if "time/round_s" in later[0]
        else result.summary["performance"]["seconds_per_round"],
        "started_after_s": started[0],
        "rounds": len(rows),
        "status": result.status,
    }


def main() -> None:
    """Measure each regime, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--regimes", nargs="*", default=list(REGIMES))
    given = parser.parse_args()
    figures: dict[str, Any] = {"clients": given.clients, "cohort": COHORT, "rounds": given.rounds}
    for regime in given.regimes:
        figures[regime] = found = in_ray(regime, given.clients, given.rounds)
        print(
            f"{regime:7} bookkeeping {found['bookkeeping_ms']:.1f} ms a round ({found['bookkeeping_processor_ms']:.1f} of the processor), driver "
            f"{found['driver_uss']['last'] / 2**20:.0f} MiB of its own, {found['growth_after_warm_up'] / 2**20:+.0f} MiB since the warm-up, up after {found['started_after_s']:.0f} s"
        )
    figures["machine"] = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "population.json").write_text(json.dumps(figures, indent=1) + "\n")


def in_ray(regime: str, clients: int, rounds: int) -> dict[str, Any]:
    """:func:`measure` on a local Ray whose workers find this module."""
    environment = {"PYTHONPATH": str(ROOT)}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=600 * 2**20,
        runtime_env={"env_vars": environment},
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            return measure(regime, clients, rounds, Path(folder))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
