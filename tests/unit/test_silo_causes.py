"""Why there is no link: said on both sides, and counted again as soon as it is mended."""

from __future__ import annotations

import logging
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certified import CertifiedFederation
from processes import wait_until
from test_silo_link import dialling, listening

from fedray.errors import FedrayError
from fedray.silos import dialer as dialer_module
from fedray.silos import gateway as gateway_module
from fedray.silos.certificates import GatewayCredentials, SiloCredentials, check_own
from fedray.silos.gateway import Gateway
from fedray.silos.orderbook import OrderBook
from fedray.silos.parcels import Parcel

NOW = datetime.now(UTC)


def echo(order: str, parcel: Parcel) -> Parcel:
    return parcel


def said_by_gateway(log: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in log.records if r.name in ("fedray.silos.gateway", "fedray.silos.doorway"))


def gateways_as_silo(federation: CertifiedFederation) -> SiloCredentials:
    shown = federation.gateway()
    return SiloCredentials("a", shown.key, shown.certificate, federation.authority)


CASES = {
    "expired": (lambda f, other: f.silo("a", NOW - timedelta(days=30), days=10), "ended on", "its certificate has expired"),
    "not yet": (lambda f, other: f.silo("a", NOW + timedelta(days=3), days=10), "counts from", "its certificate is not valid yet"),
    "unknown": (
        lambda f, other: SiloCredentials("a", (mine := other.silo("a")).key, mine.certificate, f.authority),
        "not issued by",
        "was not issued by this federation",
    ),
    "a gateway's": (lambda f, other: gateways_as_silo(f), "certificate is not a silo's", "its certificate is not a silo's"),
    "revoked": (lambda f, other: f.silo("revoked"), "is revoked", "the certificate of silo 'revoked' .* is revoked"),
    "another's": (
        lambda f, other: SiloCredentials("a", (b := f.silo("b")).key, b.certificate, f.authority),
        "is that of silo 'b', and not of 'a'",
        "is that of silo 'b', and not of 'a'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_certificate_that_does_not_count_is_named_on_both_sides(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation, other = CertifiedFederation(), CertifiedFederation()
    make, at_silo, at_gateway = CASES[case]
    shown = make(federation, other)
    if case == "revoked":
        federation.revoke(shown)
    caplog.set_level(logging.INFO)
    with listening(federation) as gateway, dialling(gateway.port, lambda: shown, tmp_path, echo) as dialer:
        wait_until(lambda: at_silo in dialer.cause, f"the silo says '{at_silo}'", 60.0)
        wait_until(lambda: re.search(at_gateway, said_by_gateway(caplog)), f"the gateway says '{at_gateway}'", 60.0)
        assert not any(presence.connected for presence in gateway.silos().values())


@pytest.mark.parametrize(
    ("case", "at_silo", "at_gateway"),
    [
        ("expired", "the gateway's certificate has expired", "no silo connects any more: the gateway's certificate ended on"),
        ("unknown", "the gateway's certificate was not issued by this silo's federation", ""),
        ("another host's", "the gateway's certificate is for another host name", ""),
        ("a silo's", "the gateway's certificate is not a gateway's", ""),
    ],
)
def test_a_gateways_certificate_that_does_not_count_is_named(
    case: str, at_silo: str, at_gateway: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    federation, other = CertifiedFederation(), CertifiedFederation()
    silo, of_gateway = federation.silo("a"), federation.gateway()
    if case == "expired":
        of_gateway = federation.gateway(federation.gateway_identity(NOW - timedelta(days=5000)))
    elif case == "unknown":
        of_gateway = other.gateway()
    elif case == "another host's":
        of_gateway = CertifiedFederation(("federation.example.org",)).gateway()
        silo = SiloCredentials("a", silo.key, silo.certificate, of_gateway.federation)
    else:
        b = federation.silo("b")
        of_gateway = GatewayCredentials(b.key, b.certificate, federation.authority, frozenset())
    monkeypatch.setattr(gateway_module, "check_own", lambda *args: None)
    gateway = Gateway("127.0.0.1:0", lambda: of_gateway)
    gateway.start()
    monkeypatch.setattr(gateway_module, "check_own", check_own)
    monkeypatch.setattr(gateway_module, "_CHECK_EVERY", 0.1)
    try:
        with dialling(gateway.port, lambda: silo, tmp_path, echo) as dialer:
            wait_until(lambda: at_silo in dialer.cause, f"the silo says '{at_silo}'", 60.0)
            wait_until(lambda: at_gateway in said_by_gateway(caplog), f"the gateway says '{at_gateway}'", 60.0)
            assert not gateway.silos()
    finally:
        gateway.stop()


def test_nobody_there_and_no_such_name_are_named(tmp_path: Path) -> None:
    silo = CertifiedFederation().silo("a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with dialling(taken.getsockname()[1], lambda: silo, tmp_path, echo) as dialer:
            wait_until(lambda: "nothing listens there" in dialer.cause, "the silo says that nothing listens", 60.0)


def test_another_protocol_is_refused_with_both_versions_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_module, "PROTOCOL", 9)
    federation = CertifiedFederation()
    silo = federation.silo("a")
    with listening(federation) as gateway, dialling(gateway.port, lambda: silo, tmp_path, echo) as dialer:
        text = "the gateway says: the silo speaks version 9 of the protocol and the gateway version 1"
        wait_until(lambda: text in dialer.cause, "the silo names both versions", 60.0)
        assert not gateway.silos()["a"].connected and "version 9" in gateway.silos()["a"].cause


def test_two_processes_do_not_share_the_orders_of_a_silo(tmp_path: Path) -> None:
    book = OrderBook(tmp_path / "answers")
    with pytest.raises(FedrayError, match="another process has this silo's orders"):
        OrderBook(tmp_path / "answers")
    book.close()
    OrderBook(tmp_path / "answers").close()
