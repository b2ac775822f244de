"""Runs whose silos have registered their data: a file that changes while the run goes on, or between two runs, costs its silo the next turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import kill
from shortruns import SHORT, short_run

from fedray.configfile import build_config
from fedray.planning.registered import register
from fedray.privacy.ledger.chain import read
from fedray.runfiles import RunFiles
from fedray.storage import write_json

NAMES = ("north", "south")


def sections(folder: Path, **others: Any) -> dict[str, Any]:
    """Two silos of 20 records in files, which have registered."""
    for name in NAMES:
        draws = np.random.default_rng(len(name))
        rows = [f"{u:.4f},{int(u > 0)}" for u in draws.normal(size=20)]
        (folder / f"{name}.csv").write_text("\n".join(["u,y", *rows]) + "\n")
    made: dict[str, Any] = {
        "data": {"source": f"csv:{folder}", "label": "y", "classes": 2},
        "agreed": {"registration": str(folder / "agreed.json"), "salts": str(folder / "salts")},
        "clients": {"placement": "dedicated", "resources": {"cpu": 0.5}},
        "training": {"lr": 0.5, "batch_size": 5, "epochs": 1},
        "evaluation": {"metrics": []},
    } | others
    if made.get("privacy"):
        made["agreed"].pop("salts")
    write_json(folder / "agreed.json", register(build_config(SHORT | made)).document())
    return made


def lose_a_line(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")


@pytest.mark.usefixtures("cluster")
def test_a_silo_that_holds_something_else_takes_no_turn(tmp_path: Path) -> None:
    """The run goes on with the other silo, and its record says what changed."""
    given, notes = sections(tmp_path), list[str]()
    lose_a_line(tmp_path / "south.csv")
    result = short_run(tmp_path / "run", notes, rounds=2, **given)
    sentence = "client south does not hold the data that it registered (count 16 to 14)"
    assert result.summary["agreed"]["changed"] == {"south": f"{sentence}."}
    assert [note for note in notes if sentence in note] == [f"{sentence}; it takes part in no round until it does."]
    files = RunFiles(result.output)
    assert [(fault["kind"], fault["client"], fault["round"]) for fault in files.faults()] == [("client", "south", 1)]
    last = files.rows()[-1]["metrics"]
    assert (last["round/clients_completed"], last["round/clients_refused"]) == (1, 1)
    assert json.loads(files.registration.read_text()) == json.loads((tmp_path / "agreed.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_that_died_and_loads_another_file_is_refused(tmp_path: Path) -> None:
    """The run goes on with the other silo, and its record says what changed."""
    given, killed, notes = sections(tmp_path), list[int](), list[str]()

    def listen(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] == 1:
            for name in NAMES:
                lose_a_line(tmp_path / f"{name}.csv")
            killed.append(kill("ClientHost"))

    result = short_run(tmp_path / "run", notes, listen=listen, rounds=6, **given)
    assert killed and result.status == "completed"
    ((name, sentence),) = result.summary["agreed"]["changed"].items()
    assert sentence == f"client {name} does not hold the data that it registered (count 16 to 14)."
    assert sum("takes part in no round until it does" in note for note in notes) == 1
    files = RunFiles(result.output)
    last = files.rows()[-1]["metrics"]
    assert (last["round/clients_completed"], last["round/clients_refused"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_file_that_changed_between_two_runs_is_refused_uncharged(tmp_path: Path) -> None:
    privacy = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3, "ledger": str(tmp_path / "books")}
    training = {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 8, "steps": 2}
    given = sections(tmp_path, privacy=privacy, training=training)
    first = short_run(tmp_path / "first", rounds=2, **given)
    assert first.summary["agreed"]["changed"] == {}
    lose_a_line(tmp_path / "south.csv")
    second = short_run(tmp_path / "second", rounds=2, **given)
    assert list(second.summary["agreed"]["changed"]) == ["south"]
    charges = {name: sum(e.kind == "reserve" for e in read(tmp_path / "books" / f"{name}.jsonl")) for name in NAMES}
    assert charges == {"north": 4, "south": 2}
    assert "south does not hold the data that it registered" in (tmp_path / "second" / "privacy_statement.md").read_text()
    with pytest.raises(Exception, match="agreed: no client holds the data that it registered. client north"):
        lose_a_line(tmp_path / "north.csv")
        short_run(tmp_path / "third", rounds=1, **given)
    write_json(tmp_path / "agreed.json", register(build_config(SHORT | given)).document())
    with pytest.raises(Exception, match="--resume: the run was begun with another registration"):
        short_run(tmp_path / "second", rounds=3, resume=True, **given)
