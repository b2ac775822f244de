"""A federation from nothing, as its people do it by commands: coordinator and silos as processes, tokens, a run, a revocation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from remotesilos import free_port
from sklearn.datasets import load_iris

import fedray
from fedray.cli import cli
from fedray.errors import FedrayError
from fedray.runfiles import RunFiles

NAMES = ["hospital-a", "hospital-b"]


def records(place: Path, name: str, number: int) -> Path:
    """Every other flower, in a file of this silo's own."""
    table = load_iris(as_frame=True).frame.rename(columns={"target": "kind"}).iloc[number::2]
    table.to_csv(path := place / f"{name}.csv", index=False)
    return path


def does(*words: object) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@contextmanager
def process(*words: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fedray", *map(str, words)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        yield started
    finally:
        started.terminate()
        started.communicate()


POLICY = {
    "models": ["softmax"], "algorithms": ["fedavg"], "losses": ["cross_entropy"], "regimes": ["none"], "unmasked": "always", "hours": "always",
    "rounds": 5, "rounds_a_day": 50, "approval": False, "facts": ["records", "errors"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_from_an_invitation_to_a_model_and_to_a_revocation(tmp_path: Path) -> None:
    home, port = tmp_path / "federation", free_port()
    does("federation", "init", home, "--name", "localhost")
    sites = []
    with process("federation", "enrolment", home, "--listen", "127.0.0.1:0") as served:
        assert served.stdout is not None
        found = re.search(r"listens on 127\.0\.0\.1:(\d+)", served.stdout.readline())
        assert found is not None
        for number, name in enumerate(NAMES):
            place = tmp_path / name
            place.mkdir()
            (place / "policy.yaml").write_text(yaml.safe_dump(POLICY))
            site = {"client": name, "gateway": f"localhost:{port}", "identity": "identity", "state": "state", "policy": "policy.yaml"}
            sites.append(place / "site.yaml")
            sites[-1].write_text(
                yaml.safe_dump({**site, "data": {"source": f"csv:{records(place, name, number)}", "label": "kind", "classes": 3}})
            )
            token = does("federation", "invite", home, name, "--address", f"localhost:{found[1]}").strip()
            does("silo", "enrol", sites[-1], "--token", token)
    run = {
        "name": "flowers", "rounds": 1, "model": {"kind": "softmax"}, "training": {"lr": 0.5, "batch_size": 16, "epochs": 1},
        "data": {"source": f"silos:{','.join(NAMES)}", "classes": 3}, "tracking": {"enabled": False}, "evaluation": {"metrics": []},
        "clients": {"placement": "remote", "gateway": {"listen": f"127.0.0.1:{port}", "identity": str(home)}, "start_timeout": 600.0},
    }  # fmt: skip
    with process("silo", sites[0]), process("silo", "run", sites[1]):
        assert fedray.run(run, output=str(tmp_path / "run")).status == "completed"
        does("federation", "revoke", home, NAMES[1])
        alone = {**run, "data": {**run["data"], "source": f"silos:{NAMES[1]}"}, "clients": {**run["clients"], "start_timeout": 20.0}}
        with pytest.raises(FedrayError, match="certificate of silo 'hospital-b' .*is revoked"):
            fedray.run(alone, output=str(tmp_path / "second"))
    assert not RunFiles(tmp_path / "second").rows()
    assert "is revoked" in (sites[1].parent / "state" / "silo.log").read_text()
