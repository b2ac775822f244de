"""What befalls a cluster, done to real hosts and processes at seeded moments of a run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from hospitals import SITES, Federation

#: Seconds that one run with its faults may take; what hangs is a failure.
LIMIT = 900.0


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: host, cut, head, driver or client.
        where: the site, for host, cut and client.
        round: it happens when this round's line is written.
        seconds: until the host or head is started again, or the cable plugged in.
    """

    kind: str
    where: str
    round: int
    seconds: float


def schedule(seed: int, rounds: int, number: int = 2) -> list[Fault]:
    """Seeded faults in the order of their rounds."""
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(1, rounds - 3), number))
    return [
        Fault(draw.choice(["host", "cut", "head", "driver", "client"]), draw.choice(sorted(SITES)), at, draw.uniform(2.0, 30.0))
        for at in moments
    ]


def lines(output: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics file."""
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]] if file.exists() else []


def processes(federation: Federation, title: str, sites: Sequence[str] = tuple(SITES)) -> list[psutil.Process]:
    """Ray's worker processes of that title in the sites' hosts."""
    found = []
    for site in sites:
        if not federation.sites[site].up:
            continue
        for process in psutil.Process(federation.sites[site].pid).children(recursive=True) + _descendants(federation, site):
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue
    return found


def _descendants(federation: Federation, site: str) -> list[psutil.Process]:
    node = federation.nodes.get(site)
    if node is None or node.process.poll() is not None:
        return []
    return psutil.Process(node.process.pid).children(recursive=True)


def strike(federation: Federation, fault: Fault) -> None:
    """Do it, and undo it after its time."""
    site = federation.sites.get(fault.where)
    assert site is not None
    if fault.kind == "cut":
        site.cut()
        time.sleep(fault.seconds)
        site.mend()
        _rejoin(federation, fault.where)
    elif fault.kind == "host":
        site.kill()
        time.sleep(fault.seconds)
        site.boot()
        federation.start_site(fault.where)
    elif fault.kind == "head":
        federation.head.kill()
        time.sleep(fault.seconds)
        federation.head.boot()
        federation.start_head()
    else:
        title, sites = ("ray::Experiment", tuple(SITES)) if fault.kind == "driver" else ("ray::ClientHost", (fault.where,))
        for process in processes(federation, title, sites)[:1] or processes(federation, "ray::client-", sites)[:1]:
            process.send_signal(signal.SIGKILL)


def _rejoin(federation: Federation, where: str) -> None:
    """A node that was taken for dead ends itself when it is heard again; a supervisor would start it anew, as we do."""
    limit = time.monotonic() + 60.0
    while time.monotonic() < limit:
        if federation.nodes[where].process.poll() is not None:
            federation.start_site(where)
            return
        time.sleep(0.2)


def run_with(federation: Federation, output: Path, faults: Sequence[Fault]) -> dict[str, Any]:
    """Submit the hospitals' run, strike while it goes on, and submit again until it is done.

    Returns:
        ``seconds``, ``submissions``, ``struck`` (faults that found the run at work) and ``log``.
    """
    began, struck, log = time.monotonic(), list[Fault](), list[str]()
    over = threading.Event()
    failure: list[BaseException] = []
    running: list[subprocess.Popen[str]] = []

    def injector() -> None:
        try:
            for fault in faults:
                while len(lines(output)) < fault.round:
                    if over.wait(0.05):
                        return
                if over.is_set():
                    return
                struck.append(fault)
                strike(federation, fault)
        except BaseException as error:
            failure.append(error)
            running[-1].kill()

    thread = threading.Thread(target=injector)
    thread.start()
    code = None
    try:
        while code != 0:
            if time.monotonic() - began > LIMIT:
                raise AssertionError(f"not done after {LIMIT:g} s and {len(running)} submissions: {log[-1][-3000:] if log else ''}")
            running.append(federation.submit(output))
            text, _ = running[-1].communicate(timeout=LIMIT)
            log.append(text)
            code = running[-1].returncode
            if failure:
                raise failure[0]
    finally:
        over.set()
        thread.join()
    return {"seconds": round(time.monotonic() - began, 1), "submissions": len(running), "struck": struck, "log": "\n".join(log)}
