"""What fedray itself costs: clients that return at once, and how runs scale to more actors than there are cores; prints and keeps the figures.

``python -m tests.benchmarks.overhead [empty] [scaling] [memory] [--repeats 3]``

- ``empty``: 1000 of 10,000 clients a round, whose local work is nothing, with a model of 1 MB: clients a second, and the driver's own
  time a round on a processor.
- ``scaling``: W1 on one actor and on as many as there are cores; then clients that sleep, on one and two actors, from which a round's time is
  modelled as ``fixed + each * clients / actors``, and on sixteen, which the model must foretell.
- ``memory``: 64 clients a round that return at once, on four actors, with weights of 100 MB: the peak of all processes together, less that of the
  same run with a model of 31 kB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fedray
from fedray.runfiles import RunFiles
from tests.benchmarks.__main__ import CORES, RESULTS, machine
from tests.benchmarks.watch import Peak
from tests.benchmarks.work import HOLLOW, ROOT, SKIP, SLEEP, WORKS, config

MANY = 16
#: Actors that hold the large model.
HOLDERS = 4


def run(name: str, actors: int, rounds: int, **sections: Any) -> tuple[float, dict[str, Any]]:
    """Median seconds of a round, without the first ones, and the profile."""
    with tempfile.TemporaryDirectory() as folder:
        result = fedray.run(config(name, actors, rounds, **sections), output=f"{folder}/run", profile=True)
        rows = RunFiles(Path(folder) / "run").rows()[SKIP:]
        return float(np.median([row["metrics"]["time/round_s"] for row in rows])), result.summary["profile"]


def empty(repeats: int) -> dict[str, Any]:
    """Rate, and the driver's milliseconds a round."""
    runs = []
    for _ in range(repeats):
        seconds, profile = run("empty", CORES, 25)
        runs.append(
            {"clients_per_second": HOLLOW["empty"].cohort / seconds, "driver_ms": 1e3 * profile["cpu"]["driver"], "profile": profile}
        )
        print(f"empty: {runs[-1]['clients_per_second']:.0f} clients/s, driver {runs[-1]['driver_ms']:.1f} ms a round", flush=True)
    return {key: float(np.median([r[key] for r in runs])) for key in ("clients_per_second", "driver_ms")} | {"runs": runs}


def scaling(repeats: int) -> dict[str, Any]:
    """Round times by actors, the model, and how far it is off."""
    table: dict[str, dict[int, float]] = {"W1": {}, "sleep": {}}
    for actors in sorted({1, CORES}):
        table["W1"][actors] = float(np.median([run("W1", actors, SKIP + 4)[0] for _ in range(repeats)]))
        print(f"W1 on {actors} actors: {WORKS['W1'].cohort / table['W1'][actors]:.1f} clients/s", flush=True)
    for actors in (1, 2, MANY):
        rounds = SKIP + 2 * (1 if actors < MANY else 5)
        table["sleep"][actors] = float(np.median([run("sleep", actors, rounds)[0] for _ in range(repeats)]))
        print(f"sleep on {actors} actors: {table['sleep'][actors]:.3f} s a round", flush=True)
    one, two, many = (table["sleep"][n] for n in (1, 2, MANY))
    sleepers = HOLLOW["sleep"].cohort
    each, fixed = 2 * (one - two) / sleepers, 2 * two - one
    found = {
        "seconds_a_round": table,
        "W1_efficiency": table["W1"][1] / table["W1"][CORES] / CORES,
        "model": {"fixed_s": fixed, "each_s": each},
        "predicted_s": fixed + each * sleepers / MANY,
        "measured_s": many,
        "efficiency": sleepers * SLEEP / MANY / many,
    }
    print(json.dumps(found, indent=1), flush=True)
    return found


def memory(repeats: int) -> dict[str, Any]:
    """Peaks in MiB, and what the weights added, in models."""
    code = "import sys; from tests.benchmarks.overhead import *; print(peak(sys.argv[1]))"
    found: dict[str, float] = {}
    for name in ("light", "heavy"):
        peaks = [
            subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True, cwd=ROOT) for _ in range(repeats)
        ]
        found[name] = float(np.median([float(done.stdout.split()[-1]) for done in peaks]))
        print(f"{name}: {found[name]:.0f} MiB at the peak", flush=True)
    added = (found["heavy"] - found["light"]) * 2**20
    print(f"the weights added {added / 1e6:.0f} MB: {added / 1e8:.1f} models", flush=True)
    return {"peak_mib": found, "models": added / 1e8, "actors": HOLDERS}


def peak(name: str) -> float:
    """MiB of this process and all that it starts, at the most, in a run of some rounds."""
    watched = Peak(os.getpid(), every=0.3)
    rounds = SKIP + 2 if name == "heavy" else 300  # until all actors are up and have trained
    run(name, HOLDERS, rounds, ray={"cpus": HOLDERS})
    return watched.mib


PARTS = {"empty": empty, "scaling": scaling, "memory": memory}


def main() -> None:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=list(PARTS), default=[])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # actors import the work, too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    path = RESULTS / "overhead.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in arguments.parts or PARTS:
        kept[part] = PARTS[part](arguments.repeats) | machine()
        path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
