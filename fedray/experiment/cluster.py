"""Joining or starting Ray."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedray.config import RayCluster
from fedray.errors import ConfigError, first_line

#: Ray namespace of fedray's actors.
NAMESPACE = "fedray"

#: CPUs up to which a local Ray's processes import beforehand. It starts one a CPU, and one that has then nothing to do holds 0.18 GB more.
_FEW = 8


@dataclass(frozen=True)
class Place:
    """Where a run will be: the Ray of this process, a cluster at ``address``, or (neither) a local Ray of its own."""

    inside: bool = False
    address: str | None = None

    @property
    def own(self) -> bool:
        """The run starts its Ray itself, and ends it."""
        return not self.inside and self.address is None


def find_place(settings: RayCluster) -> Place:
    """Which Ray to use; starts and joins nothing.

    Raises:
        ConfigError: the address is none, or nothing answers there.
    """
    import ray

    if ray.is_initialized():
        return Place(inside=True)
    return Place(address=_address(settings))


@contextmanager
def joined(place: Place, settings: RayCluster, announce: Callable[[str], None] = lambda where: None) -> Iterator[None]:
    """Be in Ray at ``place``; a local Ray ends with the block.

    ``announce`` is called with what is about to be done, where a cluster is joined.

    Raises:
        ConfigError: the cluster does not let us in.
    """
    # Ray otherwise asks for usage statistics and warns about defaults of the next version.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if place.inside:
        announce("using the Ray of this process")
        yield
        return
    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if place.address is None:
        _private_token()
        os.environ.setdefault("RAY_free_objects_batch_size", "1")  # else what a round has left is freed a second later
        if (settings.cpus or os.cpu_count() or 1) <= _FEW:  # else client actors begin to import when the driver has
            os.environ.setdefault("RAY_preload_python_modules", "fedray.experiment.job")
        ray.init(address="local", num_cpus=settings.cpus, num_gpus=settings.gpus, include_dashboard=False, **common)
    else:
        announce(f"joining Ray at {place.address}")
        try:
            ray.init(address=place.address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"ray.address: cannot join the Ray cluster at {place.address} ({first_line(error)}); see RAY_AUTH_MODE for tokens."
            ) from None
    try:
        yield
    finally:
        ray.shutdown()


def off_the_head() -> dict[str, str]:
    """A label selector that keeps the driver actor off the head, whose loss it then survives; empty where there is no other node.

    Not affinity to one node: where that is soft, Ray may put the actor on the head all the same.
    """
    import ray

    nodes = [n for n in ray.nodes() if n["Alive"]]
    heads = [n["NodeID"] for n in nodes if "node:__internal_head__" in n["Resources"]]
    return {"ray.io/node-id": f"!{heads[0]}"} if heads and len(nodes) > len(heads) else {}


def _address(settings: RayCluster) -> str | None:
    """The address to join, or None to start a local Ray."""
    given = settings.address
    if given == "local":
        return None
    if given == "auto":
        found = os.environ.get("RAY_ADDRESS") or _running_here()
        return None if found in (None, "local") else found
    if given.startswith("ray://"):
        raise ConfigError(f"ray.address: {given} is the address of Ray's client server; give HOST:PORT of the head (usually port 6379).")
    host, _, port = given.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"ray.address: '{given}' should be auto, local, or HOST:PORT of a Ray head.")
    try:
        socket.create_connection((host, int(port)), timeout=settings.connect_timeout).close()
    except OSError as error:
        raise ConfigError(
            f"ray.address: nothing answers at {given} ({error.strerror or error}); start Ray there (`ray start --head`), or use ray.address=local."
        ) from None
    return given


def _running_here() -> str | None:
    """The Ray head that ``ray start`` noted on this machine, if it answers.

    Not any head whose process can be found: another run's local cluster is closed to this one, and joining it would never end.
    """
    from ray._private.services import find_bootstrap_address

    address = find_bootstrap_address(None)
    if not address:
        return None
    host, _, port = str(address).rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        return None
    return str(address)


def _private_token() -> None:
    """Give local clusters a token that nobody else has, so that they are closed to the machine's other users.

    Ray turns token mode on for local clusters; left to itself it writes a token into the home directory,
    readable for all, which changes how the user's later clusters behave. It reads the token once in a
    process, so this one stays in the environment until the process ends.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
