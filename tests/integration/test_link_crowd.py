"""Many silos at one gateway, some of them killed in each round; and how much memory the ends take for what passes."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from certified import CertifiedFederation
from linkends import Fault, silo, start

from fedray.silos.counter import OrderLost
from fedray.silos.gateway import Gateway
from fedray.silos.parcels import Parcel

KILLED = 3  # silos in each round
ROOM = 64 * 2**20  # bytes that an end may take beside a parcel, which is three times as large


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("silos", "rounds"), [(8, 6), pytest.param(50, 100, marks=pytest.mark.slow)])
def test_silos_are_killed_in_each_round_and_each_answer_comes_once(silos: int, rounds: int, tmp_path: Path) -> None:
    draw, federation = random.Random(0), CertifiedFederation()
    shown = {f"silo-{number}": federation.silo(f"silo-{number}") for number in range(silos)}
    gateway = Gateway("127.0.0.1:0", federation.gateway)
    gateway.start()
    address, memory = f"127.0.0.1:{gateway.port}", []

    def started(client: str) -> multiprocessing.Process:
        (tmp_path / client).mkdir(exist_ok=True)
        process: multiprocessing.Process = start(silo, address, shown[client], tmp_path / client, Fault())
        return process

    running = {client: started(client) for client in shown}
    lost = 0
    try:
        for number in range(rounds):
            sent = np.random.default_rng(number).normal(size=25_000).astype(np.float32)
            parcel, due = Parcel(b"{}", (memoryview(sent),)), dict.fromkeys(shown, 0)
            doomed = draw.sample(sorted(running), KILLED)
            while due:
                answers = {
                    client: gateway.submit(client, hashlib.md5(f"{client}-{number}-{attempt}".encode()).hexdigest(), parcel, 120.0)
                    for client, attempt in due.items()
                }
                for client in doomed:
                    if draw.random() < 0.5:
                        answers[draw.choice(sorted(answers))].exception(120.0)  # somewhere in the round
                    running[client].kill()
                    running[client].join()
                    running[client] = started(client)
                doomed = []
                for client, answer in answers.items():
                    try:
                        assert (np.frombuffer(answer.result(120.0).buffers[0], np.float32) == sent * 3).all()
                        del due[client]
                    except OrderLost:
                        due[client], lost = due[client] + 1, lost + 1
            memory.append(psutil.Process().memory_info().rss)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.join()
        gateway.stop()
    for client in shown:
        worked = Counter((tmp_path / client / "worked").read_text().split())
        assert set(worked.values()) == {1} and rounds <= len(worked) <= rounds + lost
    half = rounds // 2
    assert max(memory[half:]) - max(memory[:half]) < 30 * 2**20, f"the gateway's memory grows: {memory}"


def test_an_end_holds_a_parcel_once(tmp_path: Path) -> None:
    federation, floats = CertifiedFederation(), 50_000_000
    gateway = Gateway("127.0.0.1:0", federation.gateway)
    gateway.start()
    process = start(silo, f"127.0.0.1:{gateway.port}", federation.silo("a"), tmp_path, Fault())
    try:
        gateway.submit("a", "0" * 32, Parcel(b"{}", (bytes(4000),)), 60.0).result()
        before = peak(process.pid)
        gateway.submit("a", "1" * 32, Parcel(b'"no answer"', (memoryview(np.ones(floats, np.float32)),)), 120.0).result()
        assert peak(process.pid) - before < 4 * floats + ROOM
        gateway_before = psutil.Process().memory_info().rss
        answer = gateway.submit("a", "2" * 32, Parcel(b"{}", (memoryview(np.ones(floats, np.float32)),)), 120.0).result()
        assert len(answer.buffers[0]) == 4 * floats
        assert psutil.Process().memory_info().rss - gateway_before < 4 * floats + ROOM
    finally:
        process.kill()
        process.join()
        gateway.stop()


def peak(pid: int) -> int:
    """The most memory that a process has had resident, in bytes."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
