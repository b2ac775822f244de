"""Silos outside a cluster, each a process of its own on this machine, and runs with them beside the same runs with dedicated actors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from federations import NAMES, federation, silo
from paths import ROOT
from silopolicies import allow_all

#: Records of four hospitals, a file each, and how they are read.
HEART = Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data")) / "heart"
HOSPITAL: dict[str, Any] = {
    "label": "target",
    "label_threshold": 0,
    "drop": ["slope", "ca", "thal"],
    "missing": [""],
    "missing_rows": "drop",
    "categories": {"cp": [1, 2, 3, 4], "restecg": [0, 1, 2]},
    "drop_first": True,
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class SiloProcesses:
    """Silos with their files in ``directory``; ``data`` has each silo's own section.

    ``address`` is the coordinator's, and ``hosts`` starts a silo's process where that is another host: called as ``subprocess.Popen`` is.
    ``policy`` goes before what the silos allow, which is all that is built in.
    """

    def __init__(
        self,
        directory: Path,
        data: Mapping[str, Mapping[str, Any]],
        address: str = "localhost",
        hosts: Mapping[str, Callable[..., subprocess.Popen[bytes]]] | None = None,
        **policy: Any,
    ) -> None:
        self.directory, self.address, self.port = directory, address, free_port()
        self.coordinator = federation(directory / "federation", tuple(dict.fromkeys((address, *NAMES))))
        self._hosts = hosts or {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for name, section in data.items():
            place = directory / name
            silo(self.coordinator, name, place / "identity")
            (place / "state" / "ledger").mkdir(parents=True)
            allow_all(place / "policy.yaml", **policy)
            site = {"client": name, "gateway": f"{address}:{self.port}", "identity": "identity", "state": "state", "policy": "policy.yaml"}
            (place / "site.yaml").write_text(yaml.safe_dump({**site, "data": dict(section)}))

    @property
    def clients(self) -> dict[str, Any]:
        """The section ``clients`` of a run with them."""
        return {"placement": "remote", "gateway": {"listen": f"{self.address}:{self.port}", "identity": str(self.coordinator)}}

    def start(self, name: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        log = (self.directory / name / "output").open("ab")
        command = [sys.executable, "-m", "fedray", "silo", str(self.directory / name / "site.yaml")]
        spawn = self._hosts.get(name, subprocess.Popen)
        self.running[name] = spawn(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self.running.pop(name)
        process.send_signal(number)
        process.wait()

    def log(self, name: str) -> str:
        """What a silo has written."""
        return (self.directory / name / "output").read_text()


@contextmanager
def silos(directory: Path, data: Mapping[str, Mapping[str, Any]], **policy: Any) -> Iterator[SiloProcesses]:
    """Running silos."""
    found = SiloProcesses(directory, data, **policy)
    try:
        for name in data:
            found.start(name)
        yield found
    finally:
        for name in list(found.running):
            found.kill(name)
