"""`fedray ledger show` and `verify`: what is told of a book, and that runs without one raise no alarm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_privacy_ledger import EVENT, charge

from fedray.cli import cli
from fedray.privacy.accounting.accountant import FINAL_INTERVAL, bound
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import records_path

PLAN = {"delta": 1e-5, "budget": 9.0, "interval": 1e-3}


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["ledger", *arguments])
    return result.exit_code, result.output


def run_directory(path: Path, regime: str = "none", ledger: str = "run") -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text('{"id": "r", "start": 1}')
    (path / "config.yaml").write_text(f"name: t\nprivacy: {{regime: {regime}, ledger: {ledger}}}\n")
    (path / "metrics.jsonl").write_text('{"round": 1, "metrics": {}}\n')
    (path / "faults.jsonl").write_text('{"round": 1, "kind": "node"}\n')
    return path


def book(folder: Path, job: str = "run/1", rounds: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = records_path(folder)
    assert isinstance(path, Path)
    with Ledger.open(path, job) as ledger:
        ledger.describe("p" * 64, PLAN)
        for r in range(rounds):
            ledger.reserve([charge("a", r)])
    return path


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_run_without_privacy_kept_no_ledger_and_that_is_all(tmp_path: Path, command: str) -> None:
    code, out = invoke(command, str(run_directory(tmp_path / "plain")))
    assert (code, out.strip()) == (0, f"{tmp_path / 'plain'}: this run kept no ledger (privacy.regime is none: nothing was charged)")


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_folder_of_runs_tells_of_each(tmp_path: Path, command: str) -> None:
    run_directory(tmp_path / "runs" / "plain")
    run_directory(tmp_path / "runs" / "early", "record")
    run_directory(tmp_path / "runs" / "silos", "record", "/mnt/books")
    mine = book(run_directory(tmp_path / "runs" / "private", "record") / "ledger")
    shared = book(tmp_path / "runs" / "books", "other/1")
    part = run_directory(tmp_path / "runs" / "shared", "record", str(shared.parent)) / "ledger"
    part.mkdir()
    (part / "records.part.json").write_text(json.dumps({"book": str(shared)}))
    (tmp_path / "runs" / "notes.jsonl").write_text('{"a": 1}\n')
    code, out = invoke(command, str(tmp_path / "runs"))
    assert code == 0
    assert out.count(str(mine)) == out.count(str(shared)) == 1
    assert "plain: this run kept no ledger (privacy.regime is none: nothing was charged)" in out
    assert "early: this run kept no ledger (it ended before anything was charged to one)" in out
    assert "silos: this run kept no ledger (of its own: it did not come to its end, and its charges are in /mnt/books)" in out
    assert "notes.jsonl: left out, because its first line is no entry of a ledger" in out
    mine.write_bytes(mine.read_bytes().replace(b'"round":1', b'"round":2'))
    code, out = invoke(command, str(tmp_path / "runs"))
    assert code == 1 and "the line was changed" in out


def test_a_ledger_that_a_statement_names_is_missed(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "private", "record")
    (run / "privacy_statement.json").write_text("{}")
    code, out = invoke("verify", str(run))
    assert code == 1 and "its privacy statement names a ledger" in out and "restore it" in out


def test_in_a_folder_of_books_every_file_counts(tmp_path: Path) -> None:
    book(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert invoke("verify", str(tmp_path))[0] == 1


def test_show_tells_what_is_left_and_when_each_run_wrote(tmp_path: Path) -> None:
    book(tmp_path, "one/1")
    book(tmp_path, "two/1", 1)
    spent, shown = bound({EVENT: 3}, 1e-5), bound({EVENT: 3}, 1e-5, FINAL_INTERVAL)
    report = json.loads(invoke("show", str(tmp_path), "--json")[1])
    (row,) = report["books"]
    assert [r["run"] for r in row["runs"]] == ["one", "two"]
    assert all(r["first"] <= r["last"] for r in row["runs"])
    (client,) = row["clients"]
    assert client == {"name": "a", "participations_charged": 3, "epsilon": shown, "budget": 9.0, "limit": None, "left": 9.0 - spent}
    (tmp_path / "limits.yaml").write_text("epsilon: 8.0\nregimes: [record]\n")
    code, text = invoke("show", str(tmp_path))
    assert code == 0
    assert re.search(r"  run one: written 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", text)
    assert f"limits of {tmp_path / 'limits.yaml'}: epsilon 8.0, regimes record" in text
    cells = next(line.split() for line in text.splitlines() if line.startswith("  a "))
    assert cells[1] == "3" and cells[3:5] == ["9", "8"]
    assert float(cells[2]) >= shown > float(cells[2]) - 1e-4
    assert float(cells[5]) <= 8.0 - spent < float(cells[5]) + 1e-4
    assert json.loads(invoke("show", str(tmp_path), "--json")[1])["books"][0]["clients"][0]["left"] == 8.0 - spent


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    code, out = invoke("verify", str(tmp_path))
    assert code == 1 and "holds no privacy ledger" in out
