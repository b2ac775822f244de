"""What a silo and the gateway show each other, and what each checks.

Certificates are X.509 (RFC 5280) with ECDSA keys on the curve P-256. A silo's certificate names the client by an URI among its alternative
names, ``urn:fedray:silo:NAME``, beside the key of its receipts, ``urn:fedray:signing:HEX`` (Ed25519), and may be used by the side that dials alone;
the gateway's carries host names, and may be used by the side that listens alone. So no silo can pass for the gateway, nor the gateway for a silo.

A key and its certificate lie in one file, ``identity.pem``, so that one rename replaces both, and no reader ever sees a key beside another key's
certificate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedray.errors import ConfigError, FedrayError
from fedray.secure.keyfiles import read_guarded

IDENTITY, FEDERATION, REVOKED = "identity.pem", "federation.pem", "revoked.json"

SILO_URI, SIGNING_URI = "urn:fedray:silo:", "urn:fedray:signing:"


class CertificateRefused(FedrayError):
    """A certificate does not count; ``cause`` is one of CAUSES."""

    def __init__(self, message: str = "", cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


#: Why a certificate is refused.
CAUSES = ("unreadable", "unknown_issuer", "not_a_silo", "revoked", "not_yet_valid", "expired", "other_client")


@dataclass(frozen=True)
class SiloCredentials:
    """What a silo shows and checks.

    Attributes:
        client: the client's name, as its certificate says.
        key: private key, PEM.
        certificate: PEM.
        federation: certificate of the federation's authority, PEM.
    """

    client: str
    key: bytes
    certificate: bytes
    federation: bytes

    def __repr__(self) -> str:
        return f"SiloCredentials({self.client!r})"


@dataclass(frozen=True)
class GatewayCredentials:
    """What the gateway shows and checks.

    Attributes:
        key: private key, PEM.
        certificate: PEM.
        federation: certificate of the federation's authority, PEM.
        revoked: serial numbers of certificates that do not count any more.
    """

    key: bytes
    certificate: bytes
    federation: bytes
    revoked: frozenset[int]

    def __repr__(self) -> str:
        return f"GatewayCredentials({len(self.revoked)} revoked)"


def fingerprint(federation: bytes) -> bytes:
    """SHA-256 of a certificate, 32 bytes, by which an invitation names the federation."""
    return x509.load_pem_x509_certificate(federation).fingerprint(hashes.SHA256())


def read_silo_credentials(directory: Path) -> SiloCredentials:
    """Read a silo's identity, as :func:`fedray.silos.enrolment.enrol` wrote it; cheap enough for each dial.

    Raises:
        ConfigError: a file is missing, malformed or open to others; or they do not belong together.
    """
    key, certificate, federation = _read(directory, 0o077, "a silo's identity, which fedray silo enrol makes")
    return SiloCredentials(silo_of(certificate), key, certificate, federation)


def read_gateway_credentials(directory: Path) -> GatewayCredentials:
    """Read a gateway's identity, as ``fedray federation init`` and ``revoke`` wrote it; cheap enough to be done again every second.

    ``identity.pem`` may be readable for the group, because Kubernetes mounts secrets so. The authority's key need not be there.

    Raises:
        ConfigError: a file is missing, malformed or open to others; or they do not belong together.
    """
    key, certificate, federation = _read(directory, 0o037, "a federation, which fedray federation init makes")
    return GatewayCredentials(key, certificate, federation, read_revoked(directory))


def read_revoked(directory: Path) -> frozenset[int]:
    """Read the serial numbers that a federation has revoked.

    Raises:
        ConfigError: the list is missing or malformed, for then nobody knows whom not to admit.
    """
    path = directory / REVOKED
    try:
        return frozenset(int(serial, 16) for serial in json.loads(path.read_bytes())["serials"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ConfigError(f"{path}: is no list of revoked certificates ({type(error).__name__}); bring it back from a copy.") from None


def peer_client(certificate_pem: bytes, credentials: GatewayCredentials, now: datetime, claimed: str | None = None) -> str:
    """Return the name of the client that a certificate belongs to.

    Args:
        certificate_pem: what the silo showed; that it has the key is for TLS to see.
        credentials: the gateway's.
        now: time, with its zone.
        claimed: the name by which the silo calls itself, if it does.

    Raises:
        CertificateRefused: with the cause.
    """
    certificate = _parsed(certificate_pem)
    _check_issuer(certificate, credentials.federation)
    client = silo_of(certificate_pem)
    if certificate.serial_number in credentials.revoked:
        raise CertificateRefused(
            f"the certificate of silo '{client}' (serial {certificate.serial_number:x}) is revoked; the coordinator can invite it again.",
            "revoked",
        )
    _check_time(certificate, now, f"the certificate of silo '{client}'")
    if claimed is not None and claimed != client:
        raise CertificateRefused(f"the certificate is that of silo '{client}', and not of '{claimed}', as it calls itself.", "other_client")
    return client


def check_own(credentials: SiloCredentials | GatewayCredentials, now: datetime) -> datetime:
    """Check one's own certificate before it is shown, because a failed handshake does not always say why; returns when it ends.

    Raises:
        CertificateRefused: with the cause.
    """
    certificate = _parsed(credentials.certificate)
    _check_issuer(certificate, credentials.federation)
    whose = f"the certificate of silo '{credentials.client}'" if isinstance(credentials, SiloCredentials) else "the gateway's certificate"
    _check_time(certificate, now, whose)
    return certificate.not_valid_after_utc


def silo_of(certificate_pem: bytes) -> str:
    """Return the client's name in a silo's certificate, whoever issued it.

    Raises:
        CertificateRefused: it is no silo's.
    """
    return _silo_uri(_parsed(certificate_pem), SILO_URI)


def signing_of(certificate_pem: bytes) -> str:
    """Return the public key of a silo's receipts, 64 hexadecimal digits, that its certificate names.

    Raises:
        CertificateRefused: it is no silo's.
    """
    return _silo_uri(_parsed(certificate_pem), SIGNING_URI)


def life_of(certificate_pem: bytes) -> tuple[int, datetime, datetime]:
    """Return a certificate's serial number, and from when until when it counts (UTC)."""
    certificate = _parsed(certificate_pem)
    return certificate.serial_number, certificate.not_valid_before_utc, certificate.not_valid_after_utc


def hosts_of(certificate_pem: bytes) -> tuple[str, ...]:
    """Return the host names and addresses in a gateway's certificate."""
    names = _parsed(certificate_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress)))


def uri_in(names: x509.SubjectAlternativeName, prefix: str) -> str:
    """Return the rest of the one URI among a certificate's names that begins with ``prefix``.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [uri.removeprefix(prefix) for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(prefix)]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} names of the form {prefix}...")
    return found[0]


def _read(directory: Path, forbidden: int, what: str) -> tuple[bytes, bytes, bytes]:
    """Return key, certificate and the authority's certificate, PEM, of a directory."""
    path = directory / IDENTITY
    if not path.exists():
        raise ConfigError(f"{directory}: holds no identity of {what}.")
    data = read_guarded(
        str(directory), path, forbidden, "nobody else may use it, so set it to 0600, and make a new one if others have read it"
    )
    try:
        federation = (directory / FEDERATION).read_bytes()
        key, certificate = load_pem_private_key(data, None), x509.load_pem_x509_certificate(data)
        x509.load_pem_x509_certificate(federation)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{directory}: {IDENTITY} and {FEDERATION} are not as they were written ({error}); bring them back.") from None
    own, certified = key.public_key(), certificate.public_key()
    if not isinstance(own, ec.EllipticCurvePublicKey) or not isinstance(certified, ec.EllipticCurvePublicKey) or own != certified:
        raise ConfigError(f"{path}: the certificate in it is not that of the key in it; bring the file back from a copy.")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, certificate.public_bytes(Encoding.PEM), federation


def _parsed(pem: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.extensions  # noqa: B018  # parsed when they are asked for
    except (ValueError, TypeError, x509.DuplicateExtension) as error:
        raise CertificateRefused(f"what was shown is no certificate ({error}).", "unreadable") from None
    return certificate


def _check_issuer(certificate: x509.Certificate, federation: bytes) -> None:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(federation))
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateRefused(
            f"the certificate (serial {certificate.serial_number:x}) was not issued by this federation but by "
            f"'{certificate.issuer.rfc4514_string()}' with another key; enrol with a token of this federation.",
            "unknown_issuer",
        ) from None


def _check_time(certificate: x509.Certificate, now: datetime, whose: str) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise CertificateRefused(
            f"{whose} counts from {begin:%Y-%m-%d %H:%M} UTC only, and here it is {now.astimezone(UTC):%Y-%m-%d %H:%M}; set the clocks.",
            "not_yet_valid",
        )
    if now > end:
        raise CertificateRefused(
            f"{whose} ended on {end:%Y-%m-%d %H:%M} UTC, and here it is {now.astimezone(UTC):%Y-%m-%d %H:%M}; "
            "a silo gets a new one by fedray silo enrol with a new token, a gateway by fedray federation renew.",
            "expired",
        )


def _silo_uri(certificate: x509.Certificate, prefix: str) -> str:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        found = uri_in(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, prefix)
        if list(usage) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
            raise ValueError("it is not for the side that dials")
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CertificateRefused(
            f"the certificate (serial {certificate.serial_number:x}) is not a silo's ({error}).", "not_a_silo"
        ) from None
    return found
