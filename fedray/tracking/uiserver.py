"""Runs the MLflow UI: quietly, and its addresses are told once its port answers."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import webbrowser
from collections.abc import Callable, Mapping, Sequence

from fedray.errors import FedrayError

_POLL = 0.1
#: Seconds within which the server must listen.
PATIENCE = 120.0
_TAIL = 2000  # bytes of the server's output in which the reason of its end is looked for


def serve(
    command: Sequence[str], host: str, port: int, links: Mapping[str, str], tell: Callable[[str], None], open_browser: bool = False
) -> int:
    """Run the server until it ends or Ctrl-C ends it; returns its exit status.

    Args:
        command: of the server, see :func:`fedray.tracking.ui.ui_command`.
        host, port: where it listens.
        links: addresses by name, which are told once the port answers.
        tell: is given a line each.
        open_browser: open the first address in the browser.

    Raises:
        FedrayError: the port is taken, or the server ended before it listened.
    """
    here = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    if _answers(here, port):
        raise FedrayError(f"--port: something listens on {here}:{port} already; choose another port, or open http://{here}:{port}.")
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            list(command), stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        )
        try:
            limit = time.monotonic() + PATIENCE
            while not _answers(here, port):
                if server.poll() is not None or time.monotonic() > limit:
                    said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL))
                    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
                    raise FedrayError(f"the MLflow UI does not listen on {here}:{port}: {lines[-1] if lines else 'it said nothing'}")
                time.sleep(_POLL)
            addresses = dict(links) or {"MLflow": f"http://{here}:{port}"}
            for name, link in addresses.items():
                tell(f"{name}: {link}")
            tell("Ctrl-C ends it.")
            if open_browser:
                webbrowser.open(next(iter(addresses.values())))
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            if server.poll() is None:
                server.terminate()
                server.wait()


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
