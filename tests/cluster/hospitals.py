"""Four hospitals on a Ray of three hosts, and a desk that submits from a fourth address.

Each host has files and ledgers of its own hospitals and no others: their directories are bound into that host alone. Only the
run's output lies on a directory that all hosts see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from paths import ROOT

from cluster.hosts import Host, Hosts
from cluster.ray_hosts import QUICK_HEALTH_CHECKS, RayNode, start_head, start_worker
from fedray.errors import FedrayError

#: Of every node: a job's `python` is this one.
NODE = {**QUICK_HEALTH_CHECKS, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

#: Which hospitals each host has.
SITES = {"north": ("cleveland", "hungarian"), "south": ("switzerland", "va")}

INSIDE = '''
"""A model that writes down, from inside the process that uses it, which hospitals' files can be seen there."""

import json
import os
import socket

from torch import nn


def model(input_shape, outputs):
    seen = sorted(os.listdir("/mnt/heart")) if os.path.isdir("/mnt/heart") else []
    if os.path.isdir("/mnt/ledger"):
        with open("/mnt/ledger/inside.log", "a") as file:
            file.write(json.dumps({"host": socket.gethostname(), "sees": seen}) + "\\n")
    return nn.Linear(input_shape[0], outputs)
'''


def config(source: str, ledger: str, rounds: int, pinned: bool) -> dict[str, Any]:
    """The hospitals' run with seeded noise, so that its bytes can be compared."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "heart-private.yaml").read_text())
    raw["name"] = "hospitals"
    raw["rounds"] = rounds
    raw["data"] |= {"source": source, "silos": [h for site in SITES.values() for h in site]}
    raw["model"] = {"kind": "python:inside:model"}
    raw["training"] |= {"steps": 100}
    raw["privacy"] = {"regime": "record", "noise_multiplier": 3.0, "delta": 3.0e-4, "clip": 1.0, "ledger": ledger, "insecure_seed": 5}
    raw["tracking"] = {"enabled": False}
    raw["cohort"] = {"kind": "all", "min_clients": 4, "retries": 9}
    raw["clients"] = {
        "placement": "dedicated",
        "resources": {"cpu": 0.25},
        "start_timeout": 240.0,
        "unreachable_after": 15.0,
        "restarts": 50,
    }
    if pinned:
        raw["clients"]["groups"] = [
            {"name": site, "clients": list(who), "resources": {"cpu": 0.25, "custom": {f"site_{site}": 1}}} for site, who in SITES.items()
        ]
    return raw


@dataclass
class Federation:
    """The hosts, their Ray nodes, and where things lie."""

    hosts: Hosts
    head: Host
    sites: dict[str, Host]
    desk: Host
    token: Path
    root: Path
    nodes: dict[str, RayNode] = field(default_factory=dict)

    @property
    def environment(self) -> Mapping[str, str | None]:
        """For processes that use the cluster."""
        return self.nodes["head"].environment

    def start_head(self) -> None:
        """Start Ray on the head, which takes over what it was."""
        durable = self.root / "gcs"
        durable.mkdir(exist_ok=True)
        self.nodes["head"] = supervised(lambda: start_head(self.head, self.token, durable=durable, environment=NODE))

    def start_site(self, site: str, environment: Mapping[str, str] | None = None) -> None:
        """Start Ray on a site's host."""
        self.nodes[site] = supervised(
            lambda: start_worker(
                self.sites[site],
                self.nodes["head"],
                cpus=2,
                resources={f"site_{site}": 2},
                durable=self.root / "gcs",
                environment={**NODE, **(environment or {})},
            )
        )

    def ledger(self, site: str) -> Path:
        """A site's ledgers, as this machine sees them."""
        return self.root / site / "ledger"

    def submit(self, output: Path, *more: str, env: Mapping[str, str | None] | None = None) -> subprocess.Popen[str]:
        """``fedray submit`` at the desk."""
        line = [sys.executable, "-m", "fedray", "submit", "hospitals.yaml", "--output", str(output), *more]
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"} | {"RAY_ADDRESS": None, "PYTHONPATH": str(ROOT)}
        return self.desk.run(
            line, env=environment | dict(env or {}), cwd=self.root / "work", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def inside(self, site: str) -> list[dict[str, Any]]:
        """What the processes of a site saw."""
        log = self.ledger(site) / "inside.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@contextmanager
def federation(hosts: Hosts, token: Path, root: Path, data: Path, rounds: int) -> Iterator[Federation]:
    """Everything up: three nodes, data and ledgers where they belong, the job's working directory at the desk."""
    os.chmod(root, 0o755)
    head, sites = hosts.add("head"), {site: hosts.add(site) for site in SITES}
    made = Federation(hosts, head, sites, hosts.add("desk"), token, root)
    for site, names in SITES.items():
        for what in ("heart", "ledger"):
            (root / site / what).mkdir(parents=True)
            sites[site].bind(root / site / what, f"/mnt/{what}")
        for name in names:
            (root / site / "heart" / f"{name}.csv").write_bytes((data / "heart" / f"{name}.csv").read_bytes())
    work = root / "work"
    work.mkdir()
    (work / "inside.py").write_text(INSIDE)
    (work / "hospitals.yaml").write_text(yaml.safe_dump(config("csv:/mnt/heart", "/mnt/ledger", rounds, pinned=True)))
    made.start_head()
    for site in SITES:
        made.start_site(site)
    yield made


def supervised(start: Callable[[], RayNode]) -> RayNode:
    """Start a node as a supervisor does: again, where a slow machine made it give up."""
    for _ in range(3):
        try:
            return start()
        except FedrayError as error:
            last = error
    raise last


def listing(host: Host, directory: str) -> Sequence[str]:
    """What a host sees in a directory."""
    process = host.run(["ls", directory], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return process.communicate(timeout=600)[0].split()
