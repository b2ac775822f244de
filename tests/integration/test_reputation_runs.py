"""Reputation through Ray: scores in rows, table and report, the same with other actors and after a resume, and from one run to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shortruns import short_run

import fedray
from fedray.errors import ConfigError
from fedray.reporting.report_page import write_report
from fedray.runfiles import RULE_CLIENTS, RunFiles
from fedray.tracking.artifacts import stage
from fedray.tracking.journal import State

ATTACK = {"kind": "sign_flip", "times": 5.0, "fraction": 0.3}


def run(output: Path, resume: bool = False, **sections: Any) -> fedray.Result:
    return short_run(output, resume=resume, **{"aggregation": {"kind": "reputation"}, **sections})


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((output / RULE_CLIENTS).read_text())["rows"]
    return rows


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_scores_are_shown_over_time_and_in_the_end(tmp_path: Path) -> None:
    calm = run(tmp_path / "calm", attack=ATTACK)
    rows = rows_of(tmp_path / "calm")
    malicious = {row["client"] for row in rows if row["muted"]}
    assert len(malicious) == 2
    assert all(name in calm.summary["attack"] for name in malicious)
    assert [row["turns"] for row in rows] == [3] * 6
    last = RunFiles(tmp_path / "calm").rows()[-1]["metrics"]
    assert last["aggregation/muted"] == 2
    assert last["aggregation/score_p10"] < 0 < last["aggregation/score_median"]
    staged = stage(tmp_path / "calm", State("sqlite:///x", "e", "1", "r", "n"), None)
    table = json.loads((staged.files / "clients" / "clients.json").read_text())
    assert {"records", "score", "weight", "muted"} <= set(table["columns"])
    assert (staged.files / RULE_CLIENTS).is_file()
    staged.remove()
    _, markdown = write_report(tmp_path / "calm")
    text = markdown.read_text()
    assert "2 of 6 clients are muted at the end." in text
    assert "scores.svg" in text


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_scores_are_the_same_with_another_actor_and_after_a_resume(tmp_path: Path) -> None:
    calm = run(tmp_path / "calm", attack=ATTACK)
    run(tmp_path / "resumed", attack=ATTACK, rounds=2, clients={"actors": 1})
    resumed = run(tmp_path / "resumed", resume=True, attack=ATTACK)
    assert resumed.summary["model_sha256"] == calm.summary["model_sha256"]
    assert rows_of(tmp_path / "calm") == rows_of(tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_next_run_of_a_federation_knows_the_scores_of_the_last(tmp_path: Path) -> None:
    remembered = {"kind": "reputation", "remember": str(tmp_path / "scores")}
    run(tmp_path / "first", aggregation=remembered)
    run(tmp_path / "second", aggregation=remembered, rounds=2)
    assert [row["turns"] for row in rows_of(tmp_path / "second")] == [5] * 6
    with pytest.raises(ConfigError, match="is about another federation"):
        run(tmp_path / "third", aggregation=remembered, seed=4)
