"""Runs of fedray in processes of their own, which end in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.gpu.record import Missed

ROOT = Path(__file__).resolve().parents[2]


def run_fedray(config: dict[str, Any], folder: Path, limit: float, **environment: str) -> dict[str, Any]:
    """Run a config in ``folder``; its summary.

    Raises:
        Missed: it failed, or took longer than ``limit`` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, output = folder / "config.json", folder / "run"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "fedray", "run", str(path), "--output", str(output)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=surroundings, start_new_session=True)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        if code != 0:
            ended = f"took more than {limit:.0f} s" if code is None else f"ended with {code}"
            raise Missed(f"the run {ended}", {"log": log.read()[-2000:]})
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary
