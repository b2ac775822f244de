"""The silo's side of enrolment over the network: it dials, and trusts the federation that its token or its identity names, and nobody else."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import urllib.parse
import urllib.request
from pathlib import Path

from fedray.errors import FedrayError
from fedray.silos.certificates import FEDERATION, IDENTITY, fingerprint
from fedray.silos.hostport import Address
from fedray.silos.invitations import Invitation

#: Port of the enrolment unless another is named.
PORT = 7444
#: Bytes of a request, and of an answer.
LARGEST = 1 << 16
_PATIENCE = 30.0  # seconds without a byte


def ask(invitation: Invitation, request: bytes, proof: bytes) -> tuple[bytes, bytes]:
    """Have a silo admitted by its token.

    Args:
        invitation: what the token says.
        request: the silo's request for a certificate, PEM.
        proof: that it has the key of its receipts.

    Returns:
        The silo's certificate and the authority's certificate, PEM.

    Raises:
        FedrayError: the address does not answer, is not the token's federation, or refuses.
    """
    address = Address.of(invitation.address, "address")
    # Nothing secret has been said before this comparison; only then is the secret sent, to who has a certificate of that authority.
    federation = _field(_exchange(address, "GET", "/federation", None, _unchecked()), "federation", address)
    try:
        known = fingerprint(federation) == invitation.federation
    except ValueError:
        known = False
    if not known:
        raise FedrayError(
            f"{address}: is not the federation that the token names; somebody else answers there, and nothing was sent to it."
        )
    body = {"request": request.decode(), "proof": proof.hex(), "secret": invitation.secret.hex()}
    return _certified(_exchange(address, "POST", "/enrol", body, _trusting(federation)), address)


def ask_again(identity: Path, address: Address, request: bytes, proof: bytes) -> tuple[bytes, bytes]:
    """Have a silo's certificate renewed, as :func:`ask`, for the certificate in its directory.

    Raises:
        FedrayError: the address does not answer, is not the silo's federation, or refuses.
    """
    context = _trusting((identity / FEDERATION).read_bytes())
    context.load_cert_chain(identity / IDENTITY)
    return _certified(_exchange(address, "POST", "/renew", {"request": request.decode(), "proof": proof.hex()}, context), address)


def _unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _trusting(federation: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=federation.decode())
    return context


def _exchange(address: Address, method: str, path: str, body: dict[str, str] | None, context: ssl.SSLContext) -> dict[str, str]:
    connection = _connection(address, context)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        status, data = answer.status, answer.read(LARGEST)
    except ssl.SSLCertVerificationError as error:
        raise FedrayError(
            f"{address}: shows a certificate that does not count here ({error.verify_message}); it is not this federation's enrolment, or its "
            "name is not in the certificate (fedray federation renew --name)."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise FedrayError(f"{address}: does not answer ({getattr(error, 'strerror', None) or error or type(error).__name__}).") from None
    finally:
        connection.close()
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FedrayError(f"{address}: does not answer as a federation's enrolment does (status {status}); look at the address.")
    if status != 200:
        raise FedrayError(f"{address} refuses: {found.get('refused', f'status {status}')}")
    return found


def _connection(address: Address, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    """Return a connection, not opened yet, by way of the proxy that gRPC takes for the link, too. TLS ends behind the proxy, not in it."""
    said = next((os.environ[name] for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)), "")
    proxy = urllib.parse.urlsplit(said if "//" in said else f"//{said}")
    if not proxy.hostname or urllib.request.proxy_bypass(address.host):
        return http.client.HTTPSConnection(address.host, address.port, timeout=_PATIENCE, context=context)
    user = f"{urllib.parse.unquote(proxy.username or '')}:{urllib.parse.unquote(proxy.password or '')}".encode()
    headers = {"Proxy-Authorization": f"Basic {base64.b64encode(user).decode()}"} if proxy.username else {}
    connection = http.client.HTTPSConnection(proxy.hostname, proxy.port or 443, timeout=_PATIENCE, context=context)
    connection.set_tunnel(address.host, address.port, headers)
    return connection


def _certified(found: dict[str, str], address: Address) -> tuple[bytes, bytes]:
    return _field(found, "certificate", address), _field(found, "federation", address)


def _field(found: dict[str, str], key: str, address: Address) -> bytes:
    if key not in found:
        raise FedrayError(f"{address}: the answer has no field '{key}'; look at the address.")
    return found[key].encode(errors="replace")
