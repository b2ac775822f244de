"""The link between a silo and the gateway over loopback, both ends in this process."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from certified import CertifiedFederation

from fedray.errors import ConfigError, FedrayError
from fedray.silos.certificates import SiloCredentials
from fedray.silos.counter import SiloAway, SiloRefused
from fedray.silos.dialer import Dialer
from fedray.silos.frames import hello
from fedray.silos.gateway import Gateway
from fedray.silos.link import METHOD, SERVICE
from fedray.silos.parcels import PROTOCOL, Parcel


def new_order() -> str:
    return secrets.token_hex(16)


@contextmanager
def listening(federation: CertifiedFederation) -> Iterator[Gateway]:
    gateway = Gateway("127.0.0.1:0", federation.gateway)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


@contextmanager
def dialling(
    port: int,
    credentials: Callable[[], SiloCredentials],
    state: Path,
    handle: Callable[[str, Parcel], Parcel],
    control: Callable[[str, Parcel], Parcel] = lambda order, parcel: parcel,
) -> Iterator[Dialer]:
    dialer = Dialer(f"127.0.0.1:{port}", credentials, handle, control, state)
    stop = threading.Event()
    thread = threading.Thread(target=dialer.run, args=(stop,))
    thread.start()
    try:
        yield dialer
    finally:
        stop.set()
        thread.join()


def doubled(order: str, parcel: Parcel) -> Parcel:
    return Parcel(parcel.head, tuple(memoryview(np.frombuffer(b, np.float32) * 2) for b in parcel.buffers))


def test_an_order_is_answered(tmp_path: Path) -> None:
    federation = CertifiedFederation()
    silo = federation.silo("hospital-a")
    arrays = np.random.default_rng(0).normal(size=1_660_000).astype(np.float32), np.ones(3, np.float32), np.zeros(0, np.float32)
    with listening(federation) as gateway, dialling(gateway.port, lambda: silo, tmp_path, doubled):
        parcel = Parcel(b'{"a": 1}', tuple(memoryview(a) for a in arrays))
        for control in (False, True):
            answer = gateway.submit("hospital-a", new_order(), Parcel(b"{}"), 30.0, control).result()
            assert answer == Parcel(b"{}")
        answer = gateway.submit("hospital-a", new_order(), parcel, 30.0).result()
        assert answer.head == parcel.head
        for sent, came in zip(arrays, answer.buffers, strict=True):
            assert (np.frombuffer(came, np.float32) == sent * 2).all()
        presence = gateway.silos()["hospital-a"]
        assert presence.connected and presence.address.startswith("127.0.0.1:") and len(presence.boot) == 32


def test_a_refusal_and_an_error_come_back_as_such(tmp_path: Path) -> None:
    federation = CertifiedFederation()
    silo = federation.silo("hospital-a")

    def handle(order: str, parcel: Parcel) -> Parcel:
        if parcel.head == b"1":
            raise FedrayError("policy.yaml, line 3: epsilon is 8, and at most 2 is allowed.")
        raise ValueError("patient 17 is 93 years old")

    with listening(federation) as gateway, dialling(gateway.port, lambda: silo, tmp_path, handle):
        with pytest.raises(SiloRefused, match=r"silo 'hospital-a': policy.yaml, line 3: epsilon is 8"):
            gateway.submit("hospital-a", new_order(), Parcel(b"1"), 30.0).result()
        with pytest.raises(SiloRefused, match=r"failed with ValueError") as refused:
            gateway.submit("hospital-a", new_order(), Parcel(b"2"), 30.0).result()
        assert "93" not in str(refused.value)


def test_control_is_answered_beside_work(tmp_path: Path) -> None:
    federation = CertifiedFederation()
    silo = federation.silo("hospital-a")
    begun, go = threading.Event(), threading.Event()

    def handle(order: str, parcel: Parcel) -> Parcel:
        begun.set()
        assert go.wait(60.0)
        return Parcel(b'"worked"')

    def control(order: str, parcel: Parcel) -> Parcel:
        go.set()
        return Parcel(b'"stopped"')

    with listening(federation) as gateway, dialling(gateway.port, lambda: silo, tmp_path, handle, control):
        work = gateway.submit("hospital-a", new_order(), Parcel(b"{}"), 30.0)
        assert begun.wait(60.0) and not work.done()
        assert gateway.submit("hospital-a", new_order(), Parcel(b"{}"), 30.0, control=True).result().head == b'"stopped"'
        assert work.result(60.0).head == b'"worked"'


def test_a_silo_that_never_dials_is_away_with_the_cause() -> None:
    with (
        listening(CertifiedFederation()) as gateway,
        pytest.raises(SiloAway, match=r"silo 'b' has been away .* has not been connected yet"),
    ):
        gateway.submit("b", new_order(), Parcel(b"{}"), 0.1).result()


def test_an_address_that_is_taken_is_named() -> None:
    federation = CertifiedFederation()
    with listening(federation) as gateway, pytest.raises(ConfigError, match=rf"gateway: '127.0.0.1:{gateway.port}' cannot be listened on"):
        Gateway(f"127.0.0.1:{gateway.port}", federation.gateway).start()


def test_who_goes_round_the_door_is_refused() -> None:
    """A process of the same machine that finds the port that gRPC listens on."""
    with listening(CertifiedFederation()) as gateway:
        assert gateway._doorway is not None
        with grpc.insecure_channel(f"127.0.0.1:{gateway._doorway._inside}") as channel, pytest.raises(grpc.RpcError) as refused:
            next(channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter([hello(PROTOCOL, "hospital-a", "", "")]), timeout=60))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED and not gateway.silos()
