"""The containers run as the manifests say: not as root, without capabilities, on a read-only root, with TLS and a token.

There is no Kubernetes here. Each pod is a host of its own (namespaces), with file systems mounted as its manifest says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from manifest_gcs import environment as variables_of
from manifests import WAITS, documents, pods, title
from paths import ROOT

from cluster import hosts as namespaces
from cluster.hosts import Host, Hosts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))]

TOKEN = "0123456789abcdef" * 4
SECONDS = 240.0

#: Arguments: the authority's directory (or "-"), how many directories to keep, these, then the command. /etc becomes an overlay, so that
#: mount points can be made in it; interpreter, environment and project stay reachable where they lie in root's home or in /tmp.
_POD = """
set -e
ca=$1; number=$2; shift 2
keep=("${@:1:number}"); shift "$number"
mkdir -p /mnt/etc /mnt/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work /etc
for i in "${!keep[@]}"; do mkdir -p "/mnt/keep$i"; mount --bind "${keep[i]}" "/mnt/keep$i"; done
mkdir -p /etc/fedray/ca /etc/fedray/tls
test "$ca" = - || mount --bind "$ca" /etc/fedray/ca
test -d /mnt/tls || mkdir -m 777 /mnt/tls
mount --bind /mnt/tls /etc/fedray/tls
mount -t tmpfs -o mode=1777,size=4g none /tmp
case "${keep[*]}" in */root/*) mount -t tmpfs -o mode=755 none /root;; esac
for i in "${!keep[@]}"; do
  case ${keep[i]} in /root/*|/tmp/*) mkdir -p "${keep[i]}"; mount --bind -o ro "/mnt/keep$i" "${keep[i]}";; esac
done
mount -o remount,mode=1777 /dev/shm
for point in $(findmnt -rn -o TARGET | grep -v -E '^/(proc|sys|dev|tmp|mnt)(/|$)' | grep -v '^/etc/fedray/tls$'); do
  mount -o remount,bind,ro "$point"
done
cd /tmp
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@pytest.fixture
def network() -> Iterator[Hosts]:
    with Hosts("frk") as made:
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("authority")
    subprocess.run([sys.executable, "-m", "cluster.tls", str(folder), "--host", "nobody"], cwd=ROOT, check=True, capture_output=True)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o444)  # as Kubernetes shows a Secret to a pod's group
    return folder


def container(kind: str, *path: Any) -> dict[str, Any]:
    value: Any = next(doc for doc in documents("overlays/cpu") if title(doc) == kind)
    for key in path:
        value = value[key]
    return dict(value)


def environment(made: dict[str, Any]) -> dict[str, str]:
    """A container's environment, with what KubeRay puts into it and the place of this project."""
    return {**variables_of(documents("overlays/cpu"), made), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}


def start(host: Host, command: list[str], env: dict[str, str], ca: Path | None = None, **kwargs: Any) -> subprocess.Popen[Any]:
    here = Path(sys.executable).parent
    env = {"PATH": f"{here}:{os.environ['PATH']}", **env}
    keep = [sys.base_prefix, sys.prefix, str(ROOT)]
    pod = ["unshare", "--mount", "--propagation", "private", "bash", "-c", _POD, "pod", str(ca or "-"), str(len(keep)), *keep]
    return host.run([*pod, *command], env=env, stderr=subprocess.STDOUT, **kwargs)


def certify(host: Host, authority: Path) -> None:
    step = container("RayCluster/fedray", "spec", "headGroupSpec", "template", "spec", "initContainers", 0)
    names = {"POD_IP": host.address, "FQ_RAY_IP": "fedray-head-svc.fedray.svc.cluster.local", "PYTHONPATH": str(ROOT)}
    done = start(host, [*step["command"], *step["args"]], names, authority, stdout=subprocess.PIPE, text=True)
    assert done.wait(SECONDS) == 0, done.stdout.read()


def status(host: Host, url: str, token: str | None = None, **headers: str) -> int:
    """The HTTP status; 0 where nothing answers."""
    request = urllib.request.Request(url, headers={**headers, **({"Authorization": f"Bearer {token}"} if token else {})})
    with host.network():
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def until(answers: Callable[[], bool], process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while not answers():
        assert process.poll() is None and time.monotonic() < end, f"it does not answer: {log.read_text()[-3000:]}"
        time.sleep(0.5)


def test_ray_pods_run_certified_and_confined(network: Hosts, authority: Path, tmp_path: Path) -> None:
    probe = container("RayCluster/fedray", "spec", "headGroupSpec", "template", "spec", "containers", 0)["readinessProbe"]["httpGet"]
    head, worker = network.add("head"), network.add("worker")
    # The rest of a node's `ray start` is what KubeRay 1.7 makes of the group's resources and rayStartParams.
    common = ["ray", "start", "--block", f"--dashboard-agent-listen-port={probe['port']}", "--metrics-export-port=8080"]
    local = {"RAY_ADDRESS": "127.0.0.1:6379"}  # as KubeRay sets it on the head
    commands = {
        head: [*common, "--head", "--no-monitor", "--dashboard-host=0.0.0.0", "--num-cpus=0", f"--node-ip-address={head.address}"],
        worker: [*common, f"--address={head.address}:6379", "--num-cpus=2", f"--node-ip-address={worker.address}"],
    }
    made = {pod.labels["ray.io/group"]: pod for pod in pods(documents("overlays/cpu")) if "ray.io/group" in pod.labels}
    specs = {head: made["headgroup"].spec, worker: made["cpu-clients"].spec}
    for host, command in commands.items():
        certify(host, authority)
        if host is worker:
            wait_for_the_head(host, specs[host], head.address)
        log = tmp_path / f"{host.name}.log"
        node = start(host, command, environment(specs[host]["containers"][0]) | (local if host is head else {}), stdout=log.open("wb"))
        url = f"http://{host.address}:{probe['port']}{probe['path']}"
        until(lambda url=url, host=host: status(host, url) == 200, node, log)

    jobs = f"http://{head.address}:8265/api/jobs/"
    assert [status(worker, jobs, token) for token in (None, "f" * 64, TOKEN)] == [401, 403, 200]

    code = (
        "import os, ray; ray.init(log_to_driver=False)\n"
        "@ray.remote(num_cpus=1)\n"
        "def look():\n"
        "    return os.getuid(), os.access('/etc', os.W_OK), os.path.exists('/etc/fedray/tls/ca.key'), ray.util.get_node_ip_address()\n"
        "print('seen', ray.get(look.remote(), timeout=120))"
    )
    said = submitted(worker, specs[worker], head.address, "python", "-c", code)
    assert f"seen (1000, False, False, '{worker.address}')" in said, said
    for exits, ended in ((2, "was stopped"), (3, "succeeded"), (1, "failed")):
        said = submitted(worker, specs[worker], head.address, "bash", "-c", f"(exit {exits}) || python -m cluster.ended $?")
        assert ended in said, said


def wait_for_the_head(host: Host, spec: dict[str, Any], address: str) -> None:
    """Run the container that KubeRay puts before a worker's; it ends when the head answers, which it would not without TLS."""
    waits = next(c for c in spec["initContainers"] if c["name"] == WAITS)
    script = re.sub(r"fedray-head-svc\.fedray\.svc\.cluster\.local", address, waits["args"][0])
    done = start(host, [*waits["command"], script], environment(waits), stdout=subprocess.PIPE, text=True)
    assert done.wait(SECONDS) == 0, done.stdout.read()
    plain = environment(waits) | {"RAY_USE_TLS": "0"}
    refused = start(host, ["ray", "health-check", "--address", f"{address}:6379"], plain, stdout=subprocess.DEVNULL)
    assert refused.wait(SECONDS) != 0


def submitted(host: Host, spec: dict[str, Any], address: str, *line: str) -> str:
    """What is said of a job whose entry point is ``line``, to its end."""
    submit = ["ray", "job", "submit", "--address", f"http://{address}:8265", "--", *line]
    process = start(host, submit, environment(spec["containers"][0]), stdout=subprocess.PIPE, text=True)
    return str(process.communicate(timeout=SECONDS)[0])


def test_mlflow_serves_its_names_and_no_other(network: Hosts, tmp_path: Path) -> None:
    server = container("Deployment/mlflow", "spec", "template", "spec", "containers", 0)
    env = {variable["name"]: variable["value"] for variable in server["env"] if "value" in variable}
    env |= {"MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db", "AWS_ACCESS_KEY_ID": "unused", "AWS_SECRET_ACCESS_KEY": "unused"}
    host, log = network.add("mlflow"), tmp_path / "mlflow.log"
    process = start(host, server["command"], env, stdout=log.open("wb"))
    base = f"http://{host.address}:5000"
    until(lambda: status(host, base + server["readinessProbe"]["httpGet"]["path"]) == 200, process, log)
    asked = f"{base}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    names = ("mlflow:5000", "mlflow.fedray.svc:5000", "mlflow.fedray.svc.cluster.local:5000", "127.0.0.1:31337", "localhost:5000")
    assert {name: status(host, asked, Host=name) for name in names} == dict.fromkeys(names, 200)
    assert status(host, asked, Host="elsewhere.example") == 403
