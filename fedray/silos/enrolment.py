"""How a silo gets its identity: keys that it makes itself and that never leave it, and a certificate from the federation that invited it.

The silo's directory holds ``identity.pem`` (key and certificate for TLS), ``federation.pem`` (whom it trusts), ``signing.pem`` (the key of its receipts,
Ed25519) and ``enrolment.json`` (where certificates are renewed). While it waits for an answer, the new key lies in ``pending.pem``: an enrolment that was cut
off goes on with the same key, for which the token still counts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedray.errors import ConfigError, FedrayError
from fedray.secure.identities import make_key
from fedray.secure.keyfiles import read_guarded
from fedray.silos import issuing
from fedray.silos.certificates import (
    FEDERATION,
    IDENTITY,
    SiloCredentials,
    check_own,
    fingerprint,
    life_of,
    read_silo_credentials,
    signing_of,
    silo_of,
)
from fedray.silos.invitations import Invitation, prove
from fedray.storage import read_json, write_atomic, write_json

SIGNING, PENDING, ENROLMENT = "signing.pem", "pending.pem", "enrolment.json"

#: Sends a request (PEM) and its proof to a federation; returns certificate and the authority's certificate, PEM.
Sender = Callable[[bytes, bytes], tuple[bytes, bytes]]


def enrol(directory: Path, client: str, invitation: Invitation, send: Sender, now: datetime, again: bool = False) -> SiloCredentials:
    """Make a silo's identity and have it admitted.

    Args:
        directory: where it will lie.
        client: the silo's name in its site file.
        invitation: what the token says.
        send: asks the federation; see :func:`fedray.silos.enrolment_client.ask`.
        now: time, with its zone.
        again: whether an identity that is there may be replaced; the key of receipts stays.

    Raises:
        ConfigError: the invitation is another client's, or there is an identity already.
        FedrayError: the federation refuses, or what it sent is not for this silo.
    """
    if invitation.client != client:
        raise ConfigError(
            f"the token invites silo '{invitation.client}', and the site file is that of '{client}'; use the token of this silo."
        )
    if (directory / IDENTITY).exists() and not again:
        raise ConfigError(f"{directory}: the silo is enrolled already; fedray silo rotate renews its certificate, --again enrols it anew.")
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    if not (directory / SIGNING).exists():
        make_key(directory / SIGNING)
    certified = _ask(directory, client, send, now)
    if fingerprint(certified.federation) != invitation.federation:
        raise FedrayError(f"{invitation.address}: is not the federation that the token names; nothing was written.")
    write_json(directory / ENROLMENT, {"address": invitation.address})
    write_atomic(directory / FEDERATION, certified.federation)
    return _install(directory, certified)


def rotate(directory: Path, send: Sender, now: datetime) -> SiloCredentials:
    """Give a silo a new key and certificate; the old ones count until they end, and a running silo reads the new ones when it dials next.

    Raises:
        ConfigError: there is no identity, or it is malformed.
        FedrayError: the certificate has ended, the federation refuses, or what it sent is not for this silo.
    """
    old = read_silo_credentials(directory)
    check_own(old, now)
    certified = _ask(directory, old.client, send, now)
    if certified.federation != old.federation:
        raise FedrayError(f"{directory}: another federation answered than the one that this silo trusts; nothing was written.")
    return _install(directory, certified)


def rotation_is_due(directory: Path, now: datetime) -> bool:
    """Return whether less than a third of the time of the silo's certificate is left.

    Raises:
        ConfigError: there is no identity, or it is malformed.
    """
    _, begins, ends = life_of(read_silo_credentials(directory).certificate)
    return ends - now < (ends - begins) / 3


def address_of(directory: Path) -> str:
    """Return HOST:PORT of the enrolment where the silo renews its certificate.

    Raises:
        ConfigError: the silo is not enrolled.
    """
    found = read_json(directory / ENROLMENT)
    if found is None or not isinstance(found.get("address"), str):
        raise ConfigError(f"{directory}: does not say where certificates are renewed; give --address, or enrol the silo.")
    return str(found["address"])


def read_signing_key(directory: Path) -> Ed25519PrivateKey:
    """Read the key of a silo's receipts.

    Raises:
        ConfigError: it is missing, malformed, or others may read it.
    """
    path = directory / SIGNING
    data = read_guarded(
        "identity", path, 0o077, "nobody but its owner may use it, so set it to 0600, and make a new key if others have read it"
    )
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"identity: {path} holds no Ed25519 private key; bring it back from a copy.")
    return key


def _ask(directory: Path, client: str, send: Sender, now: datetime) -> SiloCredentials:
    """Ask for a certificate of a new key, or of that of an earlier question, and check the answer."""
    signing = read_signing_key(directory)
    public = signing.public_key().public_bytes_raw().hex()
    key, pem = _pending(directory)
    request = issuing.new_request(client, public, key)
    certificate, federation = send(request, prove(signing, request))
    made = SiloCredentials(client, pem, certificate, federation)
    check_own(made, now)
    if silo_of(certificate) != client or signing_of(certificate) != public or not _is_of(certificate, key):
        raise FedrayError("the federation sent a certificate that is not the one that was asked for; nothing was written.")
    return made


def _pending(directory: Path) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    path = directory / PENDING
    with suppress(FileNotFoundError, ValueError, TypeError):
        pem = path.read_bytes()
        found = load_pem_private_key(pem, None)
        if isinstance(found, ec.EllipticCurvePrivateKey):
            return found, pem
    key, pem = issuing.new_key()
    write_atomic(path, pem)
    return key, pem


def _is_of(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> bool:
    return x509.load_pem_x509_certificate(certificate).public_key() == key.public_key()


def _install(directory: Path, made: SiloCredentials) -> SiloCredentials:
    write_atomic(directory / IDENTITY, made.key + made.certificate)
    (directory / PENDING).unlink(missing_ok=True)
    return made
