"""TLS between the nodes of a Ray cluster: a private authority and a certificate for each host.

``python -m cluster.tls DIR --host head.example,10.0.0.1 --host 10.0.0.2`` makes what is missing in DIR and renews what ends soon; run it
again at any time. Each host gets its own pair and ``ca.pem``; ``ca.key`` stays where this is run. Ray asks both sides of a connection
for a certificate of the authority, so a process without one can neither serve nor join. Ray reads the files when a process starts:
renewed ones count from a node's next start. TLS covers what nodes say to each other (gRPC); the dashboard and the jobs API stay plain
HTTP behind the token and belong behind an ingress with TLS or a port-forward.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

import click
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster import commands
from fedray.errors import ConfigError, FedrayError

AUTHORITY = "ca"

#: Names by which a process reaches its own host; in every certificate.
_LOOPBACK = ("localhost", "127.0.0.1")


def make_authority(directory: Path, days: int = 3650) -> None:
    """Make ``ca.pem`` and ``ca.key`` (mode 0600) in ``directory``, valid for ``days``; no effect where they are."""
    if (directory / f"{AUTHORITY}.key").exists():
        return
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedray cluster authority")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(name, key.public_key(), days)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    _write(directory, AUTHORITY, builder.sign(key, hashes.SHA256()), key)


def make_host(directory: Path, names: Sequence[str], days: int = 90) -> Path:
    """Make the certificate of a host, known by ``names`` (DNS names and IP addresses), signed by the authority in ``directory``.

    Returns:
        The certificate, ``NAME.pem`` with the first name; its key is ``NAME.key`` (mode 0600).

    Raises:
        ConfigError: no authority there, or it ends before the certificate would.
    """
    authority, key = _read_authority(directory)
    if _left(authority) < datetime.timedelta(days=days):
        end = authority.not_valid_after_utc
        raise ConfigError(f"{directory}/ca.pem: it ends on {end:%Y-%m-%d}, before a certificate of {days} days; make a new authority.")
    own = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    # A node serves and is a client with the same certificate.
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        _builder(subject, own.public_key(), days)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectAlternativeName([_san(name) for name in dict.fromkeys([*names, *_LOOPBACK])]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return _write(directory, names[0], builder.sign(key, hashes.SHA256()), own)


def needs_renewal(directory: Path, names: Sequence[str], days: int) -> bool:
    """Whether a host's certificate is missing, lacks one of ``names``, is of another authority, or has under a third of ``days`` left.

    Raises:
        ConfigError: no authority there.
    """
    path = directory / f"{names[0]}.pem"
    if not path.exists() or not path.with_suffix(".key").exists():
        return True
    certificate, (authority, _) = x509.load_pem_x509_certificate(path.read_bytes()), _read_authority(directory)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return True
    sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return not {_san(name) for name in names} <= set(sans) or _left(certificate) < datetime.timedelta(days=days) / 3


def tls_environment(directory: Path, name: str) -> dict[str, str]:
    """What Ray needs in the environment of every process on the host ``name``, nodes and clients alike."""
    where = directory.absolute()
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(where / f"{name}.pem"),
        "RAY_TLS_SERVER_KEY": str(where / f"{name}.key"),
        "RAY_TLS_CA_CERT": str(where / f"{AUTHORITY}.pem"),
    }


def _builder(subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks of hosts differ: what is new here may lie in the future there.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _left(certificate: x509.Certificate) -> datetime.timedelta:
    return certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)


def _read_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / f"{AUTHORITY}.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / f"{AUTHORITY}.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: no certificate authority can be read there ({error}); make one with cluster.tls.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{directory}/ca.key: not a key that cluster.tls made; give a directory of its own.")
    return certificate, key


def _write(directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Path:
    """Both files, each replaced at once; the key first, for it is made to go with the certificate."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for suffix, content, mode in ((".key", pem, 0o600), (".pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)):
        new = directory / f".{name}{suffix}.new"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        os.replace(new, directory / f"{name}{suffix}")
    return directory / f"{name}.pem"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--host", "hosts", multiple=True, required=True, help="A host's names and addresses, comma-separated; the first names its files."
)
@click.option("--days", type=click.IntRange(1), default=90, show_default=True, help="How long a host's certificate is valid.")
@click.option("--authority-days", type=click.IntRange(1), default=3650, show_default=True, help="How long a new authority is valid.")
@click.option("--check", is_flag=True, help="Make nothing; exit code 1 where something is missing or ends soon.")
def tls(directory: Path, hosts: tuple[str, ...], days: int, authority_days: int, check: bool) -> None:
    """Make certificates in DIRECTORY, or renew those with under a third of their days left."""
    if not check:
        make_authority(directory, authority_days)
    due = []
    for host in hosts:
        names = [name.strip() for name in host.split(",") if name.strip()]
        if not names or names[0] == AUTHORITY or "/" in names[0]:
            raise click.BadParameter(f"'{host}' should be a host name or address, not 'ca'.", param_hint="--host")
        if not needs_renewal(directory, names, days):
            click.echo(f"{names[0]}: valid")
        elif check:
            due.append(names[0])
        else:
            click.echo(f"{names[0]}: new, {make_host(directory, names, days)}")
    if due:
        raise FedrayError(f"{directory}: certificates of {', '.join(due)} are missing or end soon; run it again without --check.")


if __name__ == "__main__":
    commands.run(tls)
