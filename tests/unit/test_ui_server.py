"""The MLflow UI is quiet, tells its addresses once it listens, and says why it does not."""

from __future__ import annotations

import socket
import sys

import pytest

from fedray.errors import FedrayError
from fedray.tracking.uiserver import serve

LISTENS = """
import socket, sys
print("a banner")
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
server.accept()
server.accept()[0].recv(1)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_addresses_are_told_once_the_port_answers(capfd: pytest.CaptureFixture[str]) -> None:
    port, told = free_port(), list[str]()

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 1:
            socket.create_connection(("127.0.0.1", port)).close()  # it listens, and ends with the second visit

    assert serve([sys.executable, "-c", LISTENS, str(port)], "127.0.0.1", port, {"run": "http://here/run"}, tell) == 0
    assert told[0] == "run: http://here/run"
    assert "a banner" not in capfd.readouterr().out


def test_a_server_that_ends_says_why() -> None:
    with pytest.raises(FedrayError, match="does not listen on 127.0.0.1:.*no such store"):
        serve([sys.executable, "-c", "raise SystemExit('no such store')"], "127.0.0.1", free_port(), {}, print)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(FedrayError, match="listens on .* already"):
        serve([sys.executable, "-c", ""], "127.0.0.1", server.getsockname()[1], {}, print)
