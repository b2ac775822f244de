"""A Ray of several nodes on this machine, for development: ``python -m cluster.local --nodes 3``.

The nodes are processes of this machine, at its own address, or, with ``--namespaces``, separate hosts with addresses of their own
(needs root). The cluster lives as long as the command; it asks for a token, as every cluster of fedray does. Its dashboard listens on
127.0.0.1 alone, Ray's other ports on every interface (on loopback alone Ray starts no second node).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from cluster import commands
from cluster.hosts import Host, Hosts
from cluster.ray_hosts import NodeEnded, Ports, RayNode, start_head, start_worker, started, wait_joined
from cluster.tokens import token_file
from fedray.errors import ConfigError, FedrayError

_PR_SET_CHILD_SUBREAPER = 36

#: Seconds between looks for adopted children that have ended.
_REAP = 0.2


@dataclass(frozen=True)
class Here:
    """This machine as a place for nodes."""

    name: str
    address: str = "127.0.0.1"

    def run(self, command: Sequence[str], *, env: Mapping[str, str | None] | None = None, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a command in a session of its own: Ctrl-C at our terminal reaches us alone."""
        environment = {k: v for k, v in {**os.environ, **(env or {})}.items() if v is not None}
        return subprocess.Popen(command, env=environment, start_new_session=True, **kwargs)

    def network(self) -> AbstractContextManager[None]:
        """Our own sockets."""
        return nullcontext()


@dataclass(frozen=True)
class Worker:
    """What a worker offers."""

    cpus: int
    gpus: int | None
    resources: dict[str, float]
    labels: dict[str, str]


def workers(
    nodes: int, cpus: int, gpus: int | None, resources: Sequence[Mapping[str, float]], labels: Sequence[Mapping[str, str]]
) -> list[Worker]:
    """The workers asked for: the first has the first of ``resources`` and ``labels``, and so on.

    Raises:
        ConfigError: more resources or labels than workers.
    """
    for name, given in (("resources", resources), ("labels", labels)):
        if len(given) > nodes:
            raise ConfigError(f"--{name}: given {len(given)} times for {nodes} workers; give it once for each, in order, or raise --nodes.")

    def of(given: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
        return dict(given[number]) if number < len(given) else {}

    return [Worker(cpus, gpus, of(resources, n), of(labels, n)) for n in range(nodes)]


@contextmanager
def on_this_machine(wanted: Sequence[Worker], token: Path, ports: Ports, object_store: int) -> Iterator[list[RayNode]]:
    """A head and workers as processes of this machine; yields them, the head first. Afterwards every process of theirs is gone.

    For a process that starts no others meanwhile: what has become its child since then is taken for theirs.

    Raises:
        ConfigError: a port is in use.
        FedrayError: a node does not start.
    """
    for name, port in (("--port", ports.head), ("--dashboard-port", ports.dashboard)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise ConfigError(f"{name}: port {port} is in use on 127.0.0.1, perhaps by another Ray; give another one.")
    _adopt_orphans()
    others = _children()
    # A directory for each node: Ray unpacks a job's working directory once a node, and would do so anew under the feet of a job that
    # runs there already. All are apart from other Rays of this machine, whose cluster Ray notes there. Paths of sockets must be short.
    directory = tempfile.mkdtemp(prefix="fedray-ray-", dir="/tmp")
    # Several nodes on one address: the system chooses the ports of all workers. No draining: there is nothing to wait for.
    options = ["--min-worker-port=0", "--max-worker-port=0"]
    environment = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}
    nodes: list[RayNode] = []
    try:
        own = _own_ports(ports)
        extra = [*options, f"--temp-dir={directory}/head", f"--ray-client-server-port={_free_port()}"]
        common: dict[str, Any] = {"object_store": object_store, "environment": environment}
        head = started(lambda: start_head(Here("head"), token, ports=own, options=extra, **common))
        nodes.append(head)
        # One after the other: what is free is chosen before it is opened, and of two that start at once both may choose the same.
        for number, worker in enumerate(wanted, 1):
            own_options = [*options, f"--temp-dir={directory}/w{number}"]
            nodes.append(started(partial(_worker, Here(f"worker {number}"), head, worker, ports=ports, options=own_options, **common)))
        with _reaping(others | {node.process.pid for node in nodes}):
            yield nodes
    finally:
        for node in reversed(nodes):
            node.process.terminate()
        limit = time.monotonic() + 10
        while any(node.process.poll() is None for node in nodes) and time.monotonic() < limit:
            time.sleep(0.05)
        # Children of a process that ends become ours, and are killed in their turn.
        while left := _children() - others:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def on_hosts(wanted: Sequence[Worker], token: Path, network: str, object_store: int) -> Iterator[list[RayNode]]:
    """A head and workers on hosts of their own, which this machine reaches; yields them, the head first.

    Raises:
        ConfigError: hosts cannot be made here.
        FedrayError: a node does not start.
    """
    with Hosts("ray", network, uplink=True) as hosts:
        place = hosts.add("head")
        head = started(lambda: start_head(place, token, object_store=object_store))
        starts = [
            partial(start_worker, hosts.add(f"w{number}"), head, object_store=object_store, **asdict(worker))
            for number, worker in enumerate(wanted, 1)
        ]
        nodes = [head, *(start(wait=False) for start in starts)]
        for number, start in enumerate(starts, 1):
            try:
                wait_joined(nodes[number])
            except NodeEnded:
                nodes[number] = start()
        yield nodes


def _worker(host: Here, head: RayNode, worker: Worker, ports: Ports, **more: Any) -> RayNode:
    """A worker on this machine, with ports that nobody has as yet."""
    return start_worker(host, head, ports=_own_ports(ports), **asdict(worker), **more)


def describe(nodes: Sequence[RayNode]) -> str:
    """Where the cluster is, and what to export to use it; the token itself is not in it."""
    head = nodes[0]
    exports = {"RAY_API_SERVER_ADDRESS": head.dashboard, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token), **_tls()}
    lines = [f"Ray at {head.address}: a head and {len(nodes) - 1} workers; dashboard {head.dashboard}", ""]
    if isinstance(head.host, Here):
        exports = {"RAY_ADDRESS": head.address, **exports}
    lines += [f"export {name}={value}" for name, value in exports.items()]
    lines.append("")
    if isinstance(head.host, Here):
        lines.append("fedray run and fedray submit use it then. Ctrl-C ends it.")
    else:
        lines.append("fedray submit uses it then. Ctrl-C ends it. To be on a host, where Ray can also be joined:")
        lines += [
            f"  nsenter --target {node.host.pid} --all --wdns=$PWD   # {node.host.name}, {node.host.address}"
            for node in nodes
            if isinstance(node.host, Host)
        ]
    return "\n".join(lines)


def _tls() -> dict[str, str]:
    """The variables with which TLS is on here, and so in the cluster's nodes; a process without them cannot join it."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return {}
    return {name: value for name, value in sorted(os.environ.items()) if name == "RAY_USE_TLS" or name.startswith("RAY_TLS_")}


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that none is lost."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[int]:
    """Our child processes; none where the system does not list them."""
    return {int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


@contextmanager
def _reaping(others: Set[int]) -> Iterator[None]:
    """Wait for adopted children that end in the block, all but ``others``: Ray takes a stopped job that nobody waits for as running."""
    done = threading.Event()

    def reap() -> None:
        while not done.wait(_REAP):
            for pid in _children() - others:
                os.waitpid(pid, os.WNOHANG)

    thread = threading.Thread(target=reap, name="reaper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _own_ports(ports: Ports) -> Ports:
    """Those of the cluster, with others that no node of this machine has."""
    return replace(ports, agent=_free_port(), agent_grpc=_free_port(), runtime_env=_free_port(), metrics=_free_port())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _json_map(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[dict[str, Any]]:
    maps = []
    for text in values:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise click.BadParameter(f"'{text}' is not JSON ({error}).") from None
        if not isinstance(value, dict):
            raise click.BadParameter(f"'{text}' should be an object such as {{\"site_1\": 1}}.")
        maps.append(value)
    return maps


@click.command()
@click.option(
    "--nodes", type=click.IntRange(1), default=2, show_default=True, help="Workers; the head, which runs no clients, comes on top."
)
@click.option("--cpus", type=click.IntRange(0), default=2, show_default=True, help="CPUs that each worker offers.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs that each worker offers; default those that are there.")
@click.option("--resources", multiple=True, callback=_json_map, help="Of one worker, in order: '{\"site_1\": 1}'.")
@click.option("--labels", multiple=True, callback=_json_map, help='Of one worker, in order: \'{"region": "eu"}\'.')
@click.option("--object-store", type=click.IntRange(80), default=500, show_default=True, help="Megabytes of object store a node.")
@click.option("--namespaces", is_flag=True, help="Each node is a host with an address of its own (Linux, root).")
@click.option("--network", default="10.77.0.0/24", show_default=True, help="With --namespaces: the hosts' network.")
@click.option("--port", type=int, default=6379, show_default=True, help="Of the head, without --namespaces.")
@click.option(
    "--dashboard-port", type=int, default=8265, show_default=True, help="Of the dashboard and the jobs API, without --namespaces."
)
@click.option(
    "--token", type=click.Path(path_type=Path), default=Path.home() / ".fedray" / "ray_token", help="Token file; made where absent."
)
def local(
    nodes: int,
    cpus: int,
    gpus: int | None,
    resources: list[dict[str, float]],
    labels: list[dict[str, str]],
    object_store: int,
    namespaces: bool,
    network: str,
    port: int,
    dashboard_port: int,
    token: Path,
) -> None:
    """Run a Ray of several nodes on this machine until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = workers(nodes, cpus, gpus, resources, labels)
    secret, size = token_file(token), object_store * 10**6
    click.echo("starting ...", err=True)
    place = on_hosts(wanted, secret, network, size) if namespaces else on_this_machine(wanted, secret, Ports(port, dashboard_port), size)
    try:
        with place as cluster:
            click.echo(describe(cluster))
            _watch(cluster)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


def _watch(nodes: Sequence[RayNode]) -> None:
    """Stay until the head ends; say which workers end."""
    running = list(nodes)
    while nodes[0].process.poll() is None:
        for node in [n for n in running if n.process.poll() is not None]:
            running.remove(node)
            click.echo(f"{node.host.name} has ended", err=True)
        time.sleep(0.2)
    raise FedrayError(f"Ray at {nodes[0].address}: the head has ended with {nodes[0].process.returncode}.")


if __name__ == "__main__":
    commands.run(local)
