"""Makes the certificates of a federation: its authority's, its gateway's, and one for each silo that asks for it."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedray.errors import ConfigError
from fedray.silos.certificates import FEDERATION, SIGNING_URI, SILO_URI, uri_in

AUTHORITY_DAYS, GATEWAY_DAYS, SILO_DAYS = 3650, 365, 90

_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIGNING_KEY = re.compile(r"[0-9a-f]{64}")

#: Clocks of machines differ: what is new here may lie in the future there.
_EARLIER = timedelta(hours=1)


def check_client(client: str) -> None:
    """Refuse a name that cannot stand in a certificate and be a file's name.

    Raises:
        ConfigError: with what a name may be.
    """
    if not _CLIENT.fullmatch(client):
        raise ConfigError(
            f"client '{client}': a silo's name has at most 64 letters, digits, '.', '_' and '-', of which the first is a letter or digit."
        )


def new_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Make a key for TLS; returns it, and as PEM (PKCS #8, without a password)."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_authority(now: datetime) -> tuple[bytes, bytes]:
    """Make a federation's authority; returns the PEM of its key and of its certificate, which ends after ``AUTHORITY_DAYS``."""
    key, pem = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedray federation")])
    made = (
        _builder(name, key.public_key(), now, AUTHORITY_DAYS)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return pem, made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def new_gateway(names: Sequence[str], key: bytes, federation: bytes, now: datetime) -> bytes:
    """Make what the gateway's ``identity.pem`` holds: a new key and its certificate.

    Args:
        names: host names and addresses by which silos reach it.
        key: the authority's, PEM.
        federation: the authority's certificate, PEM.
        now: from when on it counts; for ``GATEWAY_DAYS``.

    Raises:
        ConfigError: a name is none.
    """
    own, pem = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedray gateway")])
    alternatives = [_host(name) for name in names]
    return pem + _signed(subject, own.public_key(), alternatives, ExtendedKeyUsageOID.SERVER_AUTH, key, federation, now, GATEWAY_DAYS)


def new_request(client: str, signing: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make a silo's request for a certificate (PKCS #10, PEM), signed by the key that it is for.

    Args:
        client: the client's name.
        signing: public key of its receipts, 64 hexadecimal digits.
        key: the silo's key for TLS.
    """
    made = x509.CertificateSigningRequestBuilder().subject_name(_named(client)).add_extension(_silo_names(client, signing), critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@dataclass(frozen=True)
class CertificateRequest:
    """What a silo's request asks for: the client, the key of its receipts (64 hexadecimal digits), its key for TLS, and that key's SHA-256."""

    client: str
    signing: str
    key: ec.EllipticCurvePublicKey
    sha256: str


def read_request(pem: bytes) -> CertificateRequest:
    """Read and check a silo's request.

    Raises:
        ConfigError: it is none, its key is of another kind, or its signature is not by that key.
    """
    try:
        asked = x509.load_pem_x509_csr(pem)
        key, names = asked.public_key(), asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if not asked.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("it is not signed by a key on P-256 that it is for")
        client, signing = uri_in(names, SILO_URI), uri_in(names, SIGNING_URI)
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature) as error:
        raise ConfigError(f"the request is no request for a silo's certificate ({error}).") from None
    check_client(client)
    if not _SIGNING_KEY.fullmatch(signing):
        raise ConfigError("the request names no key of receipts, which are 64 hexadecimal digits.")
    return CertificateRequest(client, signing, key, key_sha256(key))


def new_silo(asked: CertificateRequest, key: bytes, federation: bytes, now: datetime, days: int = SILO_DAYS) -> bytes:
    """Make the certificate, PEM, that a silo asks for; ``key`` and ``federation`` are the authority's, ``days`` is how long it counts."""
    names = list(_silo_names(asked.client, asked.signing))
    return _signed(_named(asked.client), asked.key, names, ExtendedKeyUsageOID.CLIENT_AUTH, key, federation, now, days)


def key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256, hexadecimal, of a public key (uncompressed point)."""
    return hashlib.sha256(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).hexdigest()


def _silo_names(client: str, signing: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in (SILO_URI + client, SIGNING_URI + signing)])


def _named(client: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, client)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*)(\.[A-Za-z0-9_-]+)*", name):
        raise ConfigError(f"--name {name}: is neither a host's name nor an address.")
    return x509.DNSName(name)


def _signed(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    names: Sequence[x509.GeneralName],
    use: x509.ObjectIdentifier,
    key: bytes,
    federation: bytes,
    now: datetime,
    days: int,
) -> bytes:
    """A certificate, PEM, of a gateway or a silo."""
    authority, signer = x509.load_pem_x509_certificate(federation), load_pem_private_key(key, None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
        raise ConfigError(f"the key of the federation's authority is not the one that {FEDERATION} names; bring the right one back.")
    if now + timedelta(days=days) > authority.not_valid_after_utc:
        raise ConfigError(
            f"the federation's authority ends on {authority.not_valid_after_utc:%Y-%m-%d}, before a new certificate would; "
            "make a new federation and enrol its silos in it."
        )
    made = (
        _builder(subject, public, now, days)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return made.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
