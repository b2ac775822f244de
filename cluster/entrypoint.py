"""What the image does: ``head`` or ``worker`` (a Ray node), ``bucket NAME`` (make it in the S3 store), else a command of fedray.

Further arguments go to ``ray start`` or ``fedray``. Secrets come from files (`cluster.secret_files`); the token of the cluster stays in its
file. The process is replaced by what it starts, so signals arrive there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.secret_files import with_secrets

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")

#: Ray refuses a smaller object store.
_LEAST_STORE = 75 * 2**20

_DEFAULTS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What a round has left in the object store is freed at once, not once a second.
    "RAY_free_objects_batch_size": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A node that is told to stop lets actors finish for so long; give the container a longer grace period.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60",
    # A node that does not answer is given up after about 25 s instead of 64 s.
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    # A job that is stopped has so long to write a checkpoint, instead of 3 s.
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}


def command(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What to execute, and its environment.

    ``worker`` joins the head at ``FEDRAY_HEAD`` (head:6379).

    Raises:
        SystemExit: no arguments, a secret cannot be read, a node without a token, or too little shared memory.
    """
    if not arguments:
        raise SystemExit("give head, worker, bucket NAME, or a command of fedray (run, submit, plan, ...).")
    kind, rest = arguments[0], list(arguments[1:])
    resolved = {**_DEFAULTS, **with_secrets(environment, SECRETS)}
    if kind not in ("head", "worker"):
        return [sys.executable, "-m", *(("cluster.bucket", *rest) if kind == "bucket" else ("fedray", kind, *rest))], resolved
    if not resolved.get("RAY_AUTH_TOKEN") and not resolved.get("RAY_AUTH_TOKEN_PATH"):
        raise SystemExit(f"{kind}: a node needs the cluster's token; set RAY_AUTH_TOKEN_PATH to its file.")
    # Ray would take it for the cluster that this node is to join.
    resolved.pop("RAY_ADDRESS", None)
    if kind == "head":
        role = ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--dashboard-port=8265", "--num-cpus=0"]
    else:
        role = [f"--address={resolved.get('FEDRAY_HEAD', 'head:6379')}"]
    store = object_store(memory_limit(), _shared_memory())
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role, f"--object-store-memory={store}", *rest], resolved


def memory_limit() -> int:
    """Bytes of memory that this container may use: the control group's limit, else what the machine has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(int(Path(path).read_text()), machine)
        except (OSError, ValueError):
            continue  # the other version of control groups, or no limit ("max")
    return machine


def object_store(memory: int, shared: int) -> int:
    """Bytes for Ray's object store: three tenths of the memory, as far as /dev/shm holds it.

    Raises:
        SystemExit: /dev/shm, or the memory limit, is too small for any.
    """
    size = min(memory * 3 // 10, shared * 9 // 10)
    if size < _LEAST_STORE:
        raise SystemExit(
            f"the object store: {memory >> 20} MiB of memory and {shared >> 20} MiB of /dev/shm are too little; "
            "give the container at least 256 MiB of memory and of shared memory (shm_size)."
        )
    return size


def _shared_memory() -> int:
    status = os.statvfs("/dev/shm")
    return status.f_frsize * status.f_blocks


if __name__ == "__main__":
    line, variables = command(sys.argv[1:], os.environ)
    os.execvpe(line[0], line, variables)
