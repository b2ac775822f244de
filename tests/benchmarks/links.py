"""What an order and its answer cost over a silo's link on loopback: ``python -m tests.benchmarks.links [--large]``; prints and keeps the figures.

A gateway and a silo, two processes, over TLS. An order of control waits for no disk; one of work waits for the silo's, twice. ``--large`` sends 2 GB, too.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from fedray.silos.gateway import Gateway
from fedray.silos.parcels import Parcel
from tests.certified import CertifiedFederation
from tests.integration.linkends import Fault, silo, start

RESULTS = Path(__file__).parent / "results"
#: Name, float32 numbers each way, times.
SIZES = (("nothing", 0, 200), ("a CNN of 1.66 M", 1_660_000, 20))
LARGE = ("500 M", 500_000_000, 1)


def main() -> None:
    """Measure, print and keep."""
    federation = CertifiedFederation()
    gateway = Gateway("127.0.0.1:0", federation.gateway)
    gateway.start()
    with tempfile.TemporaryDirectory() as state:
        process = start(silo, f"127.0.0.1:{gateway.port}", federation.silo("a"), Path(state), Fault())
        ends = psutil.Process(), psutil.Process(process.pid)
        found = {}
        for name, floats, times in (*SIZES, *([LARGE] if "--large" in sys.argv else [])):
            parcel = Parcel(b"{}", (memoryview(np.ones(floats, np.float32)),))
            for lane, control in (("control", True), ("work", False)):
                gateway.submit("a", secrets.token_hex(16), parcel, 600.0, control).result()
                before, took = [sum(end.cpu_times()[:2]) for end in ends], []
                for _ in range(times):
                    began = time.perf_counter()
                    gateway.submit("a", secrets.token_hex(16), parcel, 600.0, control).result()
                    took.append(1000 * (time.perf_counter() - began))
                spent = [1000 * (sum(end.cpu_times()[:2]) - b) / times for end, b in zip(ends, before, strict=True)]
                found[f"{name}, {lane}"] = {
                    "ms, median": round(statistics.median(took), 2),
                    "ms, least": round(min(took), 2),
                    "processor ms, gateway": round(spent[0], 2),
                    "processor ms, silo": round(spent[1], 2),
                }
        process.kill()
        process.join()
    gateway.stop()
    made = {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "an order and its answer": found}
    print(json.dumps(made, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "links.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
