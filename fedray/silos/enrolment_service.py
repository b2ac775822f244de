"""Serves enrolment and rotation to silos: HTTP over TLS, three paths, one request a connection.

``GET /federation`` gives the authority's certificate, which a silo holds against its token; ``POST /enrol`` admits by a token, ``POST /renew`` by the
certificate that the silo shows. What arrives is bounded in size, time and number, and is JSON with texts.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from typing import Any, cast

from fedray.errors import ConfigError, FedrayError, first_line
from fedray.silos import admission
from fedray.silos.certificates import FEDERATION, IDENTITY, CertificateRefused, check_own, read_gateway_credentials, silo_of
from fedray.silos.enrolment_client import LARGEST
from fedray.silos.hostport import Address

_AT_ONCE = 32  # connections
_LONGEST = 30.0  # seconds from a connection's first byte to its last


class EnrolmentService(ThreadingHTTPServer):
    """Enrolment of one federation, on one address.

    Args:
        directory: the federation's, with its authority.
        listen: address; port 0 takes a free one, which ``server_port`` tells.
        log: gets a sentence for each request.

    Raises:
        ConfigError: the address cannot be listened on, or the directory holds no federation.
        CertificateRefused: the gateway's certificate, which enrolment shows, has ended.
    """

    daemon_threads = True

    def __init__(self, directory: Path, listen: Address, log: Callable[[str], None]) -> None:
        self.directory, self.log = directory, log
        check_own(read_gateway_credentials(directory), datetime.now(UTC))
        admission.members(directory)
        self.address_family = AF_INET6 if ":" in listen.host else AF_INET
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        try:
            super().__init__((listen.host, listen.port), _Exchange)
        except OSError as error:
            raise ConfigError(f"--listen {listen}: cannot be listened on ({error.strerror or error}).") from None

    def context(self) -> ssl.SSLContext:
        """Return TLS with what the directory holds now, so that a renewed certificate needs no restart."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_cert_chain(self.directory / IDENTITY)
        made.load_verify_locations(self.directory / FEDERATION)
        made.verify_mode = ssl.CERT_OPTIONAL
        return made

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, or close it where there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, which ends when its time is over, whatever the other side does."""
        end = threading.Timer(_LONGEST, _hang_up, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line why a connection ended early."""
        error = sys.exc_info()[1]
        self.log(f"{client_address[0]}: the connection ended early ({'unknown' if error is None else first_line(error)})")


def _hang_up(request: socket) -> None:
    with suppress(OSError):
        request.shutdown(SHUT_RDWR)


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: EnrolmentService
    server_version, sys_version = "fedray", ""

    def setup(self) -> None:
        self.request.settimeout(_LONGEST)
        # The handshake is made here, in the connection's own thread: a peer that is silent keeps nobody else waiting.
        self.request = self.server.context().wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        with suppress(OSError):
            self.request.close()

    def do_GET(self) -> None:
        if self.path != "/federation":
            self._answer(404, {"refused": "there is no such path"})
            return
        self._answer(200, {"federation": (self.server.directory / FEDERATION).read_text()})

    def do_POST(self) -> None:
        served = {"/enrol": self._enrol, "/renew": self._renew}.get(self.path)
        try:
            if served is None:
                raise _Malformed(404, "there is no such path")
            certificate = served(self._body())
        except _Malformed as error:
            self._answer(error.status, {"refused": error.words})
            self.server.log(f"{self.client_address[0]}: refused: {error.words}")
        except (admission.AdmissionRefused, CertificateRefused) as error:
            self._answer(403, {"refused": str(error)})
            self.server.log(f"{self.client_address[0]}: refused: {error}")
        except FedrayError as error:  # the federation's own directory
            self._answer(500, {"refused": "the coordinator's service cannot answer; its log says why"})
            self.server.log(f"{self.client_address[0]}: failed: {error}")
        else:
            self.server.log(f"{self.client_address[0]}: silo '{silo_of(certificate)}' has a new certificate ({self.path[1:]})")
            federation = (self.server.directory / FEDERATION).read_text()
            self._answer(200, {"certificate": certificate.decode(), "federation": federation})

    def _enrol(self, body: dict[str, str]) -> bytes:
        return admission.admit(self.server.directory, *_asked(body), _hex(body, "secret"), datetime.now(UTC))

    def _renew(self, body: dict[str, str]) -> bytes:
        shown = cast(ssl.SSLSocket, self.request).getpeercert(binary_form=True)
        if not shown:
            raise _Malformed(401, "a rotation needs the silo's certificate, and none was shown")
        return admission.renew(self.server.directory, *_asked(body), ssl.DER_cert_to_PEM_cert(shown).encode(), datetime.now(UTC))

    def _body(self) -> dict[str, str]:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > LARGEST:
            raise _Malformed(413, f"a request has at most {LARGEST} bytes, and says how many")
        try:
            found = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise _Malformed(400, "a request is a JSON object of texts")
        return found

    def _answer(self, status: int, said: dict[str, str]) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing of what a peer sent as it is; :meth:`do_POST` says what happened."""


class _Malformed(Exception):
    """A request that is none; the words go to the silo."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


def _asked(body: dict[str, str]) -> tuple[bytes, bytes]:
    request = body.get("request")
    if request is None:
        raise _Malformed(400, "the field 'request' is missing")
    return request.encode(errors="replace"), _hex(body, "proof")


def _hex(body: dict[str, str], key: str) -> bytes:
    try:
        return bytes.fromhex(body[key])
    except (LookupError, ValueError):
        raise _Malformed(400, f"the field '{key}' is missing, or has other than hexadecimal digits") from None
