"""Seeded schedules of faults on three hosts: nothing lost, nothing hung, the same bytes.

`make proofs` runs a few; all thirty: FEDRAY_SCHEDULES=30 python -m pytest -m slow tests/cluster/test_fault_schedules.py --timeout=7200
Last results: tests/cluster/results/schedules.json.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from faults import run_with, schedule
from hospitals import Federation
from test_hospitals import ROUNDS, check, hospitals, reference

from fedray.runfiles import RunFiles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

__all__ = ["hospitals", "reference"]  # the fixtures

RESULTS = Path(__file__).parent / "results" / "schedules.json"
SCHEDULES = int(os.environ.get("FEDRAY_SCHEDULES", "4"))


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_a_schedule_of_faults(seed: int, hospitals: Federation, reference: dict[str, Any]) -> None:
    output = hospitals.root / f"schedule-{seed}"
    faults = schedule(seed, ROUNDS)
    done = run_with(hospitals, output, faults)
    check(hospitals, output, reference)
    told = [fault["what"] for fault in RunFiles(output).faults()]
    summary = json.loads((output / "summary.json").read_text())
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows[str(seed)] = {
        "faults": [asdict(f) for f in done["struck"]],
        "seconds": done["seconds"],
        "submissions": done["submissions"],
        "told": [text[:160] for text in told],
        "counted": summary["faults"],
        "same_bytes": True,
    }
    if "FEDRAY_SCHEDULES" in os.environ:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(rows.items(), key=lambda item: int(item[0]))), indent=1) + "\n")
