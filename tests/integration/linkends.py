"""Processes of the two ends of a silo's link, with a fault at the n-th message of one of them."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedray.silos import dialer, gateway, outbox
from fedray.silos.certificates import GatewayCredentials, SiloCredentials, read_gateway_credentials, read_silo_credentials
from fedray.silos.counter import OrderLost, SiloRefused
from fedray.silos.dialer import Dialer
from fedray.silos.gateway import Gateway
from fedray.silos.parcels import Parcel

CLIENT = "hospital-a"
FLOATS = 600_000  # of an order: three chunks of 1 MiB
ORDERS = 3

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["linkends"])


@dataclass(frozen=True)
class Fault:
    """What happens to one end at its n-th message, from 1, sent or received; nothing at 0."""

    kind: str = "kill"
    message: int = 0


def answer_to(number: int) -> bytes:
    return (np.random.default_rng(number).normal(size=FLOATS).astype(np.float32) * 3).tobytes()


def _faulty(fault: Fault, cut: Callable[[], None]) -> None:
    """Count this process's messages, and let the fault happen."""
    lock, count = threading.Lock(), Counter[str]()

    def message() -> None:
        with lock:
            count["messages"] += 1
            due = count["messages"] == fault.message
        if due and fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif due:
            cut()

    read, following = dialer.read_frame, outbox.Outbox.next

    def read_frame(data: bytes) -> Any:
        message()
        return read(data)

    def next_frame(self: outbox.Outbox, wait: bool = False) -> bytes | None:
        found = following(self, wait)
        if found is not None:
            message()
        return found

    dialer.read_frame = gateway.read_frame = read_frame
    outbox.Outbox.next = next_frame  # type: ignore[method-assign]


def silo(address: str, credentials: SiloCredentials, directory: Path, fault: Fault, waits: float = 0.2) -> None:
    """Dials for ever, after ``waits`` seconds at least; each order that is worked on is a line of ``worked``."""
    dialer._SHORTEST_WAIT = waits

    def handle(order: str, parcel: Parcel) -> Parcel:
        with (directory / "worked").open("a") as file:
            file.write(f"{order}\n")
        if parcel.head == b'"no answer"':
            return Parcel(b"{}")
        return Parcel(parcel.head, (memoryview(np.frombuffer(parcel.buffers[0], np.float32) * 3),))

    made = Dialer(address, lambda: credentials, handle, lambda order, parcel: parcel, directory)
    _faulty(fault, lambda: made._current.call.cancel())  # type: ignore[union-attr]
    made.run(threading.Event())


def coordinator(listen: str, credentials: GatewayCredentials, directory: Path, fault: Fault) -> None:
    """Has the orders that have no result yet worked on, in turn, and keeps each result in a file; an order that was lost is made anew."""
    made = Gateway(listen, lambda: credentials)
    _faulty(fault, lambda: [stream.context.cancel() for stream in made._streams])
    made.start()
    for number in range(ORDERS):
        result = directory / f"result-{number}"
        sent = np.random.default_rng(number).normal(size=FLOATS).astype(np.float32)
        for attempt in range(3):
            if result.exists():
                break
            order = hashlib.md5(f"{number}-{attempt}".encode()).hexdigest()
            try:
                answer = made.submit(CLIENT, order, Parcel(b"{}", (memoryview(sent),)), 60.0, hold=True).result()
                ping = hashlib.md5(f"ping-{number}-{time.time_ns()}".encode()).hexdigest()
                assert made.submit(CLIENT, ping, Parcel(b'"ping"'), 60.0, control=True).result().head == b'"ping"'
            except OrderLost:
                continue
            result.with_suffix(".half").write_bytes(answer.buffers[0])
            result.with_suffix(".half").rename(result)
            made.release(CLIENT, order)
    made.stop()


def _echoing(credentials: GatewayCredentials, port: Any) -> None:
    made = Gateway("127.0.0.1:0", lambda: credentials)
    made.start()
    port.send(made.port)
    for number in range(1_000_000):  # whoever is connected has always an order to answer
        order = hashlib.md5(f"echo-{number}".encode()).hexdigest()
        with contextlib.suppress(SiloRefused):
            made.submit(CLIENT, order, Parcel(b"{}"), 3600.0).result()


def echoing_gateway(credentials: GatewayCredentials) -> tuple[Any, int]:
    """Start a gateway that has an order for the silo at any time; returns its process and port."""
    here, there = _CONTEXT.Pipe()
    process = start(_echoing, credentials, there)
    return process, here.recv()


def start(target: Callable[..., None], *arguments: object) -> Any:
    with pytest.MonkeyPatch.context() as patch:  # the server of forks finds this module by the environment alone
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


if __name__ == "__main__":  # ROLE ADDRESS IDENTITY STATE: an end in a process of its own, without faults
    role, address, identity, state = sys.argv[1:]
    if role == "silo":
        silo(address, read_silo_credentials(Path(identity)), Path(state), Fault())
    else:
        coordinator(address, read_gateway_credentials(Path(identity)), Path(state), Fault())
