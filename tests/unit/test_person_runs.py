"""Whole runs that protect persons, on the heart data with a made-up column of patients: what is charged, verified and said."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from virtualray import drive

from fedray.config import Config
from fedray.configfile import load_config
from fedray.planning.preparation import prepare
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import FINAL_INTERVAL, bound
from fedray.privacy.ledger.chain import read
from fedray.privacy.ledger.location import records_path
from fedray.privacy.ledger.verification import verify
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown

HEART = Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data")) / "heart"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four hospitals' files, each record of one of as many patients as a third of the records."""
    if not HEART.is_dir():
        pytest.skip("the heart data are not here")
    folder = tmp_path_factory.mktemp("heart")
    for file in sorted(HEART.glob("*.csv")):
        (head, *body), draws = list(csv.reader(file.open())), random.Random(file.name)
        with (folder / file.name).open("w", newline="") as out:
            csv.writer(out).writerows([[*head, "patient"], *([*row, f"p{draws.randrange(len(body) // 3)}"] for row in body)])
    return folder


def config(hospitals: Path, person: str) -> Config:
    settings = ["clients={placement: hosted}", "privacy.ledger=run", "rounds=3", "tracking.enabled=false", f"data.source=csv:{hospitals}"]
    return load_config(ROOT / "configs" / "heart-private.yaml", [*settings, "data.person=patient", f"privacy.person={person}"])


@pytest.mark.parametrize(
    ("person", "unit", "sentence"),
    [
        ("{kind: bounded, records: 3}", "person (at most 3 records a turn)", "of whose records at most 3 take part in a turn"),
        ("{kind: clipped}", "person (records clipped as one)", "all of whose records in a step are clipped as one"),
    ],
)
def test_hospitals_protect_their_patients(
    hospitals: Path, tmp_path: Path, person: str, unit: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(hospitals, person)
    prepared = prepare(chosen)
    plan, federation = prepared.plans[0], prepared.federation
    assert plan is not None and federation is not None and federation.persons is not None
    assert (federation.persons < federation.sizes).all()
    rows, _, _ = drive(chosen, tmp_path / "run", lambda client: 1.0, 2, monkeypatch)
    book = records_path(tmp_path / "run" / "ledger")
    summary = verify(book)  # every receipt against its charge
    spent = bound({plan.event(): 3}, plan.delta)
    assert all(bound(summary.charged(name), plan.delta) == spent for name in prepared.names)
    assert rows[-1]["metrics"]["privacy/epsilon"] == pytest.approx(bound({plan.event(): 3}, plan.delta, FINAL_INTERVAL), rel=1e-3)
    commits = [e for e in read(book) if e.kind == "commit"]
    assert len(commits) == 12 and plan.person is not None
    assert all(e.data["receipt"]["person"] == plan.person.terms() for e in commits)
    with Account.open_run(tmp_path / "run" / "ledger", dict.fromkeys(prepared.names, plan), "run/2") as account:
        found: dict[str, Any] = privacy_statement(
            chosen, [Guarantee("person", [plan], account.groups(), account.figures())], account.head, 3
        )
    assert found["summary"]["unit"] == "person" and found["summary"]["protects"] == unit
    text = statement_markdown(found)
    assert f"for every person with all its records in one client, {sentence}" in text
    assert "infinity" not in text
