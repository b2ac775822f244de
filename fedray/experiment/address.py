"""Chooses and checks the address of a Ray cluster before joining it.

Ray itself waits forever for a head that does not answer, and joins a ``ray://`` address as another kind of client, whose work outlives it.
So every address, from the config or from the environment, is checked here first, within a time limit.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from fedray.config import RayCluster
from fedray.errors import ConfigError, first_line

#: Ray's variable with the address of the cluster that a process is in.
VARIABLE = "RAY_ADDRESS"

_LOCAL = "use ray.address=local"
_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file that holds the cluster's token"


def choose_address(settings: RayCluster) -> str | None:
    """Return the address to join, at which a head answers, or None to start a local Ray.

    ``auto`` means ``RAY_ADDRESS`` if it is set, else the head that ``ray start`` has recorded on this machine, if that answers.

    Raises:
        ConfigError: the address is none of a Ray head, no head answers within ``connect_timeout`` seconds, or no node of its cluster runs
            on this machine. The sentence begins with ``ray.address`` or ``RAY_ADDRESS``, the source of the address.
    """
    name, given = "ray.address", settings.address
    if given == "auto" and os.environ.get(VARIABLE, "auto") not in ("", "auto"):
        name, given = VARIABLE, os.environ[VARIABLE]
    if given == "local":
        return None
    if given == "auto":
        noted = _noted_here()
        if noted is None:
            return None
        given = noted
    limit = time.monotonic() + settings.connect_timeout
    host, port = _parse(name, given)
    _connect(name, given, host, port, limit)
    _ask_head(name, given, limit)
    return given


def _parse(name: str, given: str) -> tuple[str, int]:
    """Split HOST:PORT into host and port."""
    scheme, mark, _ = given.partition("://")
    if mark:
        what = "Ray's client server" if scheme == "ray" else "the dashboard, to which jobs are submitted"
        raise ConfigError(f"{name}: {given} is the address of {what}; give HOST:PORT of the head (usually port 6379).")
    host, _, port = given.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(f"{name}: '{given}' should be auto, local, or HOST:PORT of a Ray head.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _connect(name: str, given: str, host: str, port: int, limit: float) -> None:
    """Refuse an address at which nothing listens. The look-up of a name has no time limit, so it is made in a thread."""
    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            socket.create_connection((host, port), timeout=max(0.1, limit - time.monotonic())).close()
            outcome.append(None)
        except (OSError, UnicodeError) as error:
            outcome.append(getattr(error, "strerror", None) or first_line(error))

    thread = threading.Thread(target=attempt, name="connect-to-head", daemon=True)
    thread.start()
    thread.join(max(0.1, limit - time.monotonic()))
    why = outcome[0] if outcome else "timed out"
    if why is not None:
        raise ConfigError(f"{name}: nothing answers at {given} ({why}); start Ray there (`ray start --head`), or {_LOCAL}.")


def _ask_head(name: str, given: str, limit: float) -> None:
    """Refuse an address where another program listens, where the head refuses us, or whose cluster has no node on this machine."""
    import grpc
    from ray._private import services
    from ray._private.gcs_utils import create_gcs_channel  # Ray's own clients of the head wait forever
    from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    def left() -> float:
        return max(0.1, limit - time.monotonic())

    try:
        channel = create_gcs_channel(given)
    except Exception as error:  # certificates or a token that cannot be read raise various errors
        raise ConfigError(f"{name}: cannot join the Ray cluster at {given} ({first_line(error)}); check RAY_TLS_* and {_TOKEN}.") from None
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=left())
        while True:
            nodes = services.find_node_ids()
            wanted = [gcs_service_pb2.GetAllNodeInfoRequest.NodeSelector(node_id=bytes.fromhex(node)) for node in nodes]
            request = gcs_service_pb2.GetAllNodeInfoRequest(node_selectors=wanted, state_filter=gcs_pb2.GcsNodeInfo.ALIVE)
            if nodes and stub.GetAllNodeInfo(request, timeout=left()).node_info_list:
                return
            if time.monotonic() > limit:
                raise ConfigError(
                    f"{name}: no node of the Ray cluster at {given} runs on this machine, so it cannot be joined from here; "
                    f"submit the run as a job (fedray submit), start a node here (`ray start --address={given}`), or {_LOCAL}."
                )
            time.sleep(0.2)  # a node may be about to start
    except grpc.RpcError as error:
        raise ConfigError(f"{name}: {_refusal(given, error, grpc.StatusCode)}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot join the Ray cluster at {given} ({first_line(error)}).") from None
    finally:
        channel.close()


def _refusal(given: str, error: Any, codes: Any) -> str:
    """Return a sentence on an RPC error of the address."""
    if error.code() in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
        return f"the Ray cluster at {given} does not let us in ({error.details()}); {_TOKEN}, or {_LOCAL}."
    if error.code() == codes.DEADLINE_EXCEEDED:
        why = "no answer within ray.connect_timeout"
    else:
        why = str(error.details() or error.code().name).rpartition("last error: ")[2]
    return (
        f"what listens at {given} does not answer as a Ray head ({why}); give HOST:PORT of the head (usually port 6379), and where the "
        f"cluster uses TLS set RAY_USE_TLS and the RAY_TLS_* variables; or {_LOCAL}."
    )


def _noted_here() -> str | None:
    """Return the address of the Ray head that ``ray start`` has recorded on this machine, if something listens there.

    Other heads on the machine are not used: another run's local cluster refuses this run, and joining it would never end.
    """
    from ray._private.services import find_bootstrap_address

    address = find_bootstrap_address(None)
    host, _, port = str(address or "").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        return None
    return str(address)
