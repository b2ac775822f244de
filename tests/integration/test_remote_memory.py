"""Under a secure sum no process of the cluster ever holds one silo's update: not the driver, nor what stands for the silo, nor the gateway."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from memoryscan import Needles, memory
from processes import wait_until
from remotesilos import silos
from test_remote_silos import DIGITS, NAMES, PLAIN, SECURE, outside
from test_secure_memory import PHASES, windows

from fedray.components import PROTOCOLS
from fedray.silos.installedcode import code_digest

TELLING = "python:tellparts:Telling"
#: Processes of the cluster that see something of a round; raylet has the object store.
CLUSTER = ("ray::Experiment", "ray::RemoteClient", "ray::SiloGateway", "raylet", "gcs_server")


class Look:
    """Looks into all processes of the cluster, while the driver waits in each phase of a sum."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self.found: dict[str, set[str]] = {}  # kinds of what was found, by phase
        self.titles: set[str] = set()

    def all(self) -> None:
        for phase in PHASES:
            wait_until(lambda at=self._where / f"{phase}.at": at.exists(), phase, 200)
            try:
                self.found[phase] = self._look()
            finally:
                (self._where / f"{phase}.go").touch()

    def _look(self) -> set[str]:
        updates = {path.name.split(".")[0]: path.read_bytes() for path in self._where.glob("*.update")}
        masked = {path.name.split(".")[0]: path.read_bytes() for path in self._where.glob("*.masked")}
        wanted = {f"update.{name}.{k}": part for name, data in updates.items() for k, part in enumerate(windows(data))}
        wanted |= {f"masked.{name}.{k}": part for name, data in masked.items() for k, part in enumerate(windows(data))}
        if len(updates) == len(NAMES):
            total = np.sum([np.frombuffer(data, dtype=np.int64) for data in updates.values()], axis=0)
            wanted["total"] = windows(total.tobytes(), 1)[0]
        found, needles = set[str](), Needles(wanted)
        for process in psutil.Process().children(recursive=True):
            titles = [title for title in CLUSTER if title in f"{process.name()} {' '.join(process.cmdline())}"]
            if titles and wanted:
                found |= needles.found(memory(process.pid))
            self.titles.update(titles)
        return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_single_update_is_in_no_process_of_the_cluster(tmp_path: Path) -> None:
    """The silos' own code, allowed by its digest, writes down what they add to the sum before and after its masks."""
    where = tmp_path / "told"
    where.mkdir()
    look = Look(where)
    looking = threading.Thread(target=look.all)
    sections = {**PLAIN, "evaluation": {"metrics": []}, **SECURE, "rounds": 1}
    sections["secure"] = {**SECURE["secure"], "kind": TELLING, "where": str(where)}
    allowed = {"secure": [*sorted(PROTOCOLS.parts()), TELLING], "code": {TELLING: code_digest(TELLING)}}
    with silos(tmp_path, dict.fromkeys(NAMES, DIGITS), **allowed) as those:
        looking.start()
        result = outside(tmp_path / "run", NAMES, 10, those, **sections)
        looking.join()
    assert result.status == "completed"
    assert look.titles == set(CLUSTER)
    assert {name.split(".")[0] for name in look.found["train"]} == {"masked"}  # the looking finds what is there
    assert "total" in look.found["done"]
    for phase in PHASES:
        assert not {name for name in look.found[phase] if name.startswith("update.")}, phase
