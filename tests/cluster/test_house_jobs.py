"""Jobs on a cluster of three nodes that the local command made: on one machine, and on hosts with tokens and TLS."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from keptstates import kept
from paths import ROOT
from processes import wait_until
from shortruns import SHORT

from cluster.hosts import missing
from cluster.tls import make_authority, make_host, tls_environment
from fedray.checkpoint import load_latest
from fedray.runfiles import RunFiles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NETWORK = "10.78.79"

#: Ten clients of different labels, five of them in each round. The config that a user has beside a module of their own.
OWN: dict[str, Any] = SHORT | {
    "name": "own",
    "seed": 1,
    "rounds": 10,
    "data": {"source": "sklearn:digits", "partition": {"kind": "dirichlet", "alpha": 1.0, "clients": 10}},
    "clients": {"actors": 3},
    "cohort": {"kind": "fixed", "size": 5},
    "evaluation": {"every": 5, "metrics": ["accuracy"]},
}


#: Not on hosts, too: the nodes of one machine have directories of their own, to which a job's directory is brought in the same way.
ONE_MACHINE = pytest.mark.parametrize("cluster", ["machine"], indirect=True)


@dataclass
class Cluster:
    """The command that runs a cluster, and what it printed to export."""

    command: subprocess.Popen[str]
    exports: dict[str, str] = field(default_factory=dict)

    def fedray(self, *line: str) -> tuple[int, str]:
        """A command of fedray with the exports: the exit code, and all that was said."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | self.exports
        done = subprocess.run(
            [sys.executable, "-m", "fedray", *line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stdout + done.stderr


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module", params=["machine", "hosts"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of two CPUs each: processes of this machine, or hosts with addresses of their own that speak TLS."""
    root = tmp_path_factory.mktemp("cluster")
    environment = dict(os.environ)
    if request.param == "machine":
        options = ["--port", free_port(), "--dashboard-port", free_port()]
    else:
        why = missing()
        if why:
            pytest.skip(why)
        make_authority(root / "tls")
        make_host(root / "tls", ["cluster", *(f"{NETWORK}.{n}" for n in (1, 2, 3, 4, 254))])
        environment |= tls_environment(root / "tls", "cluster")
        options = ["--namespaces", "--network", f"{NETWORK}.0/24"]
    line = [sys.executable, "-m", "cluster.local", "--nodes", "3", "--object-store", "100", "--token", str(root / "token"), *options]
    command = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert command.stdout is not None
    made = Cluster(command)
    for text in iter(command.stdout.readline, ""):
        if text.startswith("export "):
            name, _, value = text.removeprefix("export ").strip().partition("=")
            made.exports[name] = value
        if "Ctrl-C" in text:
            break
    assert ("RAY_USE_TLS" in made.exports) == (request.param == "hosts")
    yield made
    command.send_signal(signal.SIGTERM)
    assert command.wait(timeout=120) == 0


@pytest.mark.parametrize("name", ["digits", "heart"])
def test_a_job_ends_with_exit_code_0_and_submitted_again_is_finished(
    cluster: Cluster, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    line = ["submit", f"configs/{name}.yaml", "rounds=4", "--output", str(tmp_path / "run")]
    if name == "heart":
        line.insert(2, f"data.source=csv:{request.getfixturevalue('real_data') / 'heart'}")
    code, told = cluster.fedray(*line)
    assert code == 0, told
    assert f"{name} completed" in told
    code, told = cluster.fedray(*line)
    assert code == 0, told
    assert "is finished: its 4 rounds were done before, and none is done again" in told


def submit_own(cluster: Cluster, folder: Path, page: str, section: str, lines: int) -> RunFiles:
    """Train, as a job, with the whole module of a page of the documentation, named in ``section``; it has fewer than ``lines`` lines.

    Blank lines do not count; imports, decorators and comments do. The module lies beside the config, in the directory that is shipped, and
    on no process's path.
    """
    (module,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.S)
    assert sum(bool(line.strip()) for line in module.splitlines()) < lines
    (part,) = re.findall(r"^class (\w+)", module, re.M)
    work, kind = folder / "work", f"python:my_{section}:{part}"
    work.mkdir()
    (work / f"my_{section}.py").write_text(module)
    (work / "own.yaml").write_text(yaml.safe_dump({**OWN, section: {"kind": kind}}))
    code, told = cluster.fedray("submit", f"{work}/own.yaml", "--working-dir", str(work), "--output", str(folder / "run"))
    assert code == 0, told
    assert "own completed" in told
    files = RunFiles(folder / "run")
    summary = files.read_summary()
    assert summary is not None
    assert (summary["status"], summary["rounds"], summary["faults"]["client_failures"]) == ("completed", OWN["rounds"], 0)
    assert summary["final"]["eval/accuracy"] > 0.7  # of ten classes
    assert yaml.safe_load(files.config.read_text())[section]["kind"] == kind
    return files


@ONE_MACHINE
def test_scaffold_in_under_sixty_lines_of_ones_own_runs_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    run = submit_own(cluster, tmp_path, "algorithms", "algorithm", 60)
    assert len(set(kept(run.root, "control", clients=10).values())) > OWN["cohort"]["size"]  # each client has its own control


@ONE_MACHINE
def test_a_median_in_under_fifteen_lines_of_ones_own_runs_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    run = submit_own(cluster, tmp_path, "rules", "aggregation", 15)
    saved = load_latest(run.checkpoints)
    assert saved is not None
    assert saved.rule["velocity"].any()  # what the median remembers


def test_a_stopped_job_is_not_waited_for_after_its_end(cluster: Cluster, tmp_path: Path) -> None:
    line = ["submit", "configs/digits.yaml", "rounds=20000", "--output", str(tmp_path / "run"), "--no-wait"]
    code, told = cluster.fedray(*line)
    assert code == 0, told
    job = told.splitlines()[0]
    rows = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 1, "two rounds", 300)
    code, told = cluster.fedray("jobs", "stop", job)
    assert code == 0, told
    assert "continue after the last checkpoint" in told

    def ended() -> list[int]:
        return [p.pid for p in psutil.Process(cluster.command.pid).children() if p.status() == psutil.STATUS_ZOMBIE]

    wait_until(lambda: not ended(), "nothing that has ended is left", 60)
