"""A driver that lies: it has the federation's certificate, speaks the protocol well, and sends a silo whatever it likes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from remotesilos import SiloProcesses

from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.groups import ClientGroup
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Terms, make_terms
from fedray.config import Config
from fedray.configfile import build_config
from fedray.models.facts import ModelFacts, first_model
from fedray.privacy.recordplan import plan_record
from fedray.silos.calls import SiloOpening, pack_call, read_answer
from fedray.silos.certificates import read_gateway_credentials
from fedray.silos.forms import codec
from fedray.silos.gateway import Gateway
from fedray.silos.parcels import Parcel
from fedray.updates.pipeline import make_stages

NAME = "ward"
CLIENTS = 5
PATIENCE = 120.0  # seconds, of which a test that passes takes a few


def run_config(**sections: Any) -> Config:
    """A run with record-level privacy on the ward's records of two features and two classes."""
    raw: dict[str, Any] = {
        "name": "asked",
        "rounds": 3,
        "data": {"source": f"silos:{NAME},b,c,d,e", "classes": 2, "holdout": {"fraction": 0.25, "at": "clients"}},
        "model": {"kind": "softmax"},
        "clients": {"placement": "remote", "gateway": {"listen": "localhost:1", "identity": "federation"}},
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "training": {"lr": 0.5, "sampling_rate": 0.1, "expected_batch": 10, "steps": 2},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4, "ledger": "silos"},
        "evaluation": {"metrics": []},
    }
    return build_config(raw | sections)


class LyingDriver:
    """Sends one silo orders, honest ones unless it is told otherwise.

    Args:
        gateway: to which the silo is connected.
        config: of the run that it asks for.
        job: name of the run, with the number of its start.
    """

    def __init__(self, gateway: Gateway, config: Config, job: str) -> None:
        self._gateway, self.config, self.session = gateway, config, secrets.token_hex(8)
        self.facts = self.model_of(config)
        self.exchange = make_algorithm(config.algorithm).exchange(self.facts.layout)
        group = ClientGroup("default", range(CLIENTS), config.clients.resources, config.training, config.privacy.ledger, 1.0)
        plan = plan_record(config) if config.privacy.record else None
        self.terms: Terms = make_terms(config, group, plan, self.facts, self.exchange.sha256, job)
        self.client = ClientTask(0, NAME)
        self.opening = SiloOpening(self.client, None, 1, CLIENTS, 1.0, True, False, False, None)
        self.task = RoundTask(0, float(CLIENTS), make_stages(config), clients=CLIENTS)
        self.weights = np.zeros(self.exchange.down_size, dtype=np.float32)

    @staticmethod
    def model_of(config: Config, seed: int | None = None) -> ModelFacts:
        return first_model(config.model, (2,), 2, config.seed if seed is None else seed)[1]

    def order(self, name: str, *arguments: Any, order: str | None = None) -> tuple[str, Any]:
        """What the silo answers: ("answer", ...), ("error", (class, text)) or ("gone", ...)."""
        wire = codec(self.config, 2**20)
        parcel = Parcel(*(lambda head, buffers: (head, tuple(buffers)))(*pack_call(wire, name, self.session, arguments)))
        found = self._gateway.submit(NAME, order or secrets.token_hex(16), parcel, PATIENCE).result()
        return read_answer(wire, name, bytes(found.head), [memoryview(b) for b in found.buffers])

    def open(self, **lies: Any) -> tuple[str, Any]:
        return self.order("open", replace(self.terms, **lies), self.opening)

    def train(self, task: dict[str, Any] | None = None, client: dict[str, Any] | None = None, **more: Any) -> Any:
        """The one report, and the part, of a training that is asked for with these changes."""
        asked = replace(self.task, **(task or {})), more.get("weights", self.weights), [self.client._replace(**(client or {}))]
        said, found = self.order("train_and_hand_over", *asked, order=more.get("order"))
        assert said == "answer", found
        (report,), part = found
        return report, part


class Ward:
    """A silo's process with records of its own, and the gateway to which it dials."""

    def __init__(self, directory: Path, gateway: Gateway, processes: SiloProcesses) -> None:
        self.home, self._gateway, self._processes = directory / NAME, gateway, processes

    def driver(self, job: str, **sections: Any) -> LyingDriver:
        return LyingDriver(self._gateway, run_config(**sections), job)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in (self.home / "state" / "log.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    @property
    def charges(self) -> int:
        """Charges in the silo's own ledger."""
        path = self.home / "state" / "ledger" / f"{NAME}.jsonl"
        return path.read_text().count('"kind":"reserve"') if path.exists() else 0

    @property
    def alive(self) -> bool:
        return self._processes.running[NAME].poll() is None

    def restart(self) -> None:
        self._processes.kill(NAME)
        self._processes.start(NAME)


@contextmanager
def ward(directory: Path) -> Iterator[Ward]:
    """A running silo with 400 records."""
    draws = np.random.default_rng(0)
    rows = [f"{draws.normal():.4f},{draws.normal():.4f},{draws.integers(2)}" for _ in range(400)]
    (directory / f"{NAME}.csv").write_text("\n".join(["u,v,y", *rows]) + "\n")
    data = {"source": f"csv:{directory / NAME}.csv", "label": "y", "classes": 2}
    processes = SiloProcesses(directory, {NAME: data})
    gateway = Gateway(f"localhost:{processes.port}", partial(read_gateway_credentials, processes.coordinator))
    gateway.start()
    try:
        processes.start(NAME)
        yield Ward(directory, gateway, processes)
    finally:
        processes.kill(NAME)
        gateway.stop()
