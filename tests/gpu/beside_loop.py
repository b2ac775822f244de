"""The workloads of ``tests.benchmarks`` through fedray beside a loop written by hand, both on the device.

Each contender is a command of its own, watched from outside; a rate is the median over the rounds of a run, and a ratio is that of the
medians over the repeats, which are as many as the budget allows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.gpu.commands import ROOT
from tests.gpu.record import Figures, Record

SECTION = "beside a loop by hand"
#: Rounds that are timed, beside the first ones that are not; and seconds that a repeat of both contenders may take.
ROUNDS = {"W1": 10, "W2": 10, "W3": 30, "W4": 4}
TAKES = 75.0
#: Actors on the GPU, and repeats at the most.
ACTORS, REPEATS = 4, 3


def run(record: Record) -> None:
    """All checks of the section: every workload once, then again while the budget lasts. On the CPU the cheapest, for a few rounds."""
    works = list(ROUNDS) if record.on_gpu else ["W3"]
    runs: dict[str, list[Figures]] = {name: [] for name in works}
    for repeat in range(REPEATS if record.on_gpu else 1):
        for name in works:
            if repeat == 0 or record.left() > TAKES:
                record.check(SECTION, f"{name}, repeat {repeat + 1}", lambda name=name: again(name, record, runs[name]), takes=TAKES)  # type: ignore[misc]
    for name in works:
        if runs[name]:
            record.check(SECTION, name, lambda name=name: medians(runs[name]), takes=0.0)  # type: ignore[misc]
    for name in ROUNDS:
        if name not in works:
            record.check(SECTION, name, dict, gpu=True)


def again(name: str, record: Record, runs: list[Figures]) -> Figures:
    """One run of each contender: clients a second."""
    rounds = ROUNDS[name] if record.on_gpu else 2
    actors = ACTORS if record.on_gpu else 1
    share = [f"clients.resources.gpu={1 / actors}", "clients.resources.cpu=1", "ray.gpus=1"] if record.on_gpu else ["ray.gpus=0"]
    found = {
        "plain": rate(name, rounds, ["plain_loop", name, "--device", str(record.device)], record.left()),
        "fedray": rate(name, rounds, ["fedray_run", name, "--actors", str(actors), *share], record.left()),
    }
    figures: Figures = found | {"ratio": found["fedray"]["clients_per_second"] / found["plain"]["clients_per_second"], "actors": actors}
    runs.append(figures)
    return figures


def rate(name: str, rounds: int, command: Sequence[str], limit: float) -> dict[str, Any]:
    """What one command did."""
    from tests.benchmarks.watch import Watched
    from tests.benchmarks.work import SKIP, WORKS

    whole = [sys.executable, "-m", f"tests.benchmarks.{command[0]}", *command[1:], "--rounds", str(SKIP + rounds)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = Watched(whole, SKIP, SKIP + rounds, limit=max(30.0, limit), cwd=ROOT, environment={**os.environ, **environment}).result()
    return {"clients_per_second": WORKS[name].cohort / found["s_per_round"], "first_round_after_s": found["first_round_after_s"]}


def medians(runs: Sequence[Figures]) -> Figures:
    """Over the repeats."""
    rates = {who: float(np.median([run[who]["clients_per_second"] for run in runs])) for who in ("plain", "fedray")}
    return {"clients_per_second": rates, "ratio": rates["fedray"] / rates["plain"], "repeats": len(runs)}
