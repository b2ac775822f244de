"""A silo behind an HTTP proxy, which alone knows the coordinator's name: it enrols, rotates and is linked through it, and the proxy sees TLS only."""

from __future__ import annotations

import base64
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from federations import federation, now

from fedray.silos import admission, enrolment
from fedray.silos.certificates import read_gateway_credentials, read_silo_credentials
from fedray.silos.dialer import Dialer
from fedray.silos.enrolment_client import Address, ask, ask_again
from fedray.silos.enrolment_service import EnrolmentService
from fedray.silos.gateway import Gateway
from fedray.silos.parcels import Parcel

HOST = "gateway.federation.example"  # no DNS knows it
USER = base64.b64encode(b"hospital:pass").decode()


class Proxy:
    """Answers CONNECT for ``HOST`` with a connection to loopback; ``asked`` and ``heard`` are what it was told and what went up through it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heard = bytearray()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._tunnel, args=(self._server.accept()[0],), daemon=True).start()

    def _tunnel(self, inner: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += inner.recv(1)
        self.asked.append(head.decode())
        host, _, port = head.split()[1].decode().rpartition(":")
        assert host == HOST
        outer = socket.create_connection(("127.0.0.1", int(port)))
        inner.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        back = threading.Thread(target=self._pump, args=(outer, inner, None), daemon=True)
        back.start()
        self._pump(inner, outer, self.heard)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, heard: bytearray | None) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if heard is not None:
                    heard += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy()
    monkeypatch.setenv("https_proxy", f"http://hospital:pass@127.0.0.1:{proxy.port}")
    for name in ("grpc_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield proxy
    finally:
        proxy.close()


def test_a_silo_behind_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, identity = federation(tmp_path / "federation", names=(HOST,)), tmp_path / "a"
    gateway = Gateway("127.0.0.1:0", lambda: read_gateway_credentials(home))
    with proxied(monkeypatch) as proxy, EnrolmentService(home, Address("127.0.0.1", 0), lambda line: None) as service:
        serving = threading.Thread(target=service.serve_forever, args=(0.01,))
        serving.start()
        try:
            place = Address(HOST, service.server_port)
            invitation = admission.invite(home, "a", str(place), now())
            enrolment.enrol(identity, "a", invitation, lambda *asked: ask(invitation, *asked), now())
            enrolment.rotate(identity, lambda *asked: ask_again(identity, place, *asked), now())
        finally:
            service.shutdown()
            serving.join()
        assert len(proxy.asked) == 3
        gateway.start()
        stop = threading.Event()
        dialer = Dialer(
            f"{HOST}:{gateway.port}", lambda: read_silo_credentials(identity), lambda _, p: p, lambda _, p: p, tmp_path / "state"
        )
        dialling = threading.Thread(target=dialer.run, args=(stop,))
        dialling.start()
        try:
            said = Parcel(b'{"said": "to be seen by nobody"}')
            assert gateway.submit("a", secrets.token_hex(16), said, 60.0).result() == said
        finally:
            stop.set()
            dialling.join()
            gateway.stop()
        assert all(f"Basic {USER}" in head for head in proxy.asked)
        assert invitation.secret.hex().encode() not in proxy.heard
        assert b"to be seen by nobody" not in proxy.heard
        assert bytes(proxy.heard[:2]) == b"\x16\x03"
