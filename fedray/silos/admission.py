"""The coordinator's directory of a federation: who is invited, who was admitted, whose certificates are revoked.

A federation's directory holds

* ``identity.pem``, ``federation.pem``, ``revoked.json``: what a gateway needs, and nothing else (``read_gateway_credentials``);
* ``authority/key.pem``: the key that signs certificates, needed where silos enrol and rotate, and nowhere else;
* ``silos/CLIENT.json``: a client's invitations (of their tokens only the hash) and certificates; ``silos/CLIENT.pub``: the key of its receipts.

Each change is made under a lock that all processes share, and a client's file is replaced as a whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError, FedrayError
from fedray.secure.keyfiles import read_guarded, write_secret
from fedray.silos import issuing
from fedray.silos.certificates import (
    FEDERATION,
    IDENTITY,
    REVOKED,
    fingerprint,
    hosts_of,
    life_of,
    peer_client,
    read_gateway_credentials,
    read_revoked,
)
from fedray.silos.invitations import Invitation, check_proof, new_secret
from fedray.storage import read_json, reading, write_atomic, write_json

_KEY, _LOCK, _SILOS = Path("authority/key.pem"), Path("authority/lock"), "silos"
_FORMAT = 1


class AdmissionRefused(FedrayError):
    """A silo may not enrol or rotate; the sentence says why."""


@dataclass(frozen=True)
class Invited:
    """An invitation that was given out.

    Attributes:
        sha256: of the token's secret, hexadecimal.
        expires: when it ends.
        new_signing_key: whether the client may come with another key of receipts than before.
        used: when it was; None if it was not.
        key: SHA-256 of the public key that it was used for.
        withdrawn: whether it was taken back.
    """

    sha256: str
    expires: str
    new_signing_key: bool = False
    used: str | None = None
    key: str | None = None
    withdrawn: bool = False


@dataclass(frozen=True)
class Issued:
    """A certificate that was given out: serial number (hexadecimal), its key's SHA-256, its time, when it was revoked, and its PEM."""

    serial: str
    key: str
    begins: str
    ends: str
    pem: str
    revoked: str | None = None


@dataclass(frozen=True)
class Enrolled:
    """What the coordinator knows of a client; ``signing`` is the public key of its receipts, None before it enrols."""

    client: str
    signing: str | None = None
    invitations: tuple[Invited, ...] = ()
    certificates: tuple[Issued, ...] = ()


def create(directory: Path, names: Sequence[str], now: datetime) -> None:
    """Make a federation.

    Args:
        directory: a new one, or one that is empty.
        names: host names and addresses by which silos reach gateway and enrolment.
        now: time, with its zone.

    Raises:
        ConfigError: there is something already, or a name is none.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory}: is not empty, and a federation is not made in place of another; name a new directory.")
    key, federation = issuing.new_authority(now)
    gateway = issuing.new_gateway(names, key, federation, now)
    for folder in (directory, directory / _KEY.parent, directory / _SILOS):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    write_secret(directory / _KEY, key, "", "silos could not be known again by whoever lost the old key")
    write_atomic(directory / FEDERATION, federation)
    write_json(directory / REVOKED, {"format": _FORMAT, "serials": []})
    write_atomic(directory / IDENTITY, gateway)


def renew_gateway(directory: Path, names: Sequence[str], now: datetime) -> tuple[str, ...]:
    """Give the gateway a new key and certificate, for the names that it has and further ones; returns all. Running gateways read it by themselves.

    Raises:
        ConfigError: the directory holds no federation, or a name is none.
    """
    with _locked(directory):
        credentials = read_gateway_credentials(directory)
        every = tuple(dict.fromkeys([*hosts_of(credentials.certificate), *names]))
        write_atomic(directory / IDENTITY, issuing.new_gateway(every, _authority_key(directory), credentials.federation, now))
        return every


def invite(directory: Path, client: str, address: str, now: datetime, hours: float = 72.0, new_signing_key: bool = False) -> Invitation:
    """Invite a client; an invitation of before that is not used yet is taken back.

    Args:
        directory: the federation's.
        client: its name.
        address: HOST:PORT of the enrolment.
        now: time, with its zone.
        hours: how long the invitation counts.
        new_signing_key: whether the client may bring another key for its receipts than it had.

    Raises:
        ConfigError: the name or the address cannot be.
    """
    issuing.check_client(client)
    with _locked(directory):
        credentials = read_gateway_credentials(directory)
        host = address.rpartition(":")[0].strip("[]")
        if host not in (hosts := hosts_of(credentials.certificate)):
            raise ConfigError(
                f"address {address}: the federation's certificate names {', '.join(hosts)}; give one of these, or add '{host}' with "
                "fedray federation renew --name."
            )
        member, secret = read_member(directory, client), new_secret()
        kept = tuple(one if one.used else replace(one, withdrawn=True) for one in member.invitations)
        expires = _stamp(now + timedelta(hours=hours))
        made = Invited(hashlib.sha256(secret).hexdigest(), expires, new_signing_key)
        _write(directory, replace(member, invitations=(*kept, made)))
        return Invitation(client, address, fingerprint(credentials.federation), secret)


def admit(directory: Path, request: bytes, proof: bytes, secret: bytes, now: datetime) -> bytes:
    """Admit a client by its invitation.

    A token counts once: for the key with which it was used first. The same request again, after an answer that was lost, gets the same certificate.

    Args:
        directory: the federation's.
        request: the silo's request for a certificate, PEM.
        proof: its signature by the key of receipts that it names (:func:`fedray.silos.invitations.check_proof`).
        secret: the token's.
        now: time, with its zone.

    Returns:
        The silo's certificate, PEM.

    Raises:
        AdmissionRefused: with the reason.
    """
    asked = _read_request(request, proof)
    with _locked(directory):
        member = read_member(directory, asked.client)
        invited = next((one for one in member.invitations if one.sha256 == hashlib.sha256(secret).hexdigest()), None)
        if invited is None:
            raise AdmissionRefused(f"the token is none that silo '{asked.client}' was invited with; ask the coordinator for one.")
        if invited.used is not None and invited.key != asked.sha256:
            raise AdmissionRefused(
                f"the token was used on {invited.used} for another key; if that was not you, tell the coordinator, who can revoke "
                f"'{asked.client}' and invite it again."
            )
        if invited.withdrawn:
            raise AdmissionRefused("the token was taken back, by a later invitation or a revocation; ask the coordinator for a new one.")
        if _stamp(now) > invited.expires:
            raise AdmissionRefused(f"the token ended on {invited.expires}; ask the coordinator for a new one.")
        if invited.used is not None:
            _write_signing(directory, member)  # which a crash may have left out
            return next(one.pem for one in member.certificates if one.key == asked.sha256).encode()
        if member.signing not in (None, asked.signing) and not invited.new_signing_key:
            raise AdmissionRefused(
                f"silo '{asked.client}' signed its receipts by another key until now; bring its signing.pem back from the back-up, or ask the "
                "coordinator for a token with --new-signing-key."
            )
        used = replace(invited, used=_stamp(now), key=asked.sha256)
        member = replace(member, invitations=tuple(used if one is invited else one for one in member.invitations))
        return _issue(directory, member, asked, now)


def renew(directory: Path, request: bytes, proof: bytes, certificate: bytes, now: datetime) -> bytes:
    """Give a silo a new certificate for the one that it has shown and proven to have the key of (by TLS); the old one counts until it ends.

    Raises:
        AdmissionRefused: the request is for another client or another key of receipts.
        CertificateRefused: the certificate that was shown does not count.
    """
    asked = _read_request(request, proof)
    with _locked(directory):
        peer_client(certificate, read_gateway_credentials(directory), now, claimed=asked.client)
        member = read_member(directory, asked.client)
        if member.signing != asked.signing:
            raise AdmissionRefused(f"silo '{asked.client}' signs its receipts by another key; a rotation keeps it.")
        return _issue(directory, member, asked, now)


def revoke(directory: Path, client: str, now: datetime) -> int:
    """Revoke all certificates of a client and take its invitations back; returns how many certificates that still counted.

    Raises:
        ConfigError: the federation has no such client.
    """
    with _locked(directory):
        member = read_member(directory, client)
        if member == Enrolled(client):
            raise ConfigError(
                f"{directory}: has no silo '{client}'; its silos are {', '.join(m.client for m in members(directory)) or 'none'}."
            )
        serials = read_revoked(directory) | {int(one.serial, 16) for one in member.certificates}
        # First the list that gateways read: a crash between the two files leaves a certificate that no gateway takes.
        write_json(directory / REVOKED, {"format": _FORMAT, "serials": sorted(f"{serial:x}" for serial in serials)})
        counted = [one for one in member.certificates if one.revoked is None and one.ends > _stamp(now)]
        certificates = tuple(one if one.revoked else replace(one, revoked=_stamp(now)) for one in member.certificates)
        _write(
            directory,
            replace(member, invitations=tuple(replace(one, withdrawn=True) for one in member.invitations), certificates=certificates),
        )
        return len(counted)


def members(directory: Path) -> list[Enrolled]:
    """Return all clients of a federation, by name.

    Raises:
        ConfigError: the directory holds no federation.
    """
    _check(directory)
    return [read_member(directory, path.stem) for path in sorted((directory / _SILOS).glob("*.json"))]


def summary(member: Enrolled, now: datetime) -> dict[str, Any]:
    """Return a client's name, its state in words, the serial numbers of its certificates that count, and the key of its receipts."""
    at = _stamp(now)
    counting = [one for one in member.certificates if one.revoked is None and one.ends > at]
    open_invitations = [one for one in member.invitations if not (one.used or one.withdrawn) and one.expires >= at]
    words = [f"enrolled until {max(one.ends for one in counting)}"] if counting else []
    words += [f"invited until {one.expires}" for one in open_invitations]
    if not words and member.certificates:
        last = member.certificates[-1]
        words = [f"revoked on {last.revoked}" if last.revoked else f"ended on {last.ends}"]
    return {
        "client": member.client,
        "state": ", ".join(words) or "invitation ended",
        "serials": [one.serial for one in counting],
        "signing": member.signing,
    }


def read_member(directory: Path, client: str) -> Enrolled:
    """Return what is known of a client; nothing if it was never invited.

    Raises:
        FedrayError: its file is damaged.
    """
    path = directory / _SILOS / f"{client}.json"
    with reading(path):
        found = read_json(path)
        if found is None:
            return Enrolled(client)
        return Enrolled(
            found["client"],
            found["signing"],
            tuple(Invited(**one) for one in found["invitations"]),
            tuple(Issued(**one) for one in found["certificates"]),
        )


def _issue(directory: Path, member: Enrolled, asked: issuing.CertificateRequest, now: datetime) -> bytes:
    """Make a certificate and write it down before anybody has it."""
    pem = issuing.new_silo(asked, _authority_key(directory), (directory / FEDERATION).read_bytes(), now)
    serial, begins, ends = life_of(pem)
    issued = Issued(f"{serial:x}", asked.sha256, _stamp(begins), _stamp(ends), pem.decode())
    if member.signing not in (None, asked.signing):  # what it has signed can still be verified by it
        former = directory / _SILOS / "former" / f"{member.client}-{str(member.signing)[:16]}.pub"
        write_atomic(former, f"{member.signing}\n".encode())
    member = replace(member, signing=asked.signing, certificates=(*member.certificates, issued))
    _write(directory, member)
    _write_signing(directory, member)
    return pem


def _write_signing(directory: Path, member: Enrolled) -> None:
    write_atomic(directory / _SILOS / f"{member.client}.pub", f"{member.signing}\n".encode())


def _read_request(request: bytes, proof: bytes) -> issuing.CertificateRequest:
    try:
        asked = issuing.read_request(request)
    except ConfigError as error:
        raise AdmissionRefused(str(error)) from None
    if not check_proof(asked.signing, request, proof):
        raise AdmissionRefused("the request is not signed by the key of receipts that it names.")
    return asked


def _authority_key(directory: Path) -> bytes:
    path = directory / _KEY
    return read_guarded(
        str(directory), path, 0o077, "nobody but its owner may use it, so set it to 0600; if others read it, make a new federation"
    )


def _write(directory: Path, member: Enrolled) -> None:
    write_json(directory / _SILOS / f"{member.client}.json", {"format": _FORMAT, **asdict(member)})


def _check(directory: Path) -> None:
    if not (directory / _KEY).exists():
        raise ConfigError(f"{directory}: is no federation's directory with its authority; fedray federation init makes one.")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep all other processes and threads from changing the federation."""
    _check(directory)
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _stamp(time: datetime) -> str:
    """A time as text that sorts as times do."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
