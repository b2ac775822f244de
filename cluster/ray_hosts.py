"""Ray on hosts: a head and workers, as `ray start` makes them on machines, with token authentication.

Each node is a `ray start --block` on its host. Killing the host kills the node; ending that process with SIGTERM drains it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from cluster.tokens import bearer, token_environment
from fedray.errors import FedrayError

#: The nodes of a head notice the death of another after about 9 s with these, instead of about 64 s.
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Machine(Protocol):
    """Where a node can be started: a `cluster.hosts.Host`, or this machine."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def address(self) -> str:
        """The node's IP address."""

    def run(self, command: Sequence[str], *, env: Mapping[str, str | None] | None = None, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a command there; ``env`` is added to our environment, None takes a variable away."""

    def network(self) -> AbstractContextManager[None]:
        """Sockets that this thread opens in the block are opened there."""


class NodeEnded(FedrayError):
    """`ray start` has ended before its node was up."""


#: On a busy machine the parts of a node start slowly; with Ray's own limits (30 s, 60 s) the node then gives up.
_PATIENCE = {"RAY_agent_register_timeout_ms": "150000", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "150"}

#: What a round has left in the object store is freed at once, not once a second.
_PROMPT = {"RAY_free_objects_batch_size": "1"}


@dataclass(frozen=True)
class Ports:
    """Ports of a node; those of the head and its dashboard count on the head alone.

    None is left to Ray: a node waits 15 s for what its agents choose, which on a busy machine is too short.
    """

    head: int = 6379
    dashboard: int = 8265
    agent: int = 52365
    agent_grpc: int = 52366
    runtime_env: int = 52367
    metrics: int = 8080


@dataclass(frozen=True)
class RayNode:
    """A Ray node on a host.

    ``process`` is its `ray start --block`, ``address`` the head's HOST:PORT, ``dashboard`` the URL of dashboard and jobs API (on the
    head), ``token`` the token file.
    """

    host: Machine
    process: subprocess.Popen[bytes]
    ports: Ports
    address: str
    dashboard: str
    token: Path
    log: IO[bytes] = field(repr=False)

    @property
    def environment(self) -> dict[str, str | None]:
        """For `Host.run`: what a process on any host needs to join the cluster, or to submit a job to it."""
        return {**token_environment(self.token), "RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}

    def output(self) -> str:
        """What `ray start` has printed."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")


def start_head(
    host: Machine,
    token: Path,
    *,
    cpus: int = 0,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store: int = 200_000_000,
    durable: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
    ports: Ports = Ports(),
    options: Sequence[str] = (),
    seconds: float = 300.0,
) -> RayNode:
    """Start the head on ``host`` and wait until its dashboard and jobs API answer to the token.

    Args:
        host: where.
        token: the token file, as the host sees it.
        cpus: for actors; none by default, so that the head does no work.
        resources: custom resources of the node.
        labels: labels of the node.
        object_store: its size in bytes.
        durable: keep the cluster's state in a RocksDB in this directory: a head started again with it takes the cluster over.
            Give it on every node, so that all of them wait for the head (five minutes).
        environment: more variables, e.g. `QUICK_HEALTH_CHECKS` or those of TLS; None takes one away.
        ports: other ports than Ray's own.
        options: more arguments of `ray start`.
        seconds: the limit of the wait.

    Raises:
        FedrayError: the head has ended, or did not answer in time.
    """
    where = [
        "--head",
        f"--port={ports.head}",
        f"--dashboard-host={host.address}",
        f"--dashboard-port={ports.dashboard}",
        "--include-dashboard=true",
    ]
    size = _size(cpus, None, resources, labels, object_store)
    process, log = _start(host, [*where, *size, *options], ports, token, durable, environment)
    dashboard = f"http://{host.address}:{ports.dashboard}"
    head = RayNode(host, process, ports, f"{host.address}:{ports.head}", dashboard, token, log)
    _wait(head, lambda: _answers(host, f"{head.dashboard}/api/version", bearer(token)), "the dashboard does not answer", seconds)
    return head


def start_worker(
    host: Machine,
    head: RayNode,
    *,
    cpus: int = 1,
    gpus: int | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store: int = 200_000_000,
    durable: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
    ports: Ports = Ports(),
    options: Sequence[str] = (),
    seconds: float = 300.0,
    wait: bool = True,
) -> RayNode:
    """Start a node on ``host`` that joins ``head``'s cluster, and wait until the head has it (not where ``wait`` is false: `wait_joined`).

    The arguments are those of `start_head`; ``gpus`` as Ray finds them unless given.

    Raises:
        FedrayError: the node has ended, or did not join in time.
    """
    size = _size(cpus, gpus, resources, labels, object_store)
    process, log = _start(host, [f"--address={head.address}", *size, *options], ports, head.token, durable, environment)
    node = RayNode(host, process, ports, head.address, head.dashboard, head.token, log)
    if wait:
        wait_joined(node, seconds)
    return node


def started(start: Callable[[], RayNode]) -> RayNode:
    """A node, started once more where `ray start` gave up: it waits 30 s for its own parts, which on a busy machine is too short.

    Raises:
        FedrayError: it did not start.
    """
    try:
        return start()
    except NodeEnded:
        return start()


def wait_joined(node: RayNode, seconds: float = 300.0) -> None:
    """Wait until the head knows a worker that was started with ``wait=False``.

    Raises:
        FedrayError: the node has ended, or did not join in time.
    """
    url = f"http://{node.host.address}:{node.ports.agent}/api/local_raylet_healthz"
    _wait(node, lambda: _answers(node.host, url, {}), f"it has not joined {node.address}", seconds)


def _start(
    host: Machine, arguments: list[str], ports: Ports, token: Path, durable: Path | None, environment: Mapping[str, str | None] | None
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={host.address}", f"--metrics-export-port={ports.metrics}"]
    command += [f"--dashboard-agent-listen-port={ports.agent}", f"--dashboard-agent-grpc-port={ports.agent_grpc}"]
    command += [f"--runtime-env-agent-port={ports.runtime_env}", *arguments]
    # The `python` of a job's command is then this one.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    settings: dict[str, str | None] = {**token_environment(token), **_PATIENCE, **_PROMPT, "RAY_ADDRESS": None, "PATH": path}
    if durable is not None:
        settings |= {
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(durable),
            "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
        }
    log = tempfile.TemporaryFile()  # noqa: SIM115 (the node keeps it)
    process = host.run(
        command, env={**settings, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd="/"
    )
    return process, log


def _size(
    cpus: int, gpus: int | None, resources: Mapping[str, float] | None, labels: Mapping[str, str] | None, object_store: int
) -> list[str]:
    size = [f"--num-cpus={cpus}", f"--object-store-memory={object_store}"]
    if gpus is not None:
        size.append(f"--num-gpus={gpus}")
    if resources:
        size.append(f"--resources={json.dumps(dict(resources))}")
    if labels:
        size.append("--labels=" + ",".join(f"{name}={value}" for name, value in labels.items()))
    return size


def _answers(host: Machine, url: str, headers: Mapping[str, str]) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with host.network(), opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait(node: RayNode, ready: Callable[[], bool], what: str, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        if node.process.poll() is not None:
            raise NodeEnded(f"Ray on {node.host.name}: `ray start` ended with {node.process.returncode}: {_last_words(node)}")
        if time.monotonic() > limit:
            raise FedrayError(f"Ray on {node.host.name}: {what} within {seconds:g} s; it last said: {_last_words(node)}")
        time.sleep(0.1)


def _last_words(node: RayNode) -> str:
    lines = [line.strip() for line in node.output().splitlines() if line.strip()]
    return " ".join(lines[-3:]) or "it printed nothing."
