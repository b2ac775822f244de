"""A run of fedray that is measured from outside: ``python -m tests.benchmarks.fedray_run W1 --rounds 13 [key.path=value ...]``.

Writes a line after each round, as the plain loop does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import fedray
from fedray.configfile import load_config
from tests.benchmarks.work import ROOT, WORKS, config


def main() -> None:
    """Train, with a line after each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=list(WORKS))
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--actors", type=int, default=os.cpu_count() or 1)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # actors import the work, too

    def listen(kind: str, value: Any) -> None:
        if kind == "row":
            print("ROUND", value["time"], flush=True)  # rows may arrive several at once

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config(arguments.work, arguments.actors, arguments.rounds)))
        result = fedray.run(load_config(path, arguments.overrides), output=f"{folder}/run", callbacks=[listen])
        performance = result.summary["performance"]
        print("SUMMARY", performance["seconds_per_round"], flush=True)


if __name__ == "__main__":
    main()
