"""Ray on hosts of their own: joining, dying, coming back, and who is refused. Ray on this machine by the command."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from paths import ROOT
from processes import wait_until

from cluster.hosts import Host, Hosts
from cluster.ray_hosts import QUICK_HEALTH_CHECKS, RayNode, start_head, start_worker, wait_joined
from cluster.tls import make_authority, make_host, tls_environment
from cluster.tokens import bearer, token_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

#: Prints where a task ran that asked for a resource.
WHERE = """
import socket, sys, ray
ray.init(log_to_driver=False)
where = ray.remote(resources={sys.argv[1]: 1})(lambda: socket.gethostname())
print(ray.get(where.remote(), timeout=120))
"""


def drive(host: Host, environment: Mapping[str, str | None], resource: str) -> subprocess.CompletedProcess[str]:
    process = host.run(
        [sys.executable, "-c", WHERE, resource], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def where(host: Host, environment: Mapping[str, str | None], resource: str) -> str:
    """The host on which a task ran that asked for the resource."""
    done = drive(host, environment, resource)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(host: Host, url: str, headers: Mapping[str, str]) -> int:
    try:
        with host.network(), urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers)), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_nodes_die_and_come_back_and_the_head_takes_the_cluster_over(hosts: Hosts, token: Path, tmp_path: Path) -> None:
    head_host, desk, sites = hosts.add("head"), hosts.add("desk"), [hosts.add("w1"), hosts.add("w2")]
    durable = tmp_path / "gcs"
    durable.mkdir()

    def head_started() -> RayNode:
        return start_head(head_host, token, durable=durable, environment=QUICK_HEALTH_CHECKS)

    def started(number: int) -> RayNode:
        return start_worker(
            sites[number - 1], head, cpus=1, resources={f"site_{number}": 1}, durable=durable, environment=QUICK_HEALTH_CHECKS, wait=False
        )

    head = head_started()
    nodes = [started(1), started(2)]
    for node in nodes:
        wait_joined(node)
    for number in (1, 2):
        assert where(sites[0], head.environment, f"site_{number}") == f"t-w{number}"

    version = f"{head.dashboard}/api/version"
    assert status(desk, version, {}) == 401
    assert status(desk, version, {"Authorization": f"Bearer {'0' * 64}"}) == 403
    assert status(desk, version, bearer(token)) == 200

    sites[1].kill()
    sites[1].boot()
    wait_joined(started(2))
    assert where(sites[0], head.environment, "site_2") == "t-w2"

    head_host.kill()
    head_host.boot()
    head = head_started()
    for number in (1, 2):
        assert where(sites[0], head.environment, f"site_{number}") == f"t-w{number}"

    nodes[0].process.send_signal(signal.SIGTERM)
    nodes[0].process.wait(timeout=600)  # drained: ended by itself within Ray's limit


def test_over_tls_only_certificates_of_the_authority_and_the_right_token_are_let_in(hosts: Hosts, token: Path, tmp_path: Path) -> None:
    head_host, worker_host = hosts.add("head"), hosts.add("worker")
    ours, others = tmp_path / "ours", tmp_path / "others"
    for directory in (ours, others):
        make_authority(directory)
        for host in (head_host, worker_host):
            make_host(directory, [host.address])
    head = start_head(head_host, token, environment=tls_environment(ours, head_host.address))
    start_worker(worker_host, head, resources={"site": 1}, environment=tls_environment(ours, worker_host.address))

    right = {**head.environment, **tls_environment(ours, worker_host.address)}
    assert where(worker_host, right, "site") == "t-worker"
    for environment, why in (
        (head.environment, "Timed out while waiting for GCS"),
        ({**right, **tls_environment(others, worker_host.address)}, "Timed out while waiting for GCS"),
        ({**right, "RAY_AUTH_TOKEN_PATH": str(token_file(tmp_path / "wrong"))}, "InvalidAuthToken"),
    ):
        # Ray's client tries for minutes otherwise.
        refused = drive(worker_host, {**environment, "RAY_gcs_server_port_wait_time_s": "1", "RAY_NUM_REDIS_GET_RETRIES": "1"}, "site")
        assert refused.returncode != 0
        assert why in refused.stderr
        assert refused.stdout == ""


def test_the_local_command_starts_nodes_says_where_and_leaves_nothing(hosts: Hosts, tmp_path: Path) -> None:
    machine = hosts.add("dev")  # a machine whose processes can be counted
    line = [sys.executable, "-m", "cluster.local", "--nodes", "2", "--cpus", "1", "--resources", '{"site": 1}']
    command = machine.run([*line, "--token", str(tmp_path / "token")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert command.stdout is not None
    environment: dict[str, str | None] = {"RAY_AUTH_TOKEN": None}
    for text in iter(command.stdout.readline, ""):
        if text.startswith("export "):
            name, _, value = text.removeprefix("export ").strip().partition("=")
            environment[name] = value
        if "Ctrl-C" in text:
            break
    assert set(environment) == {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    assert where(machine, environment, "site") == "t-dev"

    second = machine.run(
        [*line, "--token", str(tmp_path / "token")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert second.communicate(timeout=600)[1].endswith("give another one.\n")
    assert second.returncode == 2

    command.terminate()
    assert command.wait(timeout=600) == 0
    count = machine.run(["sh", "-c", "ls -d /proc/[0-9]*"], stdout=subprocess.PIPE, text=True)
    assert len(count.communicate(timeout=600)[0].split()) <= 3, "processes are left"


def test_the_local_command_on_hosts_is_reached_from_this_machine(hosts: Hosts, tmp_path: Path) -> None:
    del hosts  # for its skip
    line = [sys.executable, "-m", "cluster.local", "--nodes", "1", "--namespaces", "--network", "10.78.77.0/24"]
    command = subprocess.Popen([*line, "--token", str(tmp_path / "token")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert command.stdout is not None
    try:
        text = iter(command.stdout.readline, "")
        shown = [next(text)]
        while "t-w1" not in shown[-1] and "ray-w1" not in shown[-1]:
            shown.append(next(text))
        dashboard = next(s for s in shown if "RAY_API_SERVER_ADDRESS" in s).strip().partition("=")[2]
        request = urllib.request.Request(f"{dashboard}/api/version", headers=bearer(tmp_path / "token"))
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
    finally:
        command.send_signal(signal.SIGINT)
    assert command.wait(timeout=600) == 0
    wait_until(lambda: f"fr{command.pid}" not in Path("/proc/net/dev").read_text(), "the cable of this machine is gone")


def test_the_images_head_and_worker_form_a_cluster_and_pass_the_compose_files_health_checks(hosts: Hosts, token: Path) -> None:
    head, worker = hosts.add("head"), hosts.add("worker")
    environment = {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token), "FEDRAY_HEAD": f"{head.address}:6379"}

    def started(host: Host, *arguments: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "cluster.entrypoint", *arguments]
        return host.run(line, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def healthy(host: Host, port: int, path: str) -> bool:
        try:
            with host.network(), urllib.request.urlopen(f"http://localhost:{port}{path}", timeout=5) as answer:
                return b"success" in answer.read()
        except OSError:
            return False

    processes = [started(head, "head")]
    wait_until(lambda: healthy(head, 8265, "/api/gcs_healthz"), "the head is healthy", 300)
    processes.append(started(worker, "worker", "--num-cpus=1", "--resources", '{"site": 1}'))
    wait_until(lambda: healthy(worker, 52365, "/api/local_raylet_healthz"), "the worker is healthy", 300)
    assert where(worker, environment | {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": f"{head.address}:6379"}, "site") == "t-worker"
    assert status(worker, f"http://{head.address}:8265/api/version", {}) == 401
    for process in reversed(processes):
        process.terminate()
        process.wait(timeout=600)
