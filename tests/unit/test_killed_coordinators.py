"""A coordinator or a silo that is killed at any write: what was begun is finished by doing it again, and nothing is half true."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from federations import federation, now, silo

from fedray.silos import admission, enrolment
from fedray.silos.certificates import FEDERATION, CertificateRefused, peer_client, read_gateway_credentials, read_silo_credentials


def killed_at(write: int, act: Callable[[], object]) -> bool:
    """Do something in a process that is killed when it renames its file number ``write``; returns whether it came so far."""
    child = os.fork()
    if child == 0:
        left, rename = [write], os.replace

        def replace(*paths: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)

        os.replace = replace
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def enrols(home: Path, identity: Path, invitation: admission.Invitation) -> None:
    def send(request: bytes, proof: bytes) -> tuple[bytes, bytes]:
        return admission.admit(home, request, proof, invitation.secret, now()), (home / FEDERATION).read_bytes()

    enrolment.enrol(identity, "a", invitation, send, now())


@pytest.mark.parametrize("write", range(8))
def test_an_enrolment_is_finished_with_the_same_token_whoever_was_killed(tmp_path: Path, write: int) -> None:
    home, identity = federation(tmp_path / "federation"), tmp_path / "a"
    invitation = admission.invite(home, "a", "localhost:1", now())
    killed = killed_at(write, lambda: enrols(home, identity, invitation))
    assert killed == (write < 6)
    if killed:
        enrols(home, identity, invitation)
    own = read_silo_credentials(identity)
    assert peer_client(own.certificate, read_gateway_credentials(home), now()) == "a"
    member = admission.read_member(home, "a")
    assert len(member.certificates) == 1
    assert (home / "silos/a.pub").read_text().strip() == member.signing
    assert enrolment.address_of(identity) == invitation.address


@pytest.mark.parametrize("write", range(3))
def test_a_revocation_that_the_books_tell_of_is_one_that_gateways_see(tmp_path: Path, write: int) -> None:
    home = federation(tmp_path / "federation")
    own = read_silo_credentials(silo(home, "a", tmp_path / "a"))
    assert killed_at(write, lambda: admission.revoke(home, "a", now())) == (write < 2)

    def seen() -> bool:
        try:
            peer_client(own.certificate, read_gateway_credentials(home), now())
        except CertificateRefused as error:
            return error.cause == "revoked"
        return False

    assert seen() == (write > 0)
    assert seen() or admission.read_member(home, "a").certificates[0].revoked is None
    admission.revoke(home, "a", now())
    assert seen()
    assert admission.read_member(home, "a").certificates[0].revoked is not None


@pytest.mark.parametrize("write", range(5))
def test_a_silo_has_a_whole_identity_at_any_moment_of_a_rotation(tmp_path: Path, write: int) -> None:
    home, identity = federation(tmp_path / "federation"), tmp_path / "a"
    before = read_silo_credentials(silo(home, "a", identity))

    def send(request: bytes, proof: bytes) -> tuple[bytes, bytes]:
        return admission.renew(home, request, proof, read_silo_credentials(identity).certificate, now()), before.federation

    assert killed_at(write, lambda: enrolment.rotate(identity, send, now())) == (write < 4)
    after, gateway = read_silo_credentials(identity), read_gateway_credentials(home)
    assert (after == before) == (write < 4)
    assert peer_client(after.certificate, gateway, now()) == "a"
    enrolment.rotate(identity, send, now())
    assert peer_client(read_silo_credentials(identity).certificate, gateway, now()) == "a"
