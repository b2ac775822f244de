"""Clients that withdraw, in real runs: refused at once, told of, left out of later rounds; and replays that are as if they had never been there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_breast_cancer

import fedray
from fedray.errors import FedrayError
from fedray.privacy.ledger.chain import read
from fedray.privacy.ledger.location import records_path, subject_path
from fedray.privacy.ledger.withdrawal import enter
from fedray.reporting.lineage import of_client, of_model, read_lineage
from fedray.runfiles import RunFiles

NAMES = ("east", "north", "south", "west")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real records (breast cancer, Wisconsin) in a file a hospital, of unequal sizes."""
    folder = tmp_path_factory.mktemp("hospitals")
    frame = load_breast_cancer(as_frame=True).frame.iloc[:200, [0, 1, 2, 3, 30]]
    for name, rows in zip(NAMES, (range(30), range(30, 90), range(90, 130), range(130, 200)), strict=True):
        frame.iloc[list(rows)].to_csv(folder / f"{name}.csv", index=False)
    return folder


def config(hospitals: Path, **sections: Any) -> dict[str, Any]:
    return {
        "name": "withdrawn",
        "rounds": 3,
        "data": {"source": f"csv:{hospitals}", "label": "target", "classes": 2, "normalize": {"kind": "standardize_client"}},
        "model": {"kind": "softmax"},
        "clients": {"placement": "dedicated", "resources": {"cpu": 0.5}},
        "training": {"lr": 0.1, "batch_size": 8, "epochs": 1},
        "tracking": {"enabled": False},
        "evaluation": {"federated": True, "metrics": ["accuracy"]},
    } | sections


def at_round(number: int, act: Callable[[], Any]) -> Callable[[str, Any], None]:
    """Act when the row of a round is written."""

    def listen(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] == number:
            act()

    return listen


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_dedicated_client_without_privacy_withdraws_in_the_middle_of_a_run(hospitals: Path, tmp_path: Path) -> None:
    """The run goes on without it, says so, and can be resumed; a new run is refused until it leaves the client out, or is readmitted."""
    ledger, output = tmp_path / "ledger", tmp_path / "run"
    about = config(hospitals, rounds=6, privacy={"ledger": str(ledger)})
    told: list[str] = []

    def listen(kind: str, value: Any) -> None:
        if kind == "fault":
            told.append(value.text)

    withdraw = at_round(2, lambda: enter("withdraw", ledger, "north", "consent revoked"))
    result = fedray.run(about, output=str(output), callbacks=[withdraw, listen])
    assert result.status == "completed"
    sampled = [row["metrics"]["round/clients_completed"] for row in RunFiles(output).rows()]
    assert sampled[0] == 4 and sampled[-1] == 3 and sorted(sampled, reverse=True) == sampled
    assert any("north" in text and "consent revoked" in text for text in told)
    assert any("consent revoked" in fault["what"] for fault in RunFiles(output).faults())
    with pytest.raises(FedrayError, match=r"north: has withdrawn.*data.without=\[north\]"):
        fedray.run(about, output=str(tmp_path / "next"))
    without = fedray.run(about, output=str(tmp_path / "without"), overrides=["data.without=[north]"])
    assert without.status == "completed"
    enter("readmit", ledger, "north", "")
    assert fedray.run(about | {"rounds": 1}, output=str(tmp_path / "again")).status == "completed"


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("placement", [pytest.param("dedicated", marks=pytest.mark.slow), "hosted"])
def test_nothing_is_charged_after_a_withdrawal_in_a_run_that_holds_the_ledger(hospitals: Path, tmp_path: Path, placement: str) -> None:
    ledger, output = tmp_path / "ledger", tmp_path / "run"
    sections = {
        "clients": {"placement": placement, "resources": {"cpu": 0.5}},
        "training": {"lr": 0.1, "sampling_rate": 0.5, "expected_batch": 20.0, "steps": 2},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4, "ledger": str(ledger), "clip": 1.0},
        "data": {"source": f"csv:{hospitals}", "label": "target", "classes": 2},
    }
    about = config(hospitals, rounds=5, evaluation={"metrics": []}, **sections)
    result = fedray.run(about, output=str(output), callbacks=[at_round(1, lambda: enter("withdraw", ledger, "south", ""))])
    assert result.status == "completed"
    book = subject_path(ledger, "south") if placement == "dedicated" else records_path(ledger)
    kinds = [e.kind for e in read(book) if e.data.get("subject") == "south" and e.kind in ("reserve", "withdraw")]
    assert kinds[-1] == "withdraw" and 1 <= kinds.count("reserve") < 5
    others = [sum(e.kind == "reserve" and e.data["subject"] == name for e in read(b)) for name, b in _books(ledger, placement)]
    assert others == [5, 5, 5]


def _books(ledger: Path, placement: str) -> list[tuple[str, Path]]:
    return [(n, Path(str(subject_path(ledger, n) if placement == "dedicated" else records_path(ledger)))) for n in NAMES if n != "south"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, marks=pytest.mark.slow, id="plain"),
        pytest.param(
            {
                "clients": {"placement": "hosted"},
                "cohort": {"kind": "poisson", "fraction": 0.7},
                "training": {"lr": 0.1, "batch_size": 8, "epochs": 2},
            },
            marks=pytest.mark.slow,
            id="sampled",
        ),
        pytest.param(
            {
                "clients": {"placement": "hosted"},
                "training": {"lr": 0.1, "sampling_rate": 0.5, "expected_batch": 20.0, "steps": 3},
                "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-4, "insecure_seed": 5},
                "evaluation": {"metrics": []},
            },
            id="seeded noise",
        ),
    ],
)
def test_a_replay_without_a_client_has_the_bytes_of_a_run_that_never_had_it(
    hospitals: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    """Against the same config over a folder in which the client's file was never there."""
    never = tmp_path / "never"
    never.mkdir()
    for name in NAMES:
        if name != "north":
            (never / f"{name}.csv").write_bytes((hospitals / f"{name}.csv").read_bytes())
    data = {"data": {"label": "target", "classes": 2, "source": f"csv:{hospitals}"}}
    whole = fedray.run(config(hospitals, **data, **sections), output=str(tmp_path / "whole"))
    replayed = fedray.run(config(hospitals, **data, **sections), output=str(tmp_path / "replayed"), overrides=["data.without=[north]"])
    clean = fedray.run(
        config(never, **(data | {"data": data["data"] | {"source": f"csv:{never}"}}), **sections), output=str(tmp_path / "clean")
    )
    bytes_of = [RunFiles(r.output).model.read_bytes() for r in (whole, replayed, clean)]
    assert bytes_of[1] == bytes_of[2] != bytes_of[0]
    metrics = [
        [{k: v for k, v in row["metrics"].items() if k.startswith("eval/")} for row in RunFiles(r.output).rows()] for r in (replayed, clean)
    ]
    assert metrics[0] == metrics[1]
    partition = json.loads(RunFiles(replayed.output).partition.read_text())
    assert [row["client"] for row in partition["rows"]] == [name for name in NAMES if name != "north"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_lineage_follows_a_client_through_the_registry_to_runs_that_it_took_no_part_in(hospitals: Path, tmp_path: Path) -> None:
    """A run of four, and one of three that began with its registered model: the files and the store say which models hold whose data."""
    never = tmp_path / "never"
    never.mkdir()
    for name in NAMES[2:]:
        (never / f"{name}.csv").write_bytes((hospitals / f"{name}.csv").read_bytes())
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "register_as": "hearts"}
    about: dict[str, Any] = {"clients": {"placement": "hosted"}, "tracking": tracking, "cohort": {"kind": "cyclic", "size": 2}, "rounds": 2}
    data = {"label": "target", "classes": 2}
    base = fedray.run(config(hospitals, **about, data={**data, "source": f"csv:{hospitals}"}), output=str(tmp_path / "runs" / "base"))
    weights = {"model": {"kind": "softmax", "weights": "models:/hearts/1"}}
    child = fedray.run(config(never, **about, **weights, data={**data, "source": f"csv:{never}"}), output=str(tmp_path / "runs" / "child"))
    lineage = read_lineage([tmp_path / "runs"])
    found = {Path(row["where"]).name: row for row in of_client("north", lineage)["runs"]}
    assert found["base"]["part"] == "yes" and len(found["base"]["rounds"]) == 1 and not found["base"]["bounded"]
    assert found["child"]["part"] == "through" and found["child"]["through"] == [str(base.output)]
    assert {v["name"] + v["version"]: v["aliases"] for r in found.values() for v in r["versions"]} == {"hearts1": [], "hearts2": ["newest"]}
    both = of_model("models:/hearts@newest", lineage)["runs"]
    assert [Path(run["where"]).name for run in both] == ["child", "base"]
    assert [set(run["clients"]) for run in both] == [{"south", "west"}, set(NAMES)]
    assert both[0]["model_sha256"] == child.summary["model_sha256"]
    with pytest.raises(FedrayError, match=r"the data of 'north', which data.without leaves out, went into the model"):
        begun = {"model": {"kind": "softmax", "weights": str(base.output)}}
        fedray.run(config(hospitals, **about, **begun, data={**data, "source": f"csv:{hospitals}", "without": ["north"]}))
