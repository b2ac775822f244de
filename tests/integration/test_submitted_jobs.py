"""Runs as jobs of a real Ray cluster with a token, submitted from another host. Needs root (network namespaces)."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT
from processes import wait_until

from cluster.hosts import Host, Hosts, missing
from cluster.ray_hosts import RayNode, start_head
from cluster.tokens import token_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROUNDS = 12
VALUE = "gTf7-the-secret-of-the-store"

#: Clients whose data can be loaded only by who has the secret.
GUARDED = f"""
import os

import slowparts


def data():
    assert os.environ["STORE_SECRET"][::-1] == "{VALUE[::-1]}"
    return slowparts.data()
"""

#: Passes connections on to a host and port; SIGUSR1 breaks them all off, and prints how many.
PROXY = """
import asyncio, signal, sys

broken = set()

async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()

async def serve(reader, writer):
    its_reader, its_writer = await asyncio.open_connection(*sys.argv[1:3])
    broken.add(writer)
    await asyncio.gather(copy(reader, its_writer), copy(its_reader, writer))
    broken.discard(writer)

def cut():
    print(len(broken), flush=True)
    for writer in broken:
        writer.transport.abort()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 8265)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, cut)
    print("up", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

SLOW: dict[str, Any] = {
    "name": "slow",
    "seed": 1,
    "rounds": ROUNDS,
    "data": {"source": "python:slowparts:data", "holdout": {"fraction": 0.25}},
    "model": {"kind": "python:slowparts:model", "slow": 0},
    "clients": {"actors": 2},
    "cohort": {"kind": "all"},
    "training": {"lr": 0.1, "batch_size": 5, "epochs": 1},
}


@dataclass
class Cluster:
    """A head that does all the work, a desk that submits, and a directory that both see."""

    head: Host
    node: RayNode
    desk: Host
    root: Path

    def start(self, *line: str, **environment: str | None) -> subprocess.Popen[str]:
        """A command of fedray at the desk."""
        known: dict[str, str | None] = {**self.node.environment, "RAY_ADDRESS": None, "PYTHONPATH": str(ROOT)}
        return self.desk.run(
            [sys.executable, "-m", "fedray", *line],
            env=known | environment,
            cwd=self.root / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *line: str, **environment: str | None) -> tuple[int, str]:
        """The exit code, and all that was said."""
        return _ended(self.start(*line, **environment))

    def ray(self, *line: str) -> tuple[int, str]:
        """The same of Ray's own command."""
        command = [sys.executable, "-m", "ray.scripts.scripts", *line]
        return _ended(
            self.desk.run(
                command, env=self.node.environment, cwd=self.root / "work", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    told, _ = process.communicate(timeout=600)
    return process.returncode, told


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    why = missing()
    if why:
        pytest.skip(why)
    root = tmp_path_factory.mktemp("jobs")
    work = root / "work"
    work.mkdir()
    (work / "slowparts.py").write_text((ROOT / "tests" / "integration" / "slowparts.py").read_text())
    (work / "guarded.py").write_text(GUARDED)
    (work / "slow.yaml").write_text(yaml.safe_dump(SLOW))
    (work / "digits.yaml").write_text((ROOT / "configs" / "digits.yaml").read_text())
    (root / "secret").write_text(VALUE + "\n")
    with Hosts("jobs") as hosts:
        head = hosts.add("head")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        node = start_head(head, token_file(root / "token"), cpus=4, environment={"PATH": path, "PYTHONPATH": str(ROOT)})
        yield Cluster(head, node, hosts.add("desk"), root)


def rounds(output: Path) -> list[int]:
    path = output / "metrics.jsonl"
    return [json.loads(line)["round"] for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def submitted(told: str) -> str:
    return next(line for line in told.splitlines() if line.startswith("slow-"))


def test_a_stopped_job_checkpoints_and_submitted_again_it_goes_on_at_the_next_round(cluster: Cluster) -> None:
    """Stopped twice in mid-round: with Ray's own command, and with fedray's."""
    output = cluster.root / "stopped" / "run"
    line = ["submit", "slow.yaml", "--output", str(output)]
    code, told = cluster.run(*line, "--no-wait")
    assert code == 0, told
    first = submitted(told)
    stem = first.rpartition("-")[0]
    wait_until(lambda: len(rounds(output)) >= 2, "two rounds", 240)
    assert cluster.ray("job", "stop", first)[0] == 0
    code, told = cluster.run("jobs", "logs", first, "--follow")
    assert code == 143, told
    assert "the current round is given up" in told
    summary = json.loads((output / "summary.json").read_text())
    done = summary["rounds"]
    assert (summary["status"], rounds(output)) == ("interrupted", list(range(1, done + 1)))

    code, told = cluster.run(*line, "--no-wait")
    assert (code, submitted(told)) == (0, f"{stem}-2"), told
    wait_until(lambda: len(rounds(output)) >= done + 2, "two more rounds", 240)
    code, told = cluster.run("jobs", "stop", f"{stem}-2")
    assert code == 0, told
    between, done = done, json.loads((output / "summary.json").read_text())["rounds"]
    assert between + 2 <= done < ROUNDS
    assert f"job {stem}-2 stopped; round {done} is the last that is kept" in told
    assert "continue after the last checkpoint" in told

    code, told = cluster.run(*line)
    assert code == 0, told
    assert f"{stem}-3, output {output}" in told
    assert f"{ROUNDS} rounds, {done} done before" in told
    assert [f"round {n}/{ROUNDS} " in told for n in (done, done + 1, ROUNDS)] == [False, True, True]
    assert rounds(output) == list(range(1, ROUNDS + 1))
    ended = json.loads((output / "summary.json").read_text())
    assert (ended["status"], ended["mlflow"]["run_id"]) == ("completed", summary["mlflow"]["run_id"])
    with sqlite3.connect(output.parent / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]
        steps = store.execute("select step from metrics where key = 'eval/accuracy' order by step").fetchall()
    assert [step for (step,) in steps] == list(range(1, ROUNDS + 1))


def test_a_follower_whose_connection_breaks_tells_every_line_once(cluster: Cluster) -> None:
    output = cluster.root / "broken" / "run"
    there = cluster.node.dashboard.removeprefix("http://").split(":")
    proxy = cluster.desk.run([sys.executable, "-c", PROXY, *there], stdout=subprocess.PIPE, text=True)
    assert proxy.stdout is not None
    assert proxy.stdout.readline() == "up\n"
    follower = cluster.start("submit", "slow.yaml", "--output", str(output), "--address", "http://127.0.0.1:8265")
    assert follower.stdout is not None
    told = ""
    while piece := follower.stdout.readline():
        told += piece
        if piece.startswith(("round 3/", "round 6/")):
            proxy.send_signal(signal.SIGUSR1)
    assert follower.wait(timeout=600) == 0, told
    assert [int(line[6:].split("/")[0]) for line in told.splitlines() if line.startswith("round ")] == list(range(1, ROUNDS + 1))
    assert told.count("slow completed") == 1
    proxy.terminate()
    broken, _ = proxy.communicate(timeout=600)
    assert [int(n) > 0 for n in broken.split()] == [True, True]


def test_the_same_output_twice_is_one_job_and_ctrl_c_leaves_it_alone(cluster: Cluster) -> None:
    output = cluster.root / "twice" / "run"
    many = 40  # the run must outlast three commands
    line = ["submit", "slow.yaml", f"rounds={many}", "--output", str(output)]
    code, told = cluster.run(*line, "--no-wait")
    assert code == 0, told
    job = submitted(told)
    code, told = cluster.run(*line[:2], "rounds=99", *line[3:])
    assert (code, "at work there with another config" in told) == (2, True), told
    follower = cluster.start(*line)
    assert follower.stdout is not None
    seen = ""
    while "round 1/" not in seen:
        piece = follower.stdout.readline()
        assert piece, seen
        seen += piece
    assert f"at work on this output already: job {job}" in seen
    code, told = cluster.run("jobs", "show", job)
    assert code == 0, told
    assert "running" in told
    assert "Experiment 1 alive" in told
    assert str(output) in told
    follower.send_signal(signal.SIGINT)
    told, _ = follower.communicate(timeout=600)
    assert follower.returncode == 130, told
    assert f"job {job} goes on" in told
    code, told = cluster.run("jobs", "logs", job, "--follow", "--raw")
    assert code == 0, told
    events = [json.loads(line) for line in told.splitlines() if line.startswith('{"time"')]
    assert [e["round"] for e in events if e.get("event") == "row"] == list(range(1, many + 1))
    assert all(e["run"] for e in events)
    assert rounds(output) == list(range(1, many + 1))
    code, told = cluster.run("jobs", "list")
    assert (code, [line.split()[2] for line in told.splitlines() if line.startswith(f"{job} ")]) == (0, ["succeeded"]), told


def test_a_secret_reaches_driver_and_clients_and_is_shown_nowhere(cluster: Cluster) -> None:
    output = cluster.root / "guarded" / "run"
    parts = ["data.source=python:guarded:data", "rounds=2", "model={kind: python:slowparts:model}"]
    secret = ["--secret", f"STORE_SECRET=file:{cluster.root / 'secret'}"]
    code, told = cluster.run("submit", "slow.yaml", *parts, "--output", str(output), *secret, "--profile")
    assert code == 0, told
    assert "compute" in (output / "profile.txt").read_text()
    session = cluster.head.run(["grep", "-rl", VALUE, "/tmp/ray"], stdout=subprocess.PIPE, text=True)
    found, _ = session.communicate(timeout=600)
    assert found == ""
    code, jobs = cluster.run("jobs", "list")
    job = next(line.split()[0] for line in jobs.splitlines() if str(output) in line)
    for line in (["jobs", "logs", job, "--raw"], ["jobs", "show", job, "--json"]):
        code, shown = cluster.run(*line)
        assert code == 0, shown
        told += shown
    assert VALUE not in told
    for path in output.parent.rglob("*"):
        assert not path.is_file() or VALUE.encode() not in path.read_bytes(), path


def test_exit_codes_are_the_run_s_own(cluster: Cluster) -> None:
    spent = ["privacy.target_epsilon=null", "privacy.noise_multiplier=2", "privacy.budget=3", "rounds=40"]
    code, told = cluster.run("submit", "digits.yaml", *spent, "--output", str(cluster.root / "spent"))
    assert code == 3, told
    assert "budget reached" in told
    code, told = cluster.run("submit", "digits.yaml", "data.source=npz:/none.npz", "--output", str(cluster.root / "missing"))
    assert code == 2, told
    assert "/none.npz" in told


def test_without_the_token_and_without_a_cluster_it_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    line = ["submit", "slow.yaml", "--output", str(tmp_path / "out")]
    code, told = cluster.run(*line, HOME=str(tmp_path), RAY_AUTH_TOKEN_PATH=None, RAY_AUTH_MODE=None)
    assert (code, "wants its token" in told, len(told.splitlines())) == (2, True, 1), told
    code, told = cluster.run(*line, HOME=str(tmp_path), RAY_AUTH_TOKEN_PATH=None, RAY_AUTH_TOKEN="0" * 64)
    assert (code, "refuses the token of RAY_AUTH_TOKEN" in told, len(told.splitlines())) == (2, True, 1), told
    code, told = cluster.run(*line, "--address", f"http://{cluster.desk.address}:8265")
    assert (code, "no Jobs API answers" in told, len(told.splitlines())) == (1, True, 1), told


def test_ray_s_own_submit_works_as_well(cluster: Cluster) -> None:
    output = cluster.root / "plain" / "run"
    line = ["python", "-m", "fedray", "run", "slow.yaml", "rounds=2", "--output", str(output), "--resume"]
    code, told = cluster.ray("job", "submit", "--working-dir", ".", "--", *line)
    assert code == 0, told
    assert rounds(output) == [1, 2]
