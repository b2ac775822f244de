"""Where connections from outside arrive: shakes hands over TLS, says why it does not, and passes on what those say whose certificates count.

gRPC's own TLS would end a connection without a word to either side about the cause. So the gateway's gRPC listens on loopback alone, takes
nothing but what comes from here, and learns from here whose certificate was shown; who has no certificate of the federation never gets as far
as HTTP/2. Nothing is read ahead of the side that is slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fedray.errors import ConfigError, FedrayError
from fedray.silos.certificates import GatewayCredentials
from fedray.silos.hostport import split_address
from fedray.silos.link import Seldom, own_context

log = logging.getLogger(__name__)

_HANDSHAKE_WITHIN = 15.0  # seconds
_PART_WITHIN = 1.0  # seconds
_AT_ONCE = 2**18  # bytes that are passed on in one go
_BACKLOG = 512
_MOST_CONNECTIONS = 4000

_CAUSES = {
    "certificate has expired": "its certificate has expired; fedray silo enrol with a new token gives it another",
    "certificate is not yet valid": "its certificate is not valid yet; compare the clocks",
    "unsuitable certificate purpose": "its certificate is not a silo's",
    "self-signed certificate": "its certificate was not issued by this federation",
    "unable to get local issuer certificate": "its certificate was not issued by this federation",
    "certificate signature failure": "its certificate was not issued by this federation",
}


@dataclass(frozen=True)
class Visitor:
    """Who has shaken hands: the address, and the certificate that was shown (PEM)."""

    address: str
    certificate: bytes


class _Secured:
    """A connection over TLS, by hand: asyncio's own drops the alert that tells the peer why a handshake fails."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._raw = raw
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._sending = asyncio.Lock()

    async def shake(self) -> bytes:
        """Shake hands; returns the peer's certificate (PEM)."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()
                await self._part()
                raise
            else:
                await self._flush()
                certificate = self._tls.getpeercert(binary_form=True)
                assert certificate is not None
                return ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")

    async def pass_in(self, inner: socket.socket) -> None:
        """Pass on what the peer sends, until it sends no more."""
        while True:
            pieces, size = [], 0
            with contextlib.suppress(ssl.SSLWantReadError):
                while size < _AT_ONCE:
                    pieces.append(self._tls.read(_AT_ONCE))
                    size += len(pieces[-1])
                    if not pieces[-1]:
                        return
            if pieces:
                await self._loop.sock_sendall(inner, b"".join(pieces))
            else:
                await self._flush()  # what reading made TLS itself say
                await self._fill()

    async def pass_out(self, inner: socket.socket) -> None:
        """Pass on to the peer what is sent to it, until no more is."""
        while data := await self._loop.sock_recv(inner, _AT_ONCE):
            self._tls.write(data)
            await self._flush()

    async def _fill(self) -> None:
        data = await self._loop.sock_recv(self._raw, _AT_ONCE)
        if not data:
            raise ConnectionResetError("the peer closed the connection")
        self._incoming.write(data)

    async def _flush(self) -> None:
        async with self._sending:
            while data := self._outgoing.read():
                await self._loop.sock_sendall(self._raw, data)

    async def _part(self) -> None:
        """Let the peer read the alert: a connection that is closed over bytes that were not read is reset."""
        self._raw.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_PART_WITHIN):
                while await self._loop.sock_recv(self._raw, _AT_ONCE):
                    pass


class Doorway:
    """See the module's text.

    Args:
        listen: ``host:port``; port 0 takes one that is free.
        credentials: reads the gateway's own; asked at each handshake, so that a renewed certificate counts at once.
        inside: port on loopback to which it passes on.

    Raises:
        ConfigError: the address cannot be listened on, or the credentials cannot be read.
    """

    def __init__(self, listen: str, credentials: Callable[[], GatewayCredentials], inside: int) -> None:
        self._credentials = credentials
        self._inside = inside
        self._context, self._shown = own_context(credentials(), ssl.Purpose.CLIENT_AUTH), credentials()
        self._visitors: dict[int, Visitor] = {}
        self._seldom = Seldom()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            host, port = split_address(listen, least_port=0)
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._socket = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"gateway: '{listen}' cannot be listened on ({error}); name an address and a free port of this machine."
            ) from None
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def visitor(self, peer: str) -> Visitor | None:
        """Return who is at the other end of a connection to the inside, by gRPC's name of it; None if it did not come through here."""
        return self._visitors.get(int(peer.rpartition(":")[2]))

    def close(self) -> None:
        """End every connection and listen no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        task = self._loop.create_task(self._accept())
        self._loop.run_forever()
        for ended in (task, *self._tasks):
            ended.cancel()
        self._loop.run_until_complete(asyncio.gather(task, *self._tasks, return_exceptions=True))
        self._loop.close()

    async def _accept(self) -> None:
        while True:
            try:
                taken, address = await self._loop.sock_accept(self._socket)
            except OSError as error:  # as when there are no more file descriptors
                log.error("the gateway cannot take a connection: %s", error)
                await asyncio.sleep(1.0)
                continue
            if len(self._tasks) >= _MOST_CONNECTIONS:
                taken.close()
                if self._seldom.due("full"):
                    log.error("the gateway has %d connections and takes no more", _MOST_CONNECTIONS)
                continue
            task = self._loop.create_task(self._serve(taken, f"{address[0]}:{address[1]}"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, taken: socket.socket, address: str) -> None:
        with contextlib.closing(taken), contextlib.suppress(OSError):
            peer = _Secured(taken, self._current())
            try:
                async with asyncio.timeout(_HANDSHAKE_WITHIN):
                    certificate = await peer.shake()
            except (OSError, TimeoutError) as error:
                self._say(address, error)
                return
            with socket.socket() as inner:
                inner.setblocking(False)
                inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                inner.bind(("127.0.0.1", 0))
                port = inner.getsockname()[1]
                self._visitors[port] = Visitor(address, certificate)
                try:
                    await self._loop.sock_connect(inner, ("127.0.0.1", self._inside))
                    await _first(peer.pass_in(inner), peer.pass_out(inner))
                finally:
                    del self._visitors[port]

    def _say(self, address: str, error: Exception) -> None:
        reason = getattr(error, "reason", None) or ""
        if isinstance(error, ssl.SSLCertVerificationError):
            cause = next((words for sign, words in _CAUSES.items() if sign in error.verify_message), error.verify_message)
            said = f"is refused: {cause}"
        elif "ALERT" in reason:
            alert = reason.partition("ALERT_")[2].replace("_", " ").lower()
            said = f"ended because it does not accept the gateway's certificate: {alert}"
        elif "CERTIFICATE" in reason:
            said = "is refused: it shows no certificate"
        else:  # a port scan, a probe, a silo that does not accept the gateway's certificate and says nothing
            log.debug("a connection from %s did not shake hands: %s", address, error)
            return
        if self._seldom.due(address.rpartition(":")[0], said):
            log.warning("a connection from %s %s", address, said)

    def _current(self) -> ssl.SSLContext:
        try:
            credentials = self._credentials()
            if credentials != self._shown:
                self._context, self._shown = own_context(credentials, ssl.Purpose.CLIENT_AUTH), credentials
        except FedrayError as error:
            log.error("the gateway's credentials cannot be read, the former ones count: %s", error)
        return self._context


async def _first(*ways: Coroutine[Any, Any, None]) -> None:
    """Run until the first of two ways ends, and end the other."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
