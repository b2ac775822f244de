"""No secret of a client is in the driver's memory, the object store, the logs, the checkpoints or MLflow, at any time of a secure sum.

What the driver learns by the protocol is asserted, too: after the members have unmasked the sum, it has the self-masks of the survivors, and the keys
that a client which dropped out shared with them. Of one client it never has both.
"""

from __future__ import annotations

import base64
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from memoryscan import Needles, files, memory
from processes import wait_until
from securekeys import identities
from test_phases import SILOS, rows
from test_phases import run as phases

CLIENTS, WINDOW = 6, 32
PHASES = ("keys", "shares", "train", "consistency", "unmask", "done")
LOST = "client-0004"


def windows(data: bytes, most: int = 8) -> list[bytes]:
    """Parts of a vector that cannot be anywhere by chance."""
    starts = np.random.default_rng(1).permutation(range(0, len(data) - WINDOW, 8))
    found = (data[at : at + WINDOW] for at in map(int, starts))
    telling = [part for part in found if len(set(part)) >= 16 and len(set(part[:4])) >= 3]
    assert len(telling) >= most
    return telling[:most]


class Secrets:
    """What the members have told: by ``client.what``, with the numbers of other members as their names."""

    def __init__(self, where: Path, keys: Path) -> None:
        told = {tuple(path.name.split(".")): path.read_bytes() for path in where.iterdir() if path.suffix not in (".at", ".go", ".float")}
        names = {number: client for client, number, _ in told}
        self.by_name: dict[str, bytes] = {}
        self.updates: dict[str, np.ndarray] = {}
        for (client, _, what), data in told.items():
            kind, _, other = what.partition("-")
            if kind == "masked":
                continue
            if kind == "update":
                self.updates[client] = np.frombuffer(data, dtype=np.int64)
                self.by_name |= {f"{client}.update.{n}": part for n, part in enumerate(windows(data))}
            else:
                self.by_name[f"{client}.{kind}" + (f".{names[other]}" if other else "")] = data
        for path in where.glob("*.float"):
            self.by_name |= {f"{path.name.split('.')[0]}.float.{n}": part for n, part in enumerate(windows(path.read_bytes()))}
        for path in keys.glob("*.pem"):
            (line,) = path.read_text().splitlines()[1:-1]
            self.by_name |= {f"{path.stem}.identity.pem": line.encode(), f"{path.stem}.identity.raw": base64.b64decode(line)[-32:]}

    @property
    def public(self) -> dict[str, bytes]:
        return {name: data for name, data in self.by_name.items() if ".public" in name}

    @property
    def secret(self) -> dict[str, bytes]:
        return {name: data for name, data in self.by_name.items() if ".public" not in name}

    def unmasked(self) -> set[str]:
        """What the driver may know once the sum is unmasked."""
        seeds = {f"client-{i:04d}.seed" for i in range(CLIENTS)} - {f"{LOST}.seed"}
        pairs = {name for name in self.secret if ".pair." in name and LOST in name}
        return seeds | pairs | {f"{LOST}.pairs"}


class Look:
    """Looks into the driver and all else at each of its stops."""

    def __init__(self, where: Path, keys: Path, kept: list[Path]) -> None:
        self._where, self._keys, self._kept = where, keys, kept
        self.driver: dict[str, set[str]] = {}  # names found in the driver's memory, by phase
        self.beside: dict[str, set[str]] = {}  # and anywhere else but in the clients' processes
        self.total_found = False
        self.secrets: Secrets | None = None

    def all(self) -> None:
        for phase in PHASES:
            at = self._where / f"{phase}.at"
            pid = int(wait_until(lambda at=at: at.exists() and at.read_text(), phase, 200))
            try:
                self._look(phase, pid)
            finally:
                (self._where / f"{phase}.go").touch()

    def _look(self, phase: str, pid: int) -> None:
        secrets = self.secrets = Secrets(self._where, self._keys)
        needles = Needles(secrets.by_name)
        self.driver[phase] = needles.found(memory(pid))
        found = set[str]()
        for process in psutil.Process().children(recursive=True):
            name = " ".join(process.cmdline())
            stores = "raylet" in process.name() or "gcs_server" in process.name()
            if process.pid != pid and "ClientHost" not in name and (stores or phase == "done"):
                found |= needles.found(memory(process.pid))
        for folder in self._kept:
            found |= needles.found(files(folder))
        self.beside[phase] = found
        if phase == "done":
            total = sum(update for client, update in secrets.updates.items() if client != LOST)
            self.total_found = Needles({"total": windows(total.tobytes(), 1)[0]}).found(memory(pid)) == {"total"}


@pytest.mark.slow
def test_no_secret_leaves_the_clients_and_the_driver_learns_what_the_protocol_tells_it(cluster: Any, tmp_path: Path) -> None:
    where, keys, output = tmp_path / "told", tmp_path / "keys", tmp_path / "run"
    where.mkdir()
    (tmp_path / "mlflow").mkdir()
    places = identities(keys, CLIENTS)
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    look = Look(where, keys, [output, session, tmp_path / "mlflow"])
    looking = threading.Thread(target=look.all)
    looking.start()
    result = phases(
        output,
        rounds=1,
        clients=SILOS,
        algorithm={"kind": "python:tellparts:TellingFedAvg", "where": str(where)},
        secure={"kind": "python:tellparts:Telling", "fewest": 3, "threshold": 0.6, "where": str(where), "drops": LOST, **places},
        tracking={"uri": f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"},
        checkpoint={"every": 1},
    )
    looking.join()
    assert rows(result)[0]["round/clients_completed"] == CLIENTS - 1
    secrets = look.secrets
    assert secrets is not None
    kinds = Counter(name.split(".")[1] for name in secrets.secret)
    assert kinds == {
        "identity": 2 * CLIENTS,
        "channel": CLIENTS * CLIENTS,
        "pairs": CLIENTS,
        "seed": CLIENTS,
        "pair": CLIENTS * (CLIENTS - 1),
        "update": 8 * CLIENTS,
        "float": 8 * CLIENTS,
    }
    # The scan sees what is there: public keys while the driver has them, the total and all that it was told of masks in the end.
    assert set(secrets.public) <= look.driver["keys"] | look.driver["shares"]
    assert look.total_found
    assert {name for name in secrets.unmasked() if name.endswith(".seed")} <= look.driver["done"]
    for phase in PHASES:
        learnt = look.driver[phase] - set(secrets.public)
        assert learnt <= (secrets.unmasked() if phase == "done" else set()), phase
        assert look.beside[phase] <= set(secrets.public), phase
    assert Needles(secrets.secret).found(files(output)) == set()
    assert Needles(secrets.secret).found(files(session)) == set()
    assert Needles(secrets.secret).found(files(tmp_path / "mlflow")) == set()
    assert Needles(secrets.by_name).found(files(where)) == {n for n in secrets.by_name if "identity" not in n}  # and in files, too
