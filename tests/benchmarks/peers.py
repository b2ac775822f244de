"""Other systems on the same work, in turn with fedray in the same run; prints ratios and keeps all records.

``python -m tests.benchmarks.peers W1 W3 --peers DIR --python PYTHON [--repeats 2] [--with bf16:training.precision=bf16_convolutions]``. DIR holds ``run_plain.py``, ``run_pfl.py`` and
``run_flower.py``, each of which does a workload by its name and prints ``RESULT {json}`` with ``clients_per_s``; PYTHON is the interpreter of
an environment with those systems. What cannot be run is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.__main__ import RESULTS, contend, machine
from tests.benchmarks.watch import Peak
from tests.benchmarks.work import SKIP, WORKS

#: Contender to its arguments for the interpreter.
PEERS = {
    "plain": ["run_plain.py", "{work}", "--threads", "1"],
    "pfl-research": ["run_pfl.py", "{work}", "--threads", "1"],
    "pfl-research x2": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "run_pfl.py", "{work}", "--threads", "1"],
    "flower": ["run_flower.py", "{work}"],
}
#: What a peer has no counterpart of.
LACKING = {("pfl-research", "W4"), ("pfl-research x2", "W4")}


def run_peer(python: str, folder: Path, name: str, work: str, limit: float) -> dict[str, Any]:
    """One run of a peer; its own record.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    rounds = ["--rounds", str(SKIP + WORKS[work].rounds)]
    command = [python, *(part.format(work=work) for part in PEERS[name]), *rounds]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    peak = Peak(process.pid)
    try:
        told, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {limit:g} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    lines = [line.removeprefix("RESULT ") for line in told.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        raise RuntimeError(told.strip().splitlines()[-1] if told.strip() else f"exit code {process.returncode}")
    return {**json.loads(lines[-1]), "peak_pss_mib": peak.mib}


def main() -> None:
    """Run in turn, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="+", choices=list(WORKS))
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--with", dest="variants", action="append", default=[], metavar="NAME:OVERRIDES")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one run")
    arguments = parser.parse_args()
    path = RESULTS / "peers.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for work in arguments.works:
        mine = {"fedray": list[str]()} | {f"fedray {name}": given.split(",") for name, given in map(_named, arguments.variants)}
        theirs = [name for name in PEERS if (name, work) not in LACKING]
        rates: dict[str, list[float]] = {name: [] for name in [*mine, *theirs]}
        peaks: dict[str, list[float]] = {name: [] for name in rates}
        runs: list[dict[str, Any]] = []
        for _ in range(arguments.repeats):
            for name in rates:
                try:
                    if name in mine:
                        found = contend(work, name, mine[name])
                        rate = found["clients_per_second"]
                    else:
                        found = run_peer(arguments.python, arguments.peers, name, work, arguments.limit)
                        rate = found["clients_per_s"]
                except RuntimeError as error:
                    print(f"{work} {name}: left out ({error})", flush=True)
                    continue
                rates[name].append(rate)
                peaks[name].append(found["peak_pss_mib"])
                runs.append({"contender": name, **found})
                print(f"{work} {name}: {rate:.1f} clients/s, {found['peak_pss_mib']:.0f} MiB", flush=True)
        medians = {name: float(np.median(values)) for name, values in rates.items() if values}
        ratios = {f"{me} / {name}": medians[me] / medians[name] for me in mine if me in medians for name in theirs if name in medians}
        memory = {name: float(np.median(values)) for name, values in peaks.items() if values}
        kept[work] = {"clients_per_second": medians, "ratios": ratios, "peak_pss_mib": memory, "runs": runs, **machine()}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(json.dumps({work: ratios}, indent=1), flush=True)


def _named(variant: str) -> tuple[str, str]:
    name, _, given = variant.partition(":")
    return name, given


if __name__ == "__main__":
    main()
