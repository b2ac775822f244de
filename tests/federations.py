"""A federation and its silos in a test's directory, enrolled by functions, without a network."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fedray.silos import admission, enrolment
from fedray.silos.certificates import FEDERATION

NAMES = ("localhost", "127.0.0.1")


def now() -> datetime:
    return datetime.now(UTC)


def federation(directory: Path, names: tuple[str, ...] = NAMES, when: datetime | None = None) -> Path:
    """Make a federation; ``directory`` is a gateway's ``identity``, too."""
    admission.create(directory, names, when or now())
    return directory


def silo(coordinator: Path, client: str, identity: Path, when: datetime | None = None, address: str = "localhost:7444") -> Path:
    """Enrol a silo in the federation in ``coordinator``; returns its ``identity``."""
    at = when or now()
    invitation = admission.invite(coordinator, client, address, at)

    def send(request: bytes, proof: bytes) -> tuple[bytes, bytes]:
        return admission.admit(coordinator, request, proof, invitation.secret, at), (coordinator / FEDERATION).read_bytes()

    enrolment.enrol(identity, client, invitation, send, at)
    return identity
