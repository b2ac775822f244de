"""Certificates on a live link, from the coordinator's and the silo's own directories: rotated under work, revoked, ended, another's, a stranger's."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from federations import federation, now, silo

from fedray.silos import admission, dialer, enrolment, gateway
from fedray.silos.certificates import (
    IDENTITY,
    CertificateRefused,
    SiloCredentials,
    life_of,
    read_gateway_credentials,
    read_silo_credentials,
)
from fedray.silos.counter import SiloAway
from fedray.silos.parcels import Parcel


class Clock(datetime):
    """A time that a test sets ahead."""

    ahead = timedelta()

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return now() + cls.ahead


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at certificates are made all the time, and by a clock that stands where the test puts it."""
    Clock.ahead = timedelta()
    for module in (gateway, dialer):
        monkeypatch.setattr(module, "_CHECK_EVERY", 0.0)
        monkeypatch.setattr(module, "_LOOK_EVERY", 0.02)
        monkeypatch.setattr(module, "datetime", Clock)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return federation(tmp_path / "federation")


@contextmanager
def listening(home: Path) -> Iterator[gateway.Gateway]:
    made = gateway.Gateway("127.0.0.1:0", lambda: read_gateway_credentials(home))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def dialling(port: int, credentials: Callable[[], SiloCredentials], state: Path) -> Iterator[dialer.Dialer]:
    done: list[str] = []

    def handle(order: str, parcel: Parcel) -> Parcel:
        assert order not in done
        done.append(order)
        return Parcel(parcel.head, parcel.buffers)

    made = dialer.Dialer(f"127.0.0.1:{port}", credentials, handle, handle, state)
    stop = threading.Event()
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join()


def until(true: Callable[[], bool]) -> None:
    """Wait for something that must come; pytest ends a test for which it does not."""
    pause = threading.Event()
    while not true():
        pause.wait(0.02)


def order(to: gateway.Gateway, client: str = "a") -> None:
    assert to.submit(client, secrets.token_hex(16), Parcel(b"{}", (b"1234" * 1000,)), 60.0).result().buffers[0] == b"1234" * 1000


def test_a_certificate_is_rotated_while_orders_are_worked_on(home: Path, tmp_path: Path) -> None:
    identity = silo(home, "a", tmp_path / "a")
    old = read_silo_credentials(identity)

    def send(request: bytes, proof: bytes) -> tuple[bytes, bytes]:
        return admission.renew(home, request, proof, old.certificate, now()), old.federation

    with listening(home) as end, dialling(end.port, lambda: read_silo_credentials(identity), tmp_path / "state"):
        stop, answered = threading.Event(), []

        def work() -> None:
            while not stop.is_set():
                order(end)
                answered.append(1)

        worker = threading.Thread(target=work)
        worker.start()
        until(lambda: len(answered) > 5)
        new = enrolment.rotate(identity, send, now())
        until(lambda: [life_of(s.visitor.certificate)[0] for s in list(end._streams)] == [life_of(new.certificate)[0]])
        count = len(answered)
        until(lambda: len(answered) > count + 5)
        admission.renew_gateway(home, [], now())  # whose new certificate is shown at the next dial
        stop.set()
        worker.join()
        order(end)


def test_a_revocation_ends_an_open_link_and_both_sides_know_why(home: Path, tmp_path: Path) -> None:
    identity = silo(home, "a", tmp_path / "a")
    silo(home, "b", tmp_path / "b")
    with (
        listening(home) as end,
        dialling(end.port, lambda: read_silo_credentials(identity), tmp_path / "state") as own,
        dialling(end.port, lambda: read_silo_credentials(tmp_path / "b"), tmp_path / "state-b"),
    ):
        order(end)
        admission.revoke(home, "a", now())
        until(lambda: not end.silos()["a"].connected and "is revoked" in end.silos()["a"].cause)
        until(lambda: "is revoked; the coordinator can invite it again" in own.cause)
        with pytest.raises(SiloAway, match="is revoked"):
            end.submit("a", secrets.token_hex(16), Parcel(b"{}"), 0.2).result()
        order(end, "b")


def test_a_certificate_that_ends_on_an_open_link_ends_it_and_both_sides_know_why(home: Path, tmp_path: Path) -> None:
    identity = silo(home, "a", tmp_path / "a")
    with listening(home) as end, dialling(end.port, lambda: read_silo_credentials(identity), tmp_path / "state") as own:
        order(end)
        Clock.ahead = timedelta(days=91)
        until(lambda: not end.silos()["a"].connected and "of silo 'a' ended on" in end.silos()["a"].cause)
        until(lambda: "ended on" in own.cause and "fedray silo enrol" in own.cause)


def test_a_strangers_certificate_is_refused_and_the_stranger_knows_why(home: Path, tmp_path: Path) -> None:
    other = federation(tmp_path / "other")
    stranger = read_silo_credentials(silo(other, "a", tmp_path / "stranger"))
    posing = SiloCredentials("a", stranger.key, stranger.certificate, read_gateway_credentials(home).federation)
    with listening(home) as end:
        with dialling(end.port, lambda: stranger, tmp_path / "one") as own:
            until(lambda: "dialled" not in own.cause)
            assert "certificate" in own.cause.lower()  # the gateway's is none of the stranger's federation
        with dialling(end.port, lambda: posing, tmp_path / "two") as own:
            until(lambda: "was not issued by this federation" in own.cause)
        assert not end.silos()


def test_another_clients_name_is_refused_and_both_sides_know_why(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = read_silo_credentials(silo(home, "a", tmp_path / "a"))
    posing = SiloCredentials("b", own.key, own.certificate, own.federation)
    with listening(home) as end, dialling(end.port, lambda: posing, tmp_path / "state") as side:
        until(lambda: "that of silo 'a', and not of 'b'" in side.cause)
        assert not any(presence.connected for presence in end.silos().values())
    assert any("is refused" in record.message and "not of 'b'" in record.message for record in caplog.records)


def test_an_identity_that_cannot_be_read_is_named_and_dialled_with_once_it_can(home: Path, tmp_path: Path) -> None:
    identity = silo(home, "a", tmp_path / "a")
    (identity / IDENTITY).chmod(0o644)
    with listening(home) as end, dialling(end.port, lambda: read_silo_credentials(identity), tmp_path / "state") as own:
        until(lambda: "mode 0644" in own.cause)
        (identity / IDENTITY).chmod(0o600)
        order(end)


def test_a_gateway_whose_own_certificate_has_ended_does_not_begin(tmp_path: Path) -> None:
    home = federation(tmp_path / "federation", when=now() - timedelta(days=366))
    with pytest.raises(CertificateRefused, match="the gateway's certificate ended on .*fedray federation renew"), listening(home):
        pass
    admission.renew_gateway(home, [], now())
    with listening(home):
        pass
