"""What only a GPU can show, as one script: ``python -m tests.gpu [--budget 480] [--out FILE] [--only SECTION ...]``.

- ``engines``: each engine on the GPU against the CPU, within bounds that follow from float32's rounding, and again on the GPU;
- ``memory``: of an actor over rounds; physical batches that are halved where memory does not suffice;
- ``actors``: several actors on one GPU by fractions, beside one actor; memory given back after a run;
- ``loops``: clients a second of the workloads W1 to W4 beside a loop written by hand on the same GPU.

What the budget does not allow is not run, and said so. On a GPU the results are kept in ``tests/gpu/results/``, in a file with the device's
name. Without a GPU the script runs to its end on the CPU, keeps nothing unless ``--out`` says where, and says what it did not check. The exit
code is 1 where a check failed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch

from tests.gpu import against_cpu, beside_loop, one_actor, shared
from tests.gpu.record import Record, device_name

SECTIONS = {"engines": against_cpu.run, "memory": one_actor.run, "actors": shared.run, "loops": beside_loop.run}
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str]) -> int:
    """Check, print and keep; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all checks")
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that the CPU's sums have one order
    record = Record(torch.device("cuda:0" if torch.cuda.is_available() else "cpu"), options.budget)
    path = options.out or (RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device_name(record.device).lower())}.json" if record.on_gpu else None)
    for name in options.only:
        SECTIONS[name](record)
        if path is not None:  # after each section, so that a run that is cut short leaves what it has
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record.document(), indent=1) + "\n")
    print(record.said())
    if path is not None:
        print(f"The results are in {path}.")
    return int(record.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
