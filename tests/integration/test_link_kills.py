"""Either end of a silo's link killed, or the link cut, at every message in turn: real processes, real TLS."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from certified import CertifiedFederation
from linkends import CLIENT, ORDERS, Fault, answer_to, coordinator, silo, start

PATIENCE = 120.0  # seconds after which a round is held to hang


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def played(directory: Path, at_silo: Fault, at_gateway: Fault) -> int:
    """Play a run with a fault at one end and check it; returns how many processes were killed."""
    federation = CertifiedFederation()
    shown = federation.silo(CLIENT)
    address, kills = f"127.0.0.1:{free_port()}", 0
    directory.mkdir(parents=True)
    ends = {silo: shown, coordinator: federation.gateway()}
    running = {end: start(end, address, ends[end], directory, fault) for end, fault in ((coordinator, at_gateway), (silo, at_silo))}
    limit = time.monotonic() + PATIENCE
    try:
        while running[coordinator].exitcode != 0:
            assert time.monotonic() < limit, "the run hangs"
            for end, process in list(running.items()):
                ended = process.exitcode  # read once: it may end between two looks
                if ended == -signal.SIGKILL:
                    kills += 1
                    running[end] = start(end, address, ends[end], directory, Fault())
                else:
                    assert ended in (None, 0), f"{end.__name__} ended with {ended}"
            running[coordinator].join(0.05)
    finally:
        for process in running.values():
            process.kill()
            process.join()
    for number in range(ORDERS):
        assert (directory / f"result-{number}").read_bytes() == answer_to(number)
    worked = Counter((directory / "worked").read_text().split())
    assert set(worked.values()) == {1} and ORDERS <= len(worked) <= ORDERS + kills
    return kills


def messages(end: str, directory: Path) -> int:
    """The number of messages of an end in a run without faults is found by asking for a fault ever later, until there is none."""
    low, high = 1, 256
    while high - low > 1:
        middle = (low + high) // 2
        if kill(end, middle, directory / f"{end}-{middle}"):
            low = middle
        else:
            high = middle
    return low


def kill(end: str, message: int, directory: Path) -> int:
    fault = Fault("kill", message)
    return played(directory, *((fault, Fault()) if end == "silo" else (Fault(), fault)))


@pytest.mark.parametrize("end", ["silo", "gateway"])
@pytest.mark.parametrize("message", [4, 13])
def test_an_end_that_is_killed_at_a_message(end: str, message: int, tmp_path: Path) -> None:
    assert kill(end, message, tmp_path / "run") == 1


@pytest.mark.parametrize("end", ["silo", "gateway"])
def test_a_link_that_is_cut_at_a_message(end: str, tmp_path: Path) -> None:
    fault = Fault("cut", 12)
    assert played(tmp_path / "run", *((fault, Fault()) if end == "silo" else (Fault(), fault))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "cut"])
@pytest.mark.parametrize("end", ["silo", "gateway"])
def test_a_fault_at_every_message_of_a_run_in_turn(end: str, kind: str, tmp_path: Path) -> None:
    last = messages(end, tmp_path)
    assert last > 30
    for message in range(1, last + 1):
        fault = Fault(kind, message)
        kills = played(tmp_path / f"{kind}-{message}", *((fault, Fault()) if end == "silo" else (Fault(), fault)))
        assert kills <= 1
