"""Queries through Ray: silos with ledgers of their own, one budget with training, and a query that was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedray.configfile import build_config
from fedray.errors import BudgetReached, FedrayError
from fedray.privacy.ledger.chain import read
from fedray.privacy.ledger.inspect import verify_all
from fedray.privacy.ledger.withdrawal import enter
from fedray.queries.queryrun import query
from fedray.queryconfig import QueryConfig


def config_of(folder: Path, **more: Any) -> QueryConfig:
    silos = folder / "silos"
    if not silos.exists():
        silos.mkdir()
        for name, seed in (("north", 0), ("south", 1)):
            draws = np.random.default_rng(seed)
            rows = [f"{draws.uniform(20, 80):.2f},{draws.normal():.4f},{draws.integers(2)}" for _ in range(60)]
            (silos / f"{name}.csv").write_text("\n".join(["age,v,y", *rows]) + "\n")
    raw = {
        "name": "asks",
        "data": {"source": f"csv:{silos}", "label": "y", "classes": 2, "holdout": {"fraction": 0.0}},
        "clients": {"placement": "dedicated", "resources": {"cpu": 0.5}},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4, "budget": 3.0, "ledger": str(folder / "books")},
        "queries": {"age": {"kind": "variance", "bounds": {"age": [0, 100]}}, "classes": {"kind": "histogram", "column": "label"}},
        "tracking": {"enabled": False},
    }
    return build_config(raw | more, QueryConfig)


def charges(folder: Path) -> dict[str, int]:
    return {path.stem: sum(entry.kind == "reserve" for entry in read(path)) for path in sorted((folder / "books").glob("*.jsonl"))}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_silos_are_charged_once_and_refused_when_the_budget_is_reached(tmp_path: Path) -> None:
    result = query(config_of(tmp_path), output=str(tmp_path / "out"))
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert answers == result.answers and answers["private"] and set(answers["by_client"]) == {"north", "south"}
    low, high = answers["answers"]["age"]["columns"]["age"]["mean_interval"]
    assert 0 < low < high < 100
    assert charges(tmp_path) == {"north": 1, "south": 1}
    assert len(list(verify_all(tmp_path / "out"))) == 4  # two ledgers, and the figures of both clients

    # What a client had sent before the query was cut off is neither asked nor charged again; new noise is a new charge.
    parts = tmp_path / "out" / "parts.jsonl"
    north = next(line for line in parts.read_text().splitlines() if json.loads(line)["client"] == "north")
    parts.write_text(north + "\n")
    again = query(config_of(tmp_path), output=str(tmp_path / "out"), resume=True)
    assert charges(tmp_path) == {"north": 1, "south": 2}
    assert again.answers["by_client"]["north"] == result.answers["by_client"]["north"]
    assert again.answers["by_client"]["south"] != result.answers["by_client"]["south"]

    privacy = {"regime": "record", "noise_multiplier": 0.9, "delta": 1e-4, "budget": 3.0, "ledger": str(tmp_path / "books")}
    with pytest.raises(BudgetReached, match="nobody was asked or charged: north"):
        query(config_of(tmp_path, privacy=privacy), output=str(tmp_path / "more"))
    assert charges(tmp_path) == {"north": 1, "south": 2} and not (tmp_path / "more" / "answers.json").exists()


@pytest.mark.usefixtures("cluster")
def test_hosted_clients_share_the_drivers_ledger_and_a_failure_keeps_its_charge(tmp_path: Path) -> None:
    hosted = {"placement": "hosted", "actors": 2, "resources": {"cpu": 0.5}}
    one = hosted | {"actors": 1}
    exact = query(config_of(tmp_path, clients=hosted, privacy={}), output=str(tmp_path / "exact"))
    assert not exact.answers["private"] and exact.answers["answers"]["classes"]["noise_std"] == 0
    assert sum(exact.answers["answers"]["classes"]["counts"]) == 120 and not (tmp_path / "exact" / "privacy_statement.json").exists()
    bad = {"a": {"kind": "python:queryparts:Failing"}}
    with pytest.raises(FedrayError, match="could not be made \\(ValueError\\).*What was charged stays charged") as failed:
        query(config_of(tmp_path, clients=one, queries=bad), output=str(tmp_path / "bad"))
    assert "secret" not in str(failed.value)
    assert charges(tmp_path) == {"records": 2}
    noised = query(config_of(tmp_path, clients=one), output=str(tmp_path / "noised"))
    assert charges(tmp_path) == {"records": 4} and noised.summary["privacy"]["epsilon"] > noised.answers["epsilon"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("placement", ["hosted", "dedicated"])
def test_who_has_withdrawn_is_not_asked_with_and_without_privacy(tmp_path: Path, placement: str) -> None:
    books, clients = tmp_path / "books", {"placement": placement, "resources": {"cpu": 0.5}}
    enter("withdraw", books, "south", "contract ended")
    open_ = config_of(tmp_path, clients=clients, privacy={"regime": "none", "ledger": str(books)})
    for number, config in enumerate((open_, config_of(tmp_path, clients=clients))):
        with pytest.raises(BudgetReached, match="nobody was asked or charged: south: has withdrawn its data"):
            query(config, output=str(tmp_path / f"out-{number}"))
    assert not any(charges(tmp_path).values())
    data = {"source": f"csv:{tmp_path / 'silos'}", "label": "y", "classes": 2, "holdout": {"fraction": 0.0}, "without": ["south"]}
    assert (
        query(open_.model_copy(update={"data": config_of(tmp_path, data=data).data}), output=str(tmp_path / "left")).answers["clients"] == 1
    )
