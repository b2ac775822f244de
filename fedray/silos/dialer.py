"""The silo's end of the link: dials the gateway, for ever, and has the orders that arrive worked on. Nothing listens here."""

from __future__ import annotations

import itertools
import logging
import random
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from fedray.errors import ConfigError, FedrayError
from fedray.silos.certificates import CertificateRefused, SiloCredentials, check_own
from fedray.silos.desk import Desk, Handler
from fedray.silos.frames import Kind, hello, printable, read_frame
from fedray.silos.hostport import split_address
from fedray.silos.link import METHOD, SERVICE, SILO_SETTINGS, Seldom, alert, in_words
from fedray.silos.orderbook import OrderBook
from fedray.silos.parcels import LARGEST, PROTOCOL, MalformedMessage

log = logging.getLogger(__name__)

_SHORTEST_WAIT, _LONGEST_WAIT = 0.2, 10.0  # seconds until the next dial
_STEADY = 30.0  # seconds after which a link that ends is dialled again at once
_WELCOME_WITHIN = 30.0  # seconds
_LOOK_EVERY = 0.5  # seconds between looks at whether the link should end
_CHECK_EVERY = 30.0  # seconds between looks at whether the silo has a new certificate


@dataclass
class _Call:
    """A dial; ``ended`` says why this side ends it."""

    call: Any
    credentials: SiloCredentials
    begun: float
    welcome: bool = False
    ended: str = ""


class Dialer:
    """A silo's link.

    Args:
        address: of the gateway, ``host:port``.
        credentials: reads the silo's own; asked at each dial, and now and then, so that a renewed certificate is shown without a gap.
        handle: works on orders, one at a time and in order; takes an order's id and what it says. What it raises is a refusal.
        control: answers control orders beside them.
        state: the silo's directory; ``answers`` in it is what the link remembers.
        largest: bytes that an order may have.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(
        self,
        address: str,
        credentials: Callable[[], SiloCredentials],
        handle: Handler,
        control: Handler,
        state: Path,
        largest: int = LARGEST,
    ) -> None:
        try:
            split_address(address)
        except ValueError as error:
            raise ConfigError(f"gateway: {error}.") from None
        self._address = address
        self._credentials = credentials
        self._handle = handle
        self._control = control
        self._state = state
        self._boot = secrets.token_hex(16)  # marks this process
        self._largest = largest
        self._current: _Call | None = None
        self._seldom, self._said = Seldom(), ""
        self.cause = "it has not dialled yet"  # why there is no link; empty while there is one

    def run(self, stop: threading.Event) -> None:
        """Dial until ``stop`` is set; then the order that is worked on is finished and its answer kept.

        Raises:
            FedrayError: another process has the state, or it is damaged.
        """
        book = OrderBook(self._state / "answers")
        try:
            desk = Desk(book, self._handle, self._control, self._largest)
            desk.start()
            watch = threading.Thread(target=self._watch, args=(stop,), daemon=True)
            watch.start()
            failures, ended = 0, ""
            while not stop.is_set():
                begun = time.monotonic()
                self.cause, ended = self._dial(desk, stop, ended)
                lasted = time.monotonic() - begun
                failures = 0 if lasted > _STEADY else failures + 1
                self._log(self.cause)
                stop.wait(min(_LONGEST_WAIT, _SHORTEST_WAIT * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0))
            watch.join()
            desk.stop()
        finally:
            book.close()

    def _dial(self, desk: Desk, stop: threading.Event, ended: str) -> tuple[str, str]:
        """Return why the link is over, and why this side ended it, if it did."""
        try:
            credentials = self._credentials()
        except FedrayError as error:
            return str(error), ""
        outbox = desk.connected()
        channel = grpc.secure_channel(
            self._address, grpc.ssl_channel_credentials(credentials.federation, credentials.key, credentials.certificate), SILO_SETTINGS
        )
        first = hello(PROTOCOL, credentials.client, self._boot, ended)
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(itertools.chain([first], outbox.frames()))
        current = self._current = _Call(call, credentials, time.monotonic())
        if stop.is_set():
            call.cancel()
        try:
            for data in call:
                frame = read_frame(data)
                if current.welcome:
                    desk.hear(frame)
                elif frame.kind is Kind.WELCOME and frame.number == PROTOCOL:
                    current.welcome, self.cause = True, ""
                    self._log("")
                else:
                    raise MalformedMessage(
                        f"the gateway does not welcome version {PROTOCOL} of the protocol, but sends {frame.kind.name} {frame.number}"
                    )
            current.ended = current.ended or "the gateway ended the link"
        except (MalformedMessage, FedrayError) as error:
            current.ended = f"malformed: {error}" if isinstance(error, MalformedMessage) else str(error)
        except grpc.RpcError as error:
            return current.ended or self._why(error, current), current.ended
        except Exception as error:  # an error of ours ends the link, and not the silo
            log.exception("the link to the gateway is ended")
            current.ended = f"the silo failed with {type(error).__name__}"
        finally:
            outbox.close()
            with suppress(Exception):
                call.cancel()
            channel.close()
        return current.ended, current.ended

    def _why(self, error: Any, current: _Call) -> str:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED):
            return f"the gateway says: {printable(error.details() or '', 1000)}"
        if not current.welcome and re.search("closed|reset|Unwrap failed", error.details() or ""):
            try:
                check_own(current.credentials, datetime.now(UTC))
            except CertificateRefused as refused:
                return str(refused)
            if said := alert(self._address, current.credentials):
                return said
        return in_words(error.details() or "")

    def _watch(self, stop: threading.Event) -> None:
        """End a link that is not welcomed, or whose certificate has been renewed, or when all is to stop."""
        checked = time.monotonic()
        while not stop.wait(_LOOK_EVERY):
            current, now = self._current, time.monotonic()
            if current is None:
                continue
            if not current.welcome and now - current.begun > _WELCOME_WITHIN:
                self._end(current, f"the gateway said nothing within {_WELCOME_WITHIN:.0f} s")
            if now - checked >= _CHECK_EVERY:
                checked = now
                with suppress(FedrayError):
                    if self._credentials() != current.credentials:
                        self._end(current, "this silo has a new certificate")
        if self._current is not None:
            self._end(self._current, "this silo is being stopped")

    def _end(self, current: _Call, cause: str) -> None:
        current.ended = current.ended or cause
        current.call.cancel()

    def _log(self, cause: str) -> None:
        if cause != self._said:
            self._seldom, self._said = Seldom(), cause  # whatever changes is said
        if not self._seldom.due(cause):
            return
        if cause:
            log.warning("no link to the gateway at %s: %s; it is dialled again", self._address, cause)
        else:
            log.info("linked to the gateway at %s", self._address)
