"""Signals that end a run in good order, and an output that has one driver. Real processes, without Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

from fedray import experiment
from fedray.cli import cli
from fedray.errors import ConfigError
from fedray.experiment.occupied import check_free, occupied
from fedray.runfiles import RunFiles, choose_output

_HUNG_UP = """
import os, signal, subprocess, sys
from fedray.experiment.signals import caught, kept_from_children
stop = []
with caught(stop, signal.SIGHUP):
    with kept_from_children(signal.SIGHUP):
        child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        os.killpg(0, signal.SIGHUP)  # as a terminal that closes does to all that was started from it
    print(stop == [signal.SIGHUP], child.poll())
    child.stdin.close()
    print(child.wait())
"""


def hung_up(line: str) -> list[str]:
    done = subprocess.run(["sh", "-c", line, sys.executable, _HUNG_UP], cwd=ROOT, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hang_up_reaches_the_command_and_not_its_children() -> None:
    assert hung_up('exec "$0" -c "$1"')[0] == "True None"


def test_under_nohup_a_hang_up_is_ignored() -> None:
    assert hung_up('trap "" HUP; exec "$0" -c "$1"')[0] == "False None"


def test_a_second_ctrl_c_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", stop)
    result = CliRunner().invoke(cli, ["run", str(ROOT / "configs" / "digits.yaml"), "--output", str(tmp_path / "run")])
    assert (result.exit_code, result.stderr) == (130, "fedray: ended by Ctrl-C.\n")


_HOLDS = """
import sys
from pathlib import Path
from fedray.experiment.occupied import occupied
from fedray.runfiles import RunFiles
with occupied(RunFiles(Path(sys.argv[1]))):
    print("at work", flush=True)
    sys.stdin.readline()
"""


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(root)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "at work\n"
    return process


def test_an_output_has_one_driver(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    check_free(files)
    first = holder(files.root)
    try:
        for attempt in (lambda: check_free(files), lambda: occupied(files).__enter__()):
            with pytest.raises(ConfigError, match=rf"run: another run is at work there \(process {first.pid} on .*\); wait until"):
                attempt()
        with occupied(files, insist=False):  # as a driver that Ray has started again, while the node of the one before is out of reach
            pass
        first.send_signal(signal.SIGKILL)
        with occupied(files, wait=60):  # the kernel gives the lock back, however its holder ends
            held = json.loads((files.root / ".lock").read_text())
            assert held["pid"] == os.getpid()
    finally:
        first.kill()
    check_free(files)


def test_the_lock_of_a_run_in_a_store_outlives_its_emptied_directory(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "work" / "run", "s3://bucket/run")
    with occupied(files):
        assert [path.name for path in files.root.parent.iterdir()] == [".run.lock"]
        with pytest.raises(ConfigError, match="--output s3://bucket/run: another run is at work there"):
            check_free(files)


def test_a_run_that_lost_its_config_is_still_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a" / "checkpoints"
    folder.mkdir(parents=True)
    assert choose_output("a", None, False) == tmp_path / "runs" / "a"
    (folder / "round-000001.safetensors").write_bytes(b"")
    assert choose_output("a", None, False) == tmp_path / "runs" / "a-2"
    with pytest.raises(ConfigError, match="holds a run already; add --resume"):
        choose_output("a", str(tmp_path / "runs" / "a"), False)
