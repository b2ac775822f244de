"""Clients that take their actor down or never come back, round after round, with a single actor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shortruns import short_run

from fedray.runfiles import RunFiles

pytestmark = pytest.mark.usefixtures("cluster")


def run(output: Path, **sections: Any) -> tuple[list[dict[str, float]], list[str], dict[str, Any]]:
    """The rows' metrics, the notes and the summary."""
    notes: list[str] = []
    result = short_run(
        output,
        notes,
        seed=0,
        data={"source": "python:slowparts:data", "holdout": {"fraction": 0.25, "at": "clients"}},
        training={"lr": 0.1, "batch_size": 10, "epochs": 2},
        clients={"actors": 1, "restarts": 3, "resources": {"cpu": 1.0}},
        evaluation={"every": 3, "federated": True},
        **sections,
    )
    return [row["metrics"] for row in RunFiles(output).rows()], notes, result.summary


@pytest.mark.slow
def test_a_client_that_always_ends_its_process_does_so_in_one_round_only(tmp_path: Path) -> None:
    rows, notes, summary = run(tmp_path / "run", model={"kind": "python:slowparts:model", "dies": 2}, cohort={"kind": "all", "retries": 1})
    assert summary["status"] == "completed"
    assert [r["round/clients_completed"] for r in rows] == [3, 3, 3]
    assert [r["round/actor_deaths"] for r in rows] == [2, 0, 0]
    assert sum("client c2" in n and "left out for the rest of the run" in n for n in notes) == 2
    assert rows[-1]["fairness/accuracy_mean"] >= 0


@pytest.mark.slow
def test_a_client_that_never_comes_back_is_late_and_its_actor_replaced(tmp_path: Path) -> None:
    rows, notes, summary = run(
        tmp_path / "run",
        model={"kind": "python:slowparts:model", "sleeps": 2},
        cohort={"kind": "all", "deadline": 3.0, "grace": 0.5},
    )
    assert summary["status"] == "completed"
    assert [r["round/clients_completed"] for r in rows[1:]] == [3, 3]  # in the first, others may have waited behind it
    assert [r["round/clients_late"] for r in rows[1:]] == [1, 1]
    assert any("client c2" in n and "late" in n for n in notes)
    assert any("is replaced: it did not come back from a client's turn" in n for n in notes)
