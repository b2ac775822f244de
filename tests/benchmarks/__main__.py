"""Clients a second of fedray and of loops written by hand, in turn in the same run; prints ratios and keeps all records.

``python -m tests.benchmarks [W1 W2 ...] [--repeats 3] [--with NAME:OVERRIDE,OVERRIDE ...]``. Each contender is a command of its own,
watched from outside:

- ``plain``: the loop of one process on one thread, the floor that a user would write;
- ``plain x2``: two such loops side by side (one a core), whose rates add up;
- ``fedray``: one actor a core;
- ``--with bf16:training.precision=bf16_convolutions`` adds a run of fedray with overrides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedray
from tests.benchmarks.watch import Watched
from tests.benchmarks.work import ROOT, SKIP, WORKS, real

RESULTS = Path(__file__).parent / "results"
CORES = os.cpu_count() or 1


def contend(name: str, contender: str, overrides: list[str]) -> dict[str, Any]:
    """One contender's run."""
    rounds = SKIP + WORKS[name].rounds
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    load = os.getloadavg()[0]
    if contender.startswith("plain"):
        copies = CORES if contender.endswith("x2") else 1
        command = [sys.executable, "-m", "tests.benchmarks.plain_loop", name, "--rounds", str(rounds)]
    else:
        copies = 1
        command = [sys.executable, "-m", "tests.benchmarks.fedray_run", name, "--rounds", str(rounds), *overrides]
    started = [Watched(command, SKIP, rounds, cwd=ROOT, environment=environment) for _ in range(copies)]
    found = [one.result() for one in started]
    return {
        "clients_per_second": sum(WORKS[name].cohort / f["s_per_round"] for f in found),
        "cpu_s_per_client": float(np.mean([f["cpu_s_per_round"] for f in found])) / WORKS[name].cohort,
        "first_round_after_s": max(f["first_round_after_s"] for f in found),
        "peak_pss_mib": sum(f["peak_pss_mib"] for f in found),
        "load_before": load,
        "seconds": [f["seconds"] for f in found],
    }


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the repeats, and ratios of fedray's rates to the others'."""
    figures = ("clients_per_second", "cpu_s_per_client", "first_round_after_s", "peak_pss_mib")
    medians = {name: {f: float(np.median([run[f] for run in found])) for f in figures} for name, found in runs.items()}
    rates = {name: m["clients_per_second"] for name, m in medians.items()}
    ratios = {
        f"{mine} / {other}": rates[mine] / rates[other]
        for mine in rates
        if not mine.startswith("plain")
        for other in rates
        if other.startswith("plain")
    }
    return {"medians": medians, "ratios": ratios}


def main() -> None:
    """Run in turn, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; default all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--with", dest="variants", action="append", default=[], metavar="NAME:OVERRIDES")
    arguments = parser.parse_args()
    contenders: dict[str, list[str]] = {"plain": [], "plain x2": [], "fedray": []}
    for variant in arguments.variants:
        label, _, overrides = variant.partition(":")
        contenders[f"fedray {label}"] = overrides.split(",")
    path = RESULTS / "rounds.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept = {name: kept[name] for name in WORKS if name in kept}
    for name in arguments.works or list(WORKS):
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
        for _ in range(arguments.repeats):
            for contender, overrides in contenders.items():
                runs[contender].append(contend(name, contender, overrides))
                last = runs[contender][-1]
                print(f"{name} {contender}: {last['clients_per_second']:.1f} clients/s, {last['peak_pss_mib']:.0f} MiB", flush=True)
        kept[name] = {
            **summarize(runs),
            "real_records": real(name),
            "runs": runs,
            **machine(),
        }
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(json.dumps({name: summarize(runs)}, indent=1), flush=True)


def machine() -> dict[str, Any]:
    """Where and with what."""
    versions = {"fedray": fedray.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"machine": {"cores": CORES, "processor": _processor()}, "versions": versions}


def _processor() -> str:
    if sys.platform == "linux":
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
