"""The gateway: where silos' links arrive, and from where orders go to them. A plain class, thread-safe; nothing of it needs Ray."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc

from fedray.errors import FedrayError
from fedray.silos.certificates import CertificateRefused, GatewayCredentials, check_own, peer_client, silo_of
from fedray.silos.counter import Counter
from fedray.silos.doorway import Doorway, Visitor
from fedray.silos.frames import Kind, frame, read_frame, read_hello
from fedray.silos.link import GATEWAY_SETTINGS, METHOD, SERVICE, Seldom
from fedray.silos.outbox import Outbox
from fedray.silos.parcels import LARGEST, PROTOCOL, MalformedMessage, Parcel

log = logging.getLogger(__name__)

#: Causes for which a certificate does not count that this federation issued, so that the name in it is a silo's.
_OWN_ISSUER = ("revoked", "not_yet_valid", "expired")
_MOST_LINKS = 2000
_HELLO_WITHIN = 30.0  # seconds
_LOOK_EVERY = 0.5  # seconds between looks at orders whose time is over
_CHECK_EVERY = 5.0  # seconds between looks at certificates of silos that are connected


@dataclass(frozen=True)
class Presence:
    """Whether a silo is connected.

    Attributes:
        connected: whether it is.
        since: from when, UTC.
        address: from where it came last.
        boot: marks its process: another one after a restart; empty if it never was connected.
        cause: why it is away; empty while it is connected.
    """

    connected: bool
    since: datetime
    address: str
    boot: str
    cause: str


@dataclass
class _Stream:
    """A stream that is open."""

    context: Any
    visitor: Visitor
    begun: float
    client: str = ""
    outbox: Outbox | None = None
    fault: str = ""  # why the gateway ends it


class Gateway:
    """See the module's text.

    Args:
        listen: ``host:port``; port 0 takes one that is free.
        credentials: reads the gateway's own; asked at each handshake, so that renewed and revoked certificates count at once.
        largest: bytes that an answer may have.
    """

    def __init__(self, listen: str, credentials: Callable[[], GatewayCredentials], largest: int = LARGEST) -> None:
        self._listen = listen
        self._credentials = credentials
        self._largest = largest
        self._lock = threading.RLock()
        self._counters: dict[str, Counter] = {}
        self._presence: dict[str, Presence] = {}
        self._streams: list[_Stream] = []
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._server: Any = None
        self._doorway: Doorway | None = None
        self._seldom = Seldom()
        self.port = 0

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be listened on, or the credentials cannot be read.
            CertificateRefused: the gateway's own certificate has ended, so that no silo would take it.
        """
        check_own(self._credentials(), datetime.now(UTC))
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server = grpc.server(
            ThreadPoolExecutor(_MOST_LINKS, thread_name_prefix="silo-link"),
            handlers=[grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})],
            options=GATEWAY_SETTINGS,
            maximum_concurrent_rpcs=_MOST_LINKS,
        )
        try:
            self._doorway = Doorway(self._listen, self._credentials, self._server.add_insecure_port("127.0.0.1:0"))
        except FedrayError:
            self._server.stop(None)
            raise
        self.port = self._doorway.port
        self._server.start()
        self._keeper.start()

    def stop(self) -> None:
        """End every link; silos dial again for ever. Orders that are held fail."""
        self._stopped.set()
        with self._lock:
            for stream in self._streams:
                _end(stream, "the gateway is being stopped")
        if self._server is not None:
            self._server.stop(grace=1.0).wait()
        if self._doorway is not None:
            self._doorway.close()
        for counter in list(self._counters.values()):
            counter.stop()

    def submit(
        self,
        client: str,
        order: str,
        parcel: Parcel,
        timeout: float,
        control: bool = False,
        within: float | None = None,
        hold: bool = False,
    ) -> Future[Parcel]:
        """Send an order to a silo, now or when it is connected, and return its answer to come.

        The same order may be submitted again, by a gateway that was restarted, too: it is worked on once and its answer sent again.

        Args:
            client: the silo's name.
            order: 32 hexadecimal digits that no other order has.
            parcel: what is sent; its buffers must not change until the answer is there.
            timeout: seconds for which the silo may be away; an order at a silo that is connected may take as long as it does.
            control: whether it is answered beside work.
            within: seconds within which the answer must be there, away or not; None for no limit.
            hold: whether the silo keeps the answer until :meth:`release`, instead of until it has arrived here.

        The answer's errors are :class:`SiloAway` (away for too long, or no answer in time), :class:`OrderLost` (it was restarted over the order)
        and :class:`SiloRefused`.

        Raises:
            ValueError: the order is not 32 hexadecimal digits, or the parcel is not one that can be sent.
        """
        return self._counter(client).submit(_order(order), parcel, timeout, within, control, hold)

    def release(self, client: str, order: str) -> None:
        """Let the silo forget the answer to an order, or the order if it has not begun; also once the silo is connected again."""
        self._counter(client).release(_order(order))

    def silos(self) -> Mapping[str, Presence]:
        """Return who is connected, and why others that were are not."""
        with self._lock:
            return dict(self._presence)

    def _counter(self, client: str) -> Counter:
        with self._lock:
            return self._counters.setdefault(client, Counter(client, self._largest))

    def _serve(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        visitor = self._doorway.visitor(context.peer()) if self._doorway is not None else None
        if visitor is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "connections come through the gateway's door alone")
            raise AssertionError("gRPC has ended the stream")
        stream = _Stream(context, visitor, time.monotonic())
        with self._lock:
            self._streams.append(stream)
        try:
            outbox = self._admit(stream, requests)
            context.add_callback(outbox.close)
            threading.Thread(target=self._read, args=(stream, requests), daemon=True).start()
            yield frame(Kind.WELCOME, number=PROTOCOL)
            yield from outbox.frames()
            fault = stream.fault or outbox.fault
            if fault:
                context.abort(grpc.StatusCode.ABORTED, fault)
        finally:
            with self._lock:
                self._streams.remove(stream)
            self._left(stream)

    def _admit(self, stream: _Stream, requests: Iterator[bytes]) -> Outbox:
        """Return what a silo is to be sent; one that is not admitted is told why."""
        try:
            stream.client = peer_client(stream.visitor.certificate, self._credentials(), datetime.now(UTC))
            first = read_frame(next(requests))
            if first.kind is not Kind.HELLO:
                raise MalformedMessage(f"the first frame is of the kind {first.kind.name}")
            if first.number != PROTOCOL:
                raise MalformedMessage(f"the silo speaks version {first.number} of the protocol and the gateway version {PROTOCOL}")
            client, boot, cause = read_hello(first)
            peer_client(stream.visitor.certificate, self._credentials(), datetime.now(UTC), client)
        except (MalformedMessage, FedrayError) as error:
            if isinstance(error, CertificateRefused) and error.cause in _OWN_ISSUER:
                stream.client = silo_of(stream.visitor.certificate)
            code = grpc.StatusCode.UNAUTHENTICATED if isinstance(error, CertificateRefused) else grpc.StatusCode.INVALID_ARGUMENT
            self._refuse(stream, code, str(error))
        except (StopIteration, grpc.RpcError):
            self._refuse(stream, grpc.StatusCode.CANCELLED, stream.fault or "the silo said nothing")
        address = stream.visitor.address
        log.info("silo '%s' is connected from %s%s", client, address, f"; its last link ended because {cause}" if cause else "")
        with self._lock:
            stream.outbox = self._counter(client).connected()
            self._presence[client] = Presence(True, datetime.now(UTC), address, boot, "")
            return stream.outbox

    def _refuse(self, stream: _Stream, code: Any, cause: str) -> NoReturn:
        if self._seldom.due(stream.client or stream.visitor.address.rpartition(":")[0], cause):
            log.warning("a link from %s is refused: %s", stream.visitor.address, cause)
        with self._lock:
            old = self._presence.get(stream.client)
            if stream.client and (old is None or not old.connected):
                address = stream.visitor.address
                self._presence[stream.client] = Presence(False, datetime.now(UTC), address, old.boot if old else "", cause)
        stream.context.abort(code, cause)
        raise AssertionError("gRPC has ended the stream")

    def _read(self, stream: _Stream, requests: Iterator[bytes]) -> None:
        assert stream.outbox is not None
        counter = self._counter(stream.client)
        try:
            for data in requests:
                counter.hear(stream.outbox, read_frame(data))
        except MalformedMessage as error:
            log.warning("silo '%s' sent what is not of the protocol, its link is ended: %s", stream.client, error)
            _end(stream, f"malformed: {error}")
        except grpc.RpcError:
            pass
        except Exception as error:  # an error of ours must not leave a link that is never read again
            log.exception("the link of silo '%s' is ended", stream.client)
            _end(stream, f"the gateway failed with {type(error).__name__}")
        stream.outbox.close()

    def _left(self, stream: _Stream) -> None:
        if stream.outbox is None:
            return
        counter = self._counter(stream.client)
        with self._lock:
            if counter.disconnected(stream.outbox):
                cause = stream.fault or stream.outbox.fault or "its connection was closed or lost"
                log.info("silo '%s' is away: %s", stream.client, cause)
                self._presence[stream.client] = replace(
                    self._presence[stream.client], connected=False, since=datetime.now(UTC), cause=cause
                )

    def _keep(self) -> None:
        """Give up orders whose time is over, and end links whose certificates do not count any more."""
        checked = time.monotonic()
        while not self._stopped.wait(_LOOK_EVERY):
            now = time.monotonic()
            presence = self.silos()
            for client, counter in list(self._counters.items()):
                counter.expire(presence[client].cause if client in presence else "it has not been connected yet", now)
            for stream in list(self._streams):
                if stream.outbox is None and now - stream.begun > _HELLO_WITHIN:
                    _end(stream, f"no HELLO came within {_HELLO_WITHIN:.0f} s")
            if now - checked >= _CHECK_EVERY:
                checked = now
                self._check()

    def _check(self) -> None:
        try:
            credentials = self._credentials()
        except FedrayError as error:
            log.error("the gateway's credentials cannot be read, and so not who is revoked: %s", error)
            return
        try:
            check_own(credentials, datetime.now(UTC))
        except CertificateRefused as error:
            if self._seldom.due(error.cause):
                log.error("no silo connects any more: %s", error)
        for stream in list(self._streams):
            try:
                peer_client(stream.visitor.certificate, credentials, datetime.now(UTC))
            except CertificateRefused as error:
                log.warning("the link of silo '%s' is ended: %s", stream.client, error)
                _end(stream, str(error))


def _end(stream: _Stream, cause: str) -> None:
    stream.fault = stream.fault or cause
    if stream.outbox is not None:
        stream.outbox.close(cause)
    else:
        stream.context.cancel()


def _order(text: str) -> bytes:
    try:
        order = bytes.fromhex(text)
    except ValueError:
        order = b""
    if len(order) != 16:
        raise ValueError(f"'{text}' is not an order's id of 32 hexadecimal digits")
    return order
