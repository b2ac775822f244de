"""A silo outside is killed between two phases of a secure sum: the others' sum is recovered, or made anew, and is right."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from processes import wait_until
from remotesilos import silos
from test_remote_silos import DIGITS, NAMES, PLAIN, SECURE, outside
from test_secure_memory import PHASES

from fedray.components import PROTOCOLS
from fedray.runfiles import RunFiles
from fedray.silos.installedcode import code_digest

TELLING = "python:tellparts:Telling"  # its driver waits in each phase, once the members have answered


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("phase", ["keys", "shares", "train", "consistency"])
def test_a_silo_that_is_killed_between_phases_is_recovered_from(tmp_path: Path, phase: str) -> None:
    """Masks that were left in a sum would make the model noise, of an accuracy of a tenth."""
    where = tmp_path / "told"
    where.mkdir()
    allowed = {"secure": [*sorted(PROTOCOLS.parts()), TELLING], "code": {TELLING: code_digest(TELLING)}}
    sections = {**PLAIN, **SECURE, "secure": {**SECURE["secure"], "kind": TELLING, "where": str(where)}}
    with silos(tmp_path, dict.fromkeys(NAMES, DIGITS), **allowed) as those:

        def act() -> None:
            for one in PHASES:
                wait_until(lambda at=where / f"{one}.at": at.exists(), one, 200)
                if one == phase:
                    those.kill(NAMES[2])
                    those.start(NAMES[2])
                (where / f"{one}.go").touch()

        acting = threading.Thread(target=act)
        acting.start()
        result = outside(tmp_path / "run", NAMES, 10, those, **sections)
        acting.join()
    assert result.status == "completed"
    rows = [row["metrics"] for row in RunFiles(result.output).rows()]
    assert [row["round/clients_completed"] >= 3 for row in rows] == [True, True]
    assert result.summary["faults"]["actor_deaths"] >= 1
    assert rows[-1]["eval/accuracy"] > 0.5
