"""Whom a federation's certificates let in, and the cause that is named where they do not."""

from __future__ import annotations

import ssl
import stat
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federations import federation, now, silo
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.silos import admission, enrolment, issuing
from fedray.silos.certificates import (
    IDENTITY,
    REVOKED,
    CertificateRefused,
    check_own,
    peer_client,
    read_gateway_credentials,
    read_silo_credentials,
    signing_of,
)
from fedray.silos.invitations import Invitation, prove, read_token

DAY = timedelta(days=1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return federation(tmp_path / "federation")


def refused(certificate: bytes, home: Path, after: timedelta = timedelta(), claimed: str | None = None) -> str:
    with pytest.raises(CertificateRefused) as raised:
        peer_client(certificate, read_gateway_credentials(home), now() + after, claimed)
    return raised.value.cause


def test_a_silo_is_known_by_its_certificate(home: Path, tmp_path: Path) -> None:
    own = read_silo_credentials(silo(home, "hospital-a", tmp_path / "a"))
    assert own.client == "hospital-a"
    assert peer_client(own.certificate, read_gateway_credentials(home), now(), "hospital-a") == "hospital-a"
    assert signing_of(own.certificate) == (home / "silos/hospital-a.pub").read_text().strip()
    assert signing_of(own.certificate) == enrolment.read_signing_key(tmp_path / "a").public_key().public_bytes_raw().hex()
    check_own(own, now())
    check_own(read_gateway_credentials(home), now())


def test_each_cause_is_named(home: Path, tmp_path: Path) -> None:
    own = read_silo_credentials(silo(home, "a", tmp_path / "a"))
    stranger = federation(tmp_path / "stranger")
    assert refused(own.certificate, home, 91 * DAY) == "expired"
    assert refused(own.certificate, home, -DAY) == "not_yet_valid"
    assert refused(own.certificate, home, claimed="b") == "other_client"
    assert refused(own.certificate, stranger) == "unknown_issuer"
    assert refused(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", home) == "unreadable"
    gateway = read_gateway_credentials(home)
    assert refused(gateway.certificate, home) == "not_a_silo"
    assert refused(gateway.federation, home) == "not_a_silo"
    assert admission.revoke(home, "a", now()) == 1
    assert refused(own.certificate, home) == "revoked"


def test_a_silo_sees_that_its_own_certificate_has_ended(home: Path, tmp_path: Path) -> None:
    own = read_silo_credentials(silo(home, "a", tmp_path / "a"))
    with pytest.raises(CertificateRefused, match="ended on .*fedray silo enrol") as raised:
        check_own(own, now() + 91 * DAY)
    assert raised.value.cause == "expired"
    with pytest.raises(CertificateRefused, match="not issued by this federation"):
        check_own(replace(own, federation=read_gateway_credentials(federation(tmp_path / "other")).federation), now())


def test_no_secret_is_readable_for_others_and_no_key_leaves_its_side(home: Path, tmp_path: Path) -> None:
    identity = silo(home, "a", tmp_path / "a")
    for root in (home, identity):
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        for path in root.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    secrets = [read_silo_credentials(identity).key, (identity / "signing.pem").read_bytes()]
    assert not [path for path in home.rglob("*") if path.is_file() and any(secret in path.read_bytes() for secret in secrets)]
    assert not (identity / "pending.pem").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_an_identity_that_others_may_use_is_refused(home: Path, tmp_path: Path, mode: int) -> None:
    identity = silo(home, "a", tmp_path / "a")
    (identity / IDENTITY).chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
        read_silo_credentials(identity)


def test_a_gateway_needs_no_key_of_the_authority_but_the_list_of_the_revoked(home: Path) -> None:
    (home / IDENTITY).chmod(0o640)  # as Kubernetes mounts a secret for a group
    (home / "authority/key.pem").unlink()
    assert read_gateway_credentials(home).revoked == frozenset()
    (home / REVOKED).write_text("{}")
    with pytest.raises(ConfigError, match=r"revoked\.json: is no list"):
        read_gateway_credentials(home)


def test_a_key_beside_another_keys_certificate_is_refused(home: Path, tmp_path: Path) -> None:
    one, two = (read_silo_credentials(silo(home, name, tmp_path / name)) for name in ("a", "b"))
    (tmp_path / "a" / IDENTITY).write_bytes(one.key + two.certificate)
    with pytest.raises(ConfigError, match="not that of the key"):
        read_silo_credentials(tmp_path / "a")


def test_a_federation_is_not_made_over_another(home: Path) -> None:
    before = (home / IDENTITY).read_bytes()
    with pytest.raises(ConfigError, match="is not empty"):
        admission.create(home, ["localhost"], now())
    assert (home / IDENTITY).read_bytes() == before


def test_a_renewed_gateway_keeps_its_names_and_silos_trust_it(home: Path, tmp_path: Path) -> None:
    own = read_silo_credentials(silo(home, "a", tmp_path / "a"))
    assert admission.renew_gateway(home, ["head.example"], now()) == ("localhost", "127.0.0.1", "head.example")
    renewed = read_gateway_credentials(home)
    assert peer_client(own.certificate, renewed, now()) == "a"
    assert handshake(tmp_path, renewed.key + renewed.certificate, own.key + own.certificate, own.federation, "head.example") is None


def handshake(tmp_path: Path, listens: bytes, dials: bytes, federation_pem: bytes, host: str) -> str | None:
    """Shake hands by TLS in memory; the words of what failed, None if nothing did."""
    contexts = []
    for side, pem, kind in (("listens", listens, ssl.PROTOCOL_TLS_SERVER), ("dials", dials, ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(kind)
        (tmp_path / side).write_bytes(pem)
        context.load_cert_chain(tmp_path / side)
        context.load_verify_locations(cadata=federation_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [contexts[1].wrap_bio(down, up, server_hostname=host), contexts[0].wrap_bio(up, down, server_side=True)]
    for _ in range(6):
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                return str(error)
    return None if not sides else "unfinished"


def test_no_silo_passes_for_the_gateway_and_the_gateway_for_no_silo(home: Path, tmp_path: Path) -> None:
    """A silo may have the gateway's host for its name, and its certificate still is for the side that dials alone."""
    own, gateway = read_silo_credentials(silo(home, "localhost", tmp_path / "a")), read_gateway_credentials(home)
    as_silo, as_gateway = own.key + own.certificate, gateway.key + gateway.certificate
    assert handshake(tmp_path, as_gateway, as_silo, own.federation, "localhost") is None
    assert "purpose" in str(handshake(tmp_path, as_silo, as_silo, own.federation, "localhost"))
    assert "purpose" in str(handshake(tmp_path, as_gateway, as_gateway, own.federation, "localhost"))
    assert "match" in str(handshake(tmp_path, as_gateway, as_silo, own.federation, "elsewhere.example"))


# --- admission ---


def asks(client: str, signing: Ed25519PrivateKey | None = None) -> tuple[bytes, bytes]:
    """A request by a new key, and its proof."""
    by = signing or Ed25519PrivateKey.generate()
    request = issuing.new_request(client, by.public_key().public_bytes_raw().hex(), issuing.new_key()[0])
    return request, prove(by, request)


def test_a_token_admits_one_key_even_when_many_race_for_it(home: Path) -> None:
    secret = admission.invite(home, "a", "localhost:1", now()).secret
    start, outcomes = threading.Barrier(8), []

    def race() -> None:
        asked = asks("a")
        start.wait()
        try:
            outcomes.append(admission.admit(home, *asked, secret, now()))
        except admission.AdmissionRefused as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 1
    assert sum("was used" in outcome for outcome in outcomes if isinstance(outcome, str)) == 7
    assert len(admission.read_member(home, "a").certificates) == 1


def test_an_answer_that_was_lost_is_given_again_to_the_same_key_alone(home: Path) -> None:
    secret, asked = admission.invite(home, "a", "localhost:1", now()).secret, asks("a")
    first = admission.admit(home, *asked, secret, now())
    assert admission.admit(home, *asked, secret, now()) == first
    with pytest.raises(admission.AdmissionRefused, match="was used on"):
        admission.admit(home, *asks("a"), secret, now())


def test_tokens_end_are_taken_back_and_are_one_clients_own(home: Path) -> None:
    first = admission.invite(home, "a", "localhost:1", now(), hours=1.0).secret
    with pytest.raises(admission.AdmissionRefused, match="ended on"):
        admission.admit(home, *asks("a"), first, now() + timedelta(hours=2))
    with pytest.raises(admission.AdmissionRefused, match="none that silo 'b'"):
        admission.admit(home, *asks("b"), first, now())
    second = admission.invite(home, "a", "localhost:1", now()).secret
    with pytest.raises(admission.AdmissionRefused, match="taken back"):
        admission.admit(home, *asks("a"), first, now())
    admission.revoke(home, "a", now())
    with pytest.raises(admission.AdmissionRefused, match="taken back"):
        admission.admit(home, *asks("a"), second, now())


def test_a_silo_must_have_the_key_that_its_receipts_are_to_be_signed_by(home: Path) -> None:
    secret, (request, _) = admission.invite(home, "a", "localhost:1", now()).secret, asks("a")
    with pytest.raises(admission.AdmissionRefused, match="not signed by the key of receipts"):
        admission.admit(home, request, prove(Ed25519PrivateKey.generate(), request), secret, now())
    assert not (home / "silos/a.pub").exists()


def test_the_key_of_receipts_changes_only_where_the_coordinator_says_so(home: Path) -> None:
    key = Ed25519PrivateKey.generate()
    admission.admit(home, *asks("a", key), admission.invite(home, "a", "localhost:1", now()).secret, now())
    secret = admission.invite(home, "a", "localhost:1", now()).secret
    with pytest.raises(admission.AdmissionRefused, match="another key until now"):
        admission.admit(home, *asks("a"), secret, now())
    other, secret = asks("a"), admission.invite(home, "a", "localhost:1", now(), new_signing_key=True).secret
    admission.admit(home, *other, secret, now())
    former = key.public_key().public_bytes_raw().hex()
    assert (home / f"silos/former/a-{former[:16]}.pub").read_text().strip() == former
    assert (home / "silos/a.pub").read_text().strip() == issuing.read_request(other[0]).signing


def test_a_rotation_leaves_the_old_certificate_valid_and_a_revocation_ends_both(home: Path, tmp_path: Path) -> None:
    old = read_silo_credentials(silo(home, "a", tmp_path / "a"))
    later = now() + 80 * DAY
    assert not enrolment.rotation_is_due(tmp_path / "a", now())
    assert enrolment.rotation_is_due(tmp_path / "a", later)

    def send(request: bytes, proof: bytes) -> tuple[bytes, bytes]:
        return admission.renew(home, request, proof, old.certificate, later), old.federation

    new = enrolment.rotate(tmp_path / "a", send, later)
    assert new == read_silo_credentials(tmp_path / "a")
    assert new.key != old.key
    assert signing_of(new.certificate) == signing_of(old.certificate)
    gateway = read_gateway_credentials(home)
    assert peer_client(old.certificate, gateway, later) == peer_client(new.certificate, gateway, later) == "a"
    assert admission.revoke(home, "a", later) == 2
    assert refused(old.certificate, home, 80 * DAY) == refused(new.certificate, home, 80 * DAY) == "revoked"
    with pytest.raises(CertificateRefused, match="revoked"):
        enrolment.rotate(tmp_path / "a", send, later)
    silo_again = admission.invite(home, "a", "localhost:1", later).secret
    key = enrolment.read_signing_key(tmp_path / "a")
    assert peer_client(admission.admit(home, *asks("a", key), silo_again, later), read_gateway_credentials(home), later) == "a"


def test_a_rotation_is_for_ones_own_name_and_key(home: Path, tmp_path: Path) -> None:
    own = read_silo_credentials(silo(home, "a", tmp_path / "a"))
    silo(home, "b", tmp_path / "b")
    with pytest.raises(CertificateRefused, match="that of silo 'a', and not of 'b'"):
        admission.renew(home, *asks("b", enrolment.read_signing_key(tmp_path / "b")), own.certificate, now())
    with pytest.raises(admission.AdmissionRefused, match="signs its receipts by another key"):
        admission.renew(home, *asks("a"), own.certificate, now())


def test_an_enrolment_that_was_cut_off_goes_on_with_the_same_key(home: Path, tmp_path: Path) -> None:
    invitation = admission.invite(home, "a", "localhost:1", now())
    answers = []

    def cut(request: bytes, proof: bytes) -> tuple[bytes, bytes]:
        answers.append(admission.admit(home, request, proof, invitation.secret, now()))
        if len(answers) == 1:
            raise ConnectionError("the answer is lost")
        return answers[-1], (home / "federation.pem").read_bytes()

    with pytest.raises(ConnectionError):
        enrolment.enrol(tmp_path / "a", "a", invitation, cut, now())
    assert enrolment.enrol(tmp_path / "a", "a", invitation, cut, now()).certificate == answers[0]
    assert len(admission.read_member(home, "a").certificates) == 1
    with pytest.raises(ConfigError, match="enrolled already"):
        enrolment.enrol(tmp_path / "a", "a", invitation, cut, now())


def test_a_silo_trusts_the_federation_of_its_token_alone(home: Path, tmp_path: Path) -> None:
    other = federation(tmp_path / "other")
    invitation = admission.invite(home, "a", "localhost:1", now())
    secret = admission.invite(other, "a", "localhost:1", now()).secret

    def send(request: bytes, proof: bytes) -> tuple[bytes, bytes]:
        return admission.admit(other, request, proof, secret, now()), (other / "federation.pem").read_bytes()

    with pytest.raises(Exception, match="is not the federation that the token names"):
        enrolment.enrol(tmp_path / "a", "a", invitation, send, now())
    assert not (tmp_path / "a" / IDENTITY).exists()
    with pytest.raises(ConfigError, match="the site file is that of 'b'"):
        enrolment.enrol(tmp_path / "b", "b", invitation, send, now())


def test_the_file_of_a_client_holds_no_token(home: Path) -> None:
    invitation = admission.invite(home, "a", "localhost:1", now())
    written = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert invitation.secret.hex().encode() not in written
    assert invitation.secret not in written
    assert invitation.secret.hex() not in repr(invitation)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(NAMES, NAMES, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.data())
def test_a_token_is_read_whole_or_not_at_all(client: str, host: str, one: bytes, two: bytes, data: st.DataObject) -> None:
    made = Invitation(client, f"{host}:7444", one, two)
    token = made.token()
    assert read_token(f" {token}\n") == made
    at = data.draw(st.integers(0, len(token) - 1))
    damaged = data.draw(st.sampled_from([token[:at], token[:at] + token[at + 1 :], token[:at] + "~" + token[at + 1 :], token + "A"]))
    with pytest.raises(ConfigError) as raised:
        read_token(damaged)
    assert two.hex() not in str(raised.value)


@pytest.mark.parametrize("name", ["", "../b", ".hidden", "a/b", "a" * 65, "a b", "ä"])
def test_a_name_that_can_be_no_file_is_refused(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a silo's name has"):
        admission.invite(home, name, "localhost:1", now())
