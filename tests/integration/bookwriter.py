"""Processes that charge a ledger and train, to be killed: each reserves, notes what it trained in a file, commits, and again.

Run as a program, this is the parent that forks such a process for each line of JSON on its input, so that a hundred of
them need not each load all modules. ``calls`` counts down the system calls (for an object store: requests) that the
ledger makes; before or after the last of them the process kills itself.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

from fedray.privacy.accounting.events import Gaussian, Poisson, SelfComposed
from fedray.privacy.ledger.chain import Charge
from fedray.privacy.ledger.ledger import Ledger
from fedray.stores import s3 as object_client

SUBJECTS = [f"silo-{k}" for k in range(12)]
EVENT = SelfComposed(5, Poisson(Fraction(1, 4), Gaussian(1.3)))


class Writers:
    """Starts and reaps writers, through one parent process."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        assert self._read() == "up"

    def _read(self) -> str:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline().strip()

    def _write(self, line: str) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.write(line + "\n")
        self._parent.stdin.flush()

    def start(self, **job: Any) -> int:
        """Start a writer; its process id."""
        self._write(json.dumps(job))
        return int(self._read())

    def reap(self) -> str:
        """Wait for the writer to end; ``killed``, or the error that ended it."""
        self._write("reap")
        return self._read()

    def stop(self) -> None:
        """End the parent."""
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait()


def trained(witness: Path) -> Counter[str]:
    """How often each subject was trained, as the writers noted it."""
    return Counter(witness.read_text().split()) if witness.exists() else Counter()


def write(job: dict[str, Any]) -> None:
    """Charge and train until killed, or for ``rounds`` rounds."""
    if job.get("calls"):
        (_die_in_requests if "://" in job["book"] else _die_in_system_calls)(job["calls"], job["after"])
    witness = os.open(job["witness"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with Ledger.open(job["book"], job["job"], wait=job.get("wait", 0.0)) as ledger:
        ledger.describe("p" * 64, {"delta": 1e-5, "noise_multiplier": 1.3, "steps": 5, "sampling_rate": [1, 4], "clip": 1.0})
        for round_ in range(job.get("rounds", 1 << 30)):
            heads = ledger.reserve([Charge(s, round_, 0, EVENT, "p" * 64, 1.0, data="d" * 64) for s in SUBJECTS])
            os.write(witness, "".join(f"{s}\n" for s in SUBJECTS).encode())
            receipt = {"plan": "p" * 64, "steps": 5, "sampling_rate": [1, 4], "noise_multiplier": 1.3, "clip": 1.0, "engine": "hooks"}
            ledger.commit(round_, 0, {s: {**receipt, "reservation": h.sha256} for s, h in zip(SUBJECTS, heads, strict=True)})


def _die_in_system_calls(calls: int, after: bool) -> None:
    number = itertools.count(1)

    def mortal(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            last = next(number) == calls
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    pwrite = os.pwrite
    os.pwrite = mortal(lambda descriptor, block, offset: pwrite(descriptor, block[:997], offset))
    os.fsync, os.ftruncate = mortal(os.fsync), mortal(os.ftruncate)


def _die_in_requests(calls: int, after: bool) -> None:
    from botocore.httpsession import URLLib3Session

    number = itertools.count(1)  # blocks are read by several threads
    real = URLLib3Session.send

    def send(self: Any, request: Any) -> Any:
        last = next(number) == calls
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(self, request)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    URLLib3Session.send = send


def main() -> None:
    """The parent of the writers."""
    import boto3

    boto3.client("s3", region_name="us-east-1")
    object_client.TIMEOUTS = (1.0, 2.0)
    print("up", flush=True)
    child, ends = 0, 0
    for line in sys.stdin:
        if line == "reap\n":
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with os.fdopen(ends) as said:
                print("killed" if status == -signal.SIGKILL else said.read().strip().replace("\n", " ") or f"ended {status}", flush=True)
            continue
        ends, mouth = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write(json.loads(line))
            except BaseException as error:
                os.write(mouth, f"{type(error).__name__}: {error}".encode()[:4000])
                os._exit(1)
            os._exit(0)
        os.close(mouth)
        print(child, flush=True)


if __name__ == "__main__":
    main()
