"""Malformed frames through real TLS and gRPC, and bytes that are no TLS at all, end no process of either end."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from certified import CertifiedFederation
from hostileframes import malformed
from linkends import CLIENT, Fault, echoing_gateway, silo, start
from processes import wait_until

from fedray.silos.certificates import SiloCredentials
from fedray.silos.dialer import Dialer
from fedray.silos.frames import Kind, frame, hello
from fedray.silos.link import GATEWAY_SETTINGS, METHOD, SERVICE, SILO_SETTINGS
from fedray.silos.parcels import PROTOCOL, Parcel

FRAMES = [pytest.param(300), pytest.param(10_000, marks=pytest.mark.slow)]
GROWTH = 300 * 2**20  # bytes of memory that a fuzzed process may take more


def streamed(port: int, shown: SiloCredentials, frames: int, draw: random.Random) -> int:
    """Send malformed frames to a gateway, each on a stream of its own, half of them after a good HELLO; returns how many were refused."""
    credentials = grpc.ssl_channel_credentials(shown.federation, shown.key, shown.certificate)
    refused = 0
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, SILO_SETTINGS) as channel:
        link = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        for number in range(frames):
            first = [hello(PROTOCOL, CLIENT, "", "")] if number % 2 else []
            data = malformed(draw)
            while not number % 2 and data[:1] == bytes([Kind.HELLO]):  # as the first frame, a HELLO is none that is malformed
                data = malformed(draw)
            try:
                for _ in link(iter([*first, data]), timeout=60):
                    pass
            except grpc.RpcError as error:
                refused += error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED)
    return refused


def thrown(port: int, shown: SiloCredentials, tries: int, draw: random.Random, directory: Path) -> None:
    """Send bytes that are no TLS, and bytes through TLS that are no HTTP/2."""
    identity = directory / "shown.pem"
    identity.write_bytes(shown.key + shown.certificate)
    context = ssl.create_default_context(cadata=shown.federation.decode())
    context.load_cert_chain(identity)
    context.set_alpn_protocols(["h2"])
    for number in range(tries):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as raw:
            if number % 2:
                raw.sendall(draw.randbytes(draw.choice([1, 100, 5000])))
            else:
                with context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
                    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if number % 4 else b""
                    wrapped.sendall(preface + draw.randbytes(draw.choice([9, 100, 5000])))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("frames", FRAMES)
def test_a_gateway_outlives_malformed_frames(frames: int, tmp_path: Path) -> None:
    federation = CertifiedFederation()
    shown = federation.silo(CLIENT)
    process, port = echoing_gateway(federation.gateway())
    try:
        before = psutil.Process(process.pid).memory_info().rss
        refused = streamed(port, shown, frames, random.Random(0))
        thrown(port, shown, frames // 10, random.Random(1), tmp_path)
        assert refused >= 0.8 * frames
        assert process.exitcode is None and psutil.Process(process.pid).memory_info().rss - before < GROWTH
        dialer, stop, heard = None, threading.Event(), threading.Event()

        def handle(order: str, parcel: Parcel) -> Parcel:
            heard.set()
            return parcel

        dialer = Dialer(f"127.0.0.1:{port}", lambda: shown, handle, handle, tmp_path)
        thread = threading.Thread(target=dialer.run, args=(stop,))
        thread.start()
        assert heard.wait(60.0), "the gateway serves an honest silo no more"
        stop.set()
        thread.join()
    finally:
        process.kill()
        process.join()


class HostileGateway:
    """Welcomes a silo, or does not, and sends what is malformed, until ``frames`` were; from then on it is told nothing more."""

    def __init__(self, federation: CertifiedFederation, frames: int) -> None:
        self.left, self.draw = frames, random.Random(2)
        shown = federation.gateway()
        self.server = grpc.server(ThreadPoolExecutor(8), options=GATEWAY_SETTINGS)
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, {METHOD: grpc.stream_stream_rpc_method_handler(self.link)})]
        )
        self.port = self.server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(shown.key, shown.certificate)], shown.federation, require_client_auth=True)
        )
        self.server.start()

    def link(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        next(requests)
        if self.left % 2:
            yield frame(Kind.WELCOME, number=PROTOCOL)
        self.left -= 1
        yield malformed(self.draw)
        for _ in requests:  # until the silo ends the link
            pass


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("frames", FRAMES)
def test_a_silo_outlives_malformed_frames(frames: int, tmp_path: Path) -> None:
    federation = CertifiedFederation()
    hostile = HostileGateway(federation, frames)
    process = start(silo, f"127.0.0.1:{hostile.port}", federation.silo(CLIENT), tmp_path, Fault(), 0.0)
    try:
        wait_until(lambda: hostile.left < frames - 20 or process.exitcode is not None, "the silo dials")
        before = psutil.Process(process.pid).memory_info().rss
        wait_until(lambda: hostile.left <= 0 or process.exitcode is not None, "the silo dials again and again", 3000.0)
        assert process.exitcode is None and psutil.Process(process.pid).memory_info().rss - before < GROWTH
    finally:
        hostile.server.stop(None)
        process.kill()
        process.join()
