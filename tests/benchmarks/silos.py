"""What the way to silos outside the cluster costs: a round beside the same round with dedicated actors, and bytes on the wire.

``PYTHONPATH=tests python -m tests.benchmarks.silos [heart] [cnn] [cnn-short] [--rounds 5]``; prints and keeps the figures. Both kinds of runs take place
on this machine, one after the other, with the same clients and the same settings. ``heart`` is the four hospitals' logistic regression; ``cnn`` is McMahan
et al.'s (2017) of 1.66 M parameters with their 600 images a client, five epochs and batches of ten, ``cnn-short`` the same with 200 images and one epoch;
the images are noise. Bytes are counted by a relay on the way, in a run of their own, beside the bytes of the values that must go either way.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from remotesilos import HEART, HOSPITAL, SiloProcesses

import fedray
from fedray.runfiles import RunFiles
from tests.benchmarks.__main__ import RESULTS, machine

SKIP = 2  # rounds before the first that counts
COUNTED = 3  # rounds whose bytes are counted
WORKLOADS = ("heart", "cnn", "cnn-short")
NAMES = [f"client-{n:04d}" for n in range(4)]


class Relay:
    """Passes connections on to a port and counts what goes either way."""

    def __init__(self, to: int) -> None:
        self._to, self.bytes, self._lock = to, 0, threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
                with self._lock:
                    self.bytes += len(data)
        except OSError:
            pass
        for end in (one, other):
            end.close()


def heart() -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """Sections of the run, its data with dedicated actors, and each silo's own data."""
    names = sorted(path.stem for path in HEART.glob("*.csv"))
    training = {"lr": 0.001, "batch_size": 4, "steps": 100, "loss": "binary_cross_entropy"}
    sections = {"model": {"kind": "logistic"}, "training": training}
    return sections, {"source": f"csv:{HEART}", **HOSPITAL}, {n: {"source": f"csv:{HEART / n}.csv", **HOSPITAL} for n in names}


def cnn(folder: Path, images: int, epochs: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """As :func:`heart`."""
    draws = np.random.default_rng(0)
    pixels, labels = draws.integers(0, 256, (4 * images, 1, 28, 28), dtype=np.uint8), draws.integers(0, 10, 4 * images)
    np.savez(folder / "noise.npz", x_train=pixels, y_train=labels)
    data = {"source": f"npz:{folder / 'noise.npz'}", "classes": 10, "partition": {"kind": "iid", "clients": 4}}
    return {"model": {"kind": "fedavg_cnn"}, "training": {"lr": 0.1, "batch_size": 10, "epochs": epochs}}, data, dict.fromkeys(NAMES, data)


def measured(output: Path, rounds: int, data: dict[str, Any], clients: dict[str, Any], sections: dict[str, Any]) -> tuple[float, str]:
    """Median seconds of a round, without the first ones, and the model's hash."""
    raw = {"name": output.name, "rounds": rounds, "tracking": {"enabled": False}, "evaluation": {"metrics": []}}
    done = fedray.run({**raw, **sections, "data": {**data, "holdout": {"fraction": 0.0}}, "clients": clients}, output=str(output))
    rows = RunFiles(output).rows()[SKIP:]
    return float(np.median([row["metrics"]["time/round_s"] for row in rows])), str(done.summary["model_sha256"])


@contextmanager
def running(folder: Path, own: dict[str, dict[str, Any]], relayed: bool) -> Iterator[tuple[SiloProcesses, Relay | None]]:
    """Silos, perhaps by way of a relay."""
    those = SiloProcesses(folder, own)
    relay = Relay(those.port) if relayed else None
    try:
        for name in own:
            if relay is not None:
                site = folder / name / "site.yaml"
                site.write_text(site.read_text().replace(f":{those.port}", f":{relay.port}"))
            those.start(name)
        yield those, relay
    finally:
        for name in list(those.running):
            those.kill(name)


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Round times and bytes of a workload."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sections, data, own = heart() if name == "heart" else cnn(folder, *((600, 5) if name == "cnn" else (200, 1)))
        classes = {"source": f"silos:{','.join(own)}", "classes": 2 if name == "heart" else 10}
        inside, ours = measured(folder / "inside", rounds, data, {"placement": "dedicated", "resources": {"cpu": 0.25}}, sections)
        with running(folder / "outside", own, False) as (those, _):
            outside, theirs = measured(folder / "run", rounds, classes, those.clients, sections)
        assert ours == theirs
        found: dict[str, Any] = {"dedicated_s": inside, "remote_s": outside, "overhead": outside / inside - 1}
        with running(folder / "relayed", own, True) as (those, relay):
            assert relay is not None
            measured(folder / "counted", COUNTED, classes, those.clients, sections)
        parameters = 14 if name == "heart" else 1_663_370
        values = COUNTED * len(own) * parameters * (4 + 8)  # float32 down, integers of 64 bits up
        found |= {"bytes_on_the_wire": relay.bytes, "bytes_of_values": values, "more": relay.bytes / values - 1, "rounds": rounds}
    print(name, json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    found = {name: compare(name, asked.rounds) for name in asked.workloads}
    (RESULTS / "silos.json").write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
