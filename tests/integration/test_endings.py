"""How a run ends, or goes on, when what it was started from goes away: a pipe, a terminal, an impatient person, a second start."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from processes import wait_until

from fedray.checkpoint import load_latest
from fedray.runfiles import RunFiles

ROUNDS = 10


def command(folder: Path, output: Path, slow: bool, **sections: Any) -> list[str]:
    """``fedray run`` of ten short rounds, or of ten that take seconds each."""
    config = {
        "name": "endings",
        "rounds": ROUNDS,
        "data": {"source": "python:slowparts:data", "holdout": {"fraction": 0.25}},
        "model": {"kind": "python:slowparts:model", "slow": 0 if slow else -1},
        "clients": {"actors": 1},
        "training": {"lr": 0.1, "batch_size": 10, "epochs": 3},
        "tracking": {"enabled": False},
        "ray": {"address": "local", "cpus": 2},
    }
    file = folder / "c.json"
    file.write_text(json.dumps(config | sections))
    return [sys.executable, "-m", "fedray", "run", str(file), "--output", str(output)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "integration")])}


def rounds_of(output: Path) -> list[int]:
    return [row["round"] for row in RunFiles(output).rows()]


def status_of(output: Path) -> str:
    return str(json.loads((output / "summary.json").read_text())["status"])


@pytest.mark.slow
def test_a_run_goes_on_when_its_pipe_is_closed(tmp_path: Path) -> None:
    output, told = tmp_path / "run", tmp_path / "err"
    with told.open("w") as err:
        process = subprocess.Popen(
            command(tmp_path, output, slow=False), env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True
        )
        try:
            assert process.stdout is not None
            head = [process.stdout.readline() for _ in range(3)]
            process.stdout.close()
            code = process.wait(240)
        finally:
            process.kill()
    assert head[1].startswith("round 1/10")
    assert code == 0, told.read_text()
    assert rounds_of(output) == list(range(1, ROUNDS + 1))
    assert status_of(output) == "completed"
    assert told.read_text().count("nobody reads standard output any more; the run goes on without it\n") == 1
    assert "Traceback" not in told.read_text()


@pytest.mark.slow
def test_a_closed_terminal_saves_the_run(tmp_path: Path) -> None:
    output = tmp_path / "run"
    line = command(tmp_path, output, slow=True, tracking={"enabled": True}, checkpoint={"every": 0})
    pid, terminal = pty.fork()
    if pid == 0:  # a session of its own, whose terminal is the other end
        os.chdir(tmp_path)
        os.execve(line[0], line, ENVIRONMENT)
    status = None
    try:
        wait_until(lambda: os.read(terminal, 65536) and len(RunFiles(output).rows()) >= 2, "two rounds", 240)
        os.close(terminal)
        status = os.waitpid(pid, 0)[1]
    finally:
        if status is None:
            os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert status_of(output) == "interrupted"
    saved = load_latest(output / "checkpoints")
    assert saved is not None and 2 <= saved.round < ROUNDS
    assert rounds_of(output) == list(range(1, saved.round + 1))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("KILLED",)]


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_with_130(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(tmp_path, output, slow=True), env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: RunFiles(output).rows(), "a round", 240)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # two signals that arrive at once are one
            process.send_signal(signal.SIGINT)
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_two_runs_into_one_new_output_the_second_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "run"
    line = command(tmp_path, output, slow=True)
    both = [
        subprocess.Popen(line, env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        ended = sorted(((p.communicate(timeout=400), p.returncode) for p in both), key=lambda each: each[1])
    finally:
        for process in both:
            process.kill()
    (done, first), (refused, second) = ended
    assert (first, second) == (0, 2), ended
    assert re.search(r"--output .*/run: another run is at work there \(process \d+ on .*\); wait until it has ended", refused[1])
    assert refused[0] == ""
    assert "round 10/10" in done[0]
    assert rounds_of(output) == list(range(1, ROUNDS + 1))
    assert len(list((output / "checkpoints").iterdir())) == 2
