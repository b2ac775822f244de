"""The gRPC stream between a silo and the gateway: its name and settings, and the causes of its failures in plain words.

One method, one stream of frames either way, mutual TLS. The silo dials; keepalive pings of both sides find a link that is dead.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import Any

from fedray.silos.certificates import GatewayCredentials, SiloCredentials
from fedray.silos.frames import LONGEST_FRAME
from fedray.silos.hostport import split_address

_REPEAT_AFTER, _MOST_SAID = 600.0, 1000  # seconds, things

SERVICE, METHOD = "fedray.Silos", "Link"

#: Settings of both sides. Frames are bounded, so gRPC never holds more of a peer's than that; nothing is retried behind our back.
SETTINGS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", LONGEST_FRAME),
    ("grpc.max_send_message_length", LONGEST_FRAME),
    ("grpc.max_metadata_size", 16384),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
#: A channel of its own for each dial: another's back-off and addresses do not count.
SILO_SETTINGS: list[tuple[str, Any]] = [
    *SETTINGS,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]
GATEWAY_SETTINGS: list[tuple[str, Any]] = [
    *SETTINGS,
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]

_WORDS = {
    "Connection refused": "nothing listens there, or a firewall refuses",
    "DNS resolution failed": "the name is not known to this machine's DNS",
    "Domain name not found": "the name is not known to this machine's DNS",
    "Network is unreachable": "the network is unreachable",
    "No route to host": "there is no route to it",
    "certificate has expired": "the gateway's certificate has expired",
    "certificate is not yet valid": "the gateway's certificate is not valid yet; compare the clocks",
    "unable to get local issuer certificate": "the gateway's certificate was not issued by this silo's federation",
    "self signed certificate": "the gateway's certificate was not issued by this silo's federation",
    "certificate signature failure": "the gateway's certificate was not issued by this silo's federation",
    "unsupported certificate purpose": "the gateway's certificate is not a gateway's",
    "Hostname Verification Check failed": "the gateway's certificate is for another host name",
    "not in peer certificate": "the gateway's certificate is for another host name",
    "keepalive watchdog timeout": "the link went silent",
    "ping timeout": "the link went silent",
    "Deadline Exceeded": "it did not answer in time; a firewall may drop what is sent to it",
    "failed to connect": "it cannot be reached",
}
_ALERTS = {
    "CERTIFICATE_EXPIRED": "the gateway says that this silo's certificate has expired",
    "UNKNOWN_CA": "the gateway says that this silo's certificate was not issued by its federation",
    "UNSUPPORTED_CERTIFICATE": "the gateway says that this silo's certificate is not a silo's",
    "CERTIFICATE_UNKNOWN": "the gateway does not accept this silo's certificate",
    "BAD_CERTIFICATE": "the gateway does not accept this silo's certificate",
    "CERTIFICATE_REVOKED": "the gateway says that this silo's certificate is revoked",
    "CERTIFICATE_REQUIRED": "the gateway was shown no certificate",
}


class Seldom:
    """Decides whether something is said again, because what fails is tried for ever: once in ten minutes. Remembers a thousand things."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, ...], float] = {}

    def due(self, *what: str) -> bool:
        """Return whether something has not been said in the last ten minutes, and note that it is said now."""
        now = time.monotonic()
        if now - self._said.get(what, -_REPEAT_AFTER) < _REPEAT_AFTER:
            return False
        if len(self._said) >= _MOST_SAID:
            self._said.clear()
        self._said[what] = now
        return True


def in_words(details: str) -> str:
    """Return what gRPC says of a failure, in plain words where it is a known one."""
    for sign, words in _WORDS.items():
        if sign in details:
            return words
    return details or "the connection was closed"


def own_context(credentials: GatewayCredentials | SiloCredentials, purpose: ssl.Purpose) -> ssl.SSLContext:
    """Return settings of TLS that show one's own certificate and want one of the federation. The key is written to no disk."""
    context = ssl.create_default_context(purpose, cadata=credentials.federation.decode("ascii"))
    with os.fdopen(os.memfd_create("identity"), "wb") as file:
        file.write(credentials.key + credentials.certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def alert(address: str, credentials: SiloCredentials, seconds: float = 5.0) -> str:
    """Return why the gateway refuses a handshake, from the TLS alert that it sends; empty if it does not, or says nothing that is known.

    gRPC says no more than that the connection was closed, so this shakes hands once more and asks for nothing.

    Args:
        address: of the gateway, ``host:port``.
        credentials: what is shown.
        seconds: for which an answer is waited for.
    """
    host, port = split_address(address)
    context = own_context(credentials, ssl.Purpose.SERVER_AUTH)
    try:
        with socket.create_connection((host, port), seconds) as raw, context.wrap_socket(raw, server_hostname=host) as wrapped:
            while wrapped.recv(4096):  # a gateway that accepts says what its HTTP/2 settings are, and then waits
                pass
    except ssl.SSLError as error:
        said = (error.reason or "").upper()
        return next((words for sign, words in _ALERTS.items() if sign in said), "")
    except OSError:
        pass
    return ""
