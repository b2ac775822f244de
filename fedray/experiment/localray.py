"""Starts a local Ray that only this run can use, and removes everything that it has written.

It listens on the loopback address only and asks for a token that no other user has. Its files (sockets, logs, spilled objects) lie in a
directory that only its user can enter and that is removed at the end. A directory that a killed process has left is removed at the next
start.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fedray.config import RayCluster
from fedray.errors import BudgetReached, ConfigError, FedrayError, Stopped, first_line

log = logging.getLogger(__name__)

#: Largest number of CPUs with which a local Ray's processes import fedray beforehand. Ray starts one process per CPU; each that then
#: stays idle holds 0.18 GB more.
_FEW = 8

#: Longer limits than Ray's own (30 s, 30 s, 60 s) for the start of a node's processes, which are slow on a busy machine.
_PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "150000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "180",
}

_LOCK = "fedray.lock"

#: The longest path of a socket below the directory for temporary files, and the number of bytes that a socket's path may have.
_SOCKET = "/fedray-0000/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_LONGEST = 103 if sys.platform == "darwin" else 107


def temporary_files() -> Path:
    """Return the directory of Ray's files: ``RAY_TMPDIR``, ``TMPDIR`` (Linux), or /tmp.

    Raises:
        ConfigError: the paths of Ray's sockets would be too long there.
    """
    names = ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform.startswith("linux") else [])]
    name = next((n for n in names if n in os.environ), None)
    base = os.path.abspath(os.environ[name]) if name is not None else "/tmp"
    room = _LONGEST - len(_SOCKET)
    if name is not None and len(os.fsencode(base)) > room:
        raise ConfigError(
            f"{name}: {base} is too long for the sockets of a local Ray, whose paths may have {_LONGEST} bytes; "
            f"set {name} to a directory of at most {room} bytes, such as /tmp."
        )
    return Path(base)


@contextmanager
def local_ray(settings: RayCluster, options: Mapping[str, Any], announce: Callable[[str], None]) -> Iterator[None]:
    """Run a local Ray within the block.

    Args:
        settings: CPUs and GPUs.
        options: more arguments of ``ray.init``.
        announce: called with a clause if Ray is started a second time.

    Raises:
        ConfigError: the directory for temporary files cannot be used.
        FedrayError: Ray does not start.
    """
    import ray

    _private_token()
    os.environ.setdefault("RAY_free_objects_batch_size", "1")  # otherwise objects of a round are freed a second later
    if (settings.cpus or os.cpu_count() or 1) <= _FEW:  # otherwise client actors begin to import only after the driver has
        os.environ.setdefault("RAY_preload_python_modules", "fedray.experiment.driver_actor")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    base = temporary_files()
    _remove_abandoned(base)
    with _own_directory(base) as directory:
        own = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "include_dashboard": False}
        try:
            _start({**own, **options, "address": "local", "_temp_dir": str(directory / "r")}, announce)
            yield
        finally:
            ray.shutdown(wait_for_processes=True)


def _start(options: Mapping[str, Any], announce: Callable[[str], None]) -> None:
    """Start Ray, at most twice; processes of a failed start are ended first."""
    import ray

    for again in (True, False):
        try:
            with _on_loopback():
                ray.init(**options)
            return
        except BaseException as error:
            _end_half_started(error.__traceback__)
            ray.shutdown(wait_for_processes=True)
            if not isinstance(error, Exception):
                raise
            if isinstance(error, OSError | ValueError) and not isinstance(error, TimeoutError | ConnectionError):
                raise FedrayError(
                    f"a local Ray cannot be started here ({first_line(error)}); mend that, or join a cluster (ray.address)."
                ) from error
            if not again:
                raise FedrayError(
                    f"a local Ray did not start, in two attempts ({first_line(error)}); the machine may be too busy: start again when it is "
                    "less so, give Ray fewer CPUs (ray.cpus=1), or start one that stays (`ray start --head`) and join it (ray.address)."
                ) from error
            announce(f"a local Ray did not start in time ({first_line(error)}); trying once more")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let the Ray that is started within the block listen on 127.0.0.1 only.

    Ray does so by itself on systems where it supports no cluster of several nodes (macOS, Windows). This sets the same switch, which Ray
    reads from the environment only once, at import.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _end_half_started(trace: TracebackType | None) -> None:
    """End the processes of the node that was being started when the error was raised; Ray itself leaves them until this process ends."""
    from ray._private.node import Node

    while trace is not None:
        node = trace.tb_frame.f_locals.get("self")
        if isinstance(node, Node) and hasattr(node, "all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            return
        trace = trace.tb_next


@contextmanager
def _own_directory(base: Path) -> Iterator[Path]:
    """Make a directory that only this user can enter, and hold its lock within the block; afterwards the directory is removed.

    If the run fails, the directory stays until the next start, because Ray's logs in it have the clients' and the driver's tracebacks.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        directory = base / f"fedray-{secrets.token_hex(2)}"
        while directory.exists():
            directory = base / f"fedray-{secrets.token_hex(2)}"
        directory.mkdir(mode=0o700)
        unlocked = directory / "lock.new"
        lock = os.open(unlocked, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{error.filename}: no directory for a local Ray can be made there ({error.strerror}); set TMPDIR.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unlocked.rename(directory / _LOCK)  # the name appears only once the file is locked
        yield directory
        _remove(directory)
    except (ConfigError, Stopped, BudgetReached, KeyboardInterrupt, SystemExit):
        _remove(directory)
        raise
    except Exception:
        log.info("Ray's logs of this run stay in %s until the next local Ray starts", directory)
        raise
    finally:
        os.close(lock)


def _remove_abandoned(base: Path) -> None:
    """Remove directories of this user's processes that were killed. Those of others, and of processes that live, stay."""
    for directory in base.glob("fedray-????"):
        with suppress(OSError):
            status = directory.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(directory)
            finally:
                os.close(lock)


def _remove(directory: Path) -> None:
    """Remove a directory; its lock last, so that it is found again where something could not be removed yet."""
    shutil.rmtree(directory / "r", ignore_errors=True)
    if not (directory / "r").exists():
        shutil.rmtree(directory, ignore_errors=True)


def _private_token() -> None:
    """Give local clusters a secret token, so that the machine's other users cannot use them.

    Ray turns token mode on for local clusters; left to itself it writes a token into the home directory,
    readable for all, which changes how the user's later clusters behave. It reads the token once in a
    process, so this one stays in the environment until the process ends.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
