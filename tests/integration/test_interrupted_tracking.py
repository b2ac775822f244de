"""A run that is interrupted, at its start or at once, is not left running in MLflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from processes import wait_until

from fedray.tracking.journal import State
from fedray.tracking.mlflow_store import load_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

CONFIG = {
    "name": "slow",
    "rounds": 1000,
    "data": {"source": "python:slowparts:data", "holdout": {"fraction": 0.25}},
    "model": {"kind": "python:slowparts:model", "slow": 0},
    "clients": {"actors": 1},
    "cohort": {"kind": "all"},
    "training": {"lr": 0.1, "batch_size": 5, "epochs": 20},
}


@pytest.mark.parametrize(("times", "begun"), [(1, False), (2, True)], ids=["once-while-it-starts", "twice-in-a-round"])
def test_ctrl_c_leaves_no_run_running(times: int, begun: bool, tmp_path: Path) -> None:
    """Whether it comes once, which ends the run in order, or twice, which ends the driver with the local Ray."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG | {"ray": {"address": "local", "cpus": 1}}))
    output, store = tmp_path / "out", f"sqlite:///{tmp_path}/mlflow.db"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, Path(__file__).parent))), "MLFLOW_TRACKING_URI": store}
    line = [sys.executable, "-m", "fedray", "run", "c.yaml", "--output", str(output)]
    log = tmp_path / "log"
    with log.open("wb") as said:
        command = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=said, stderr=said)

    def there() -> bool:
        assert command.poll() is None, log.read_text()
        state = State.load(output) if output.is_dir() else None
        return state is not None and bool(state.run_id) and (not begun or ("actors" in log.read_text() and "round" in log.read_text()))

    try:
        wait_until(there, "the MLflow run is made", 200)
        for number in range(times):
            if number:
                wait_until(lambda: "stopping" in log.read_text(), "the first Ctrl-C is heard", 100)
            command.send_signal(signal.SIGINT)
        assert command.wait(150) != 0, log.read_text()
    finally:
        command.kill()
        command.wait()
    state = State.load(output)
    assert state is not None
    assert load_mlflow().MlflowClient(store).get_run(state.run_id).info.status == "KILLED", log.read_text()
    assert state.ended == "KILLED"
