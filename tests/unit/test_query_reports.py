"""A query's directory as one page, and sent to MLflow from its files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from fedray.cli import cli
from fedray.configfile import build_config
from fedray.queries import querytracking
from fedray.queryconfig import QueryConfig, dump_query


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """The directory of a query, as ``fedray query`` leaves it."""
    folder = tmp_path / "counted-2"
    folder.mkdir()
    raw = {"name": "counted", "data": {"source": "csv:none"}, "queries": {"old": {"kind": "count", "where": {"age": [60, 120]}}}}
    raw |= {"privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4}, "tracking": {"uri": "http://me:secret@host:5000"}}
    (folder / "config.yaml").write_text(dump_query(build_config(raw, QueryConfig)))
    old = {"kind": "count", "records": 60, "of": "train", "value": 12.5, "interval": [9.25, 15.75], "noise_std": 1.66}
    answers = {"query": "counted-2", "run": "counted-ab12", "clients": 2, "source": "csv:none", "claim": "valid", "confidence": 0.95}
    answers |= {"noise_multiplier": 2.0, "epsilon": 1.25, "delta": 1e-4, "answers": {"old": old}}
    private = {"unit": "record", "epsilon": 2.5, "delta": 1e-4, "budget": 3.0, "claim": "valid", "claim_reasons": []}
    summary = {"status": "completed", "kind": "query", "name": "counted", "duration_s": 5.0, "privacy": private}
    for name, content in (("answers", answers), ("summary", summary)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def called(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_report_has_the_answers_and_what_they_cost(asked: Path) -> None:
    assert "report.html" in called("report", str(asked))
    text = (asked / "report.md").read_text()
    first, _, rest = text.partition("## Answers")
    assert first.startswith(
        "# counted-2\n\n**1 statistic of the records of 2 clients** · epsilon 2.5 of 3 at delta 0.0001 for one record · claim valid"
    )
    assert "| epsilon of this query alone | 1.25 at delta 0.0001 |" in first
    assert "value 12.5 [9.25, 15.75]" in rest
    assert "round" not in first and "no final result" not in text
    html = (asked / "report.html").read_text()
    assert "secret" not in html and "12.5 [9.25, 15.75]" in html


def test_a_query_without_answers_says_how_to_finish_it(asked: Path) -> None:
    (asked / "answers.json").unlink()
    for command in ("report", "sync"):
        done = CliRunner().invoke(cli, [command, str(asked)])
        assert done.exit_code == 2 and "--resume` finishes it" in done.output, done.output


class _Store:
    """An MLflow store in memory."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments: list[str], query: str) -> list[Any]:
        found = [k for k, run in self.runs.items() if f"'{run['tags']['fedray.query']}'" in query and run["status"] == "FINISHED"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=k)) for k in found]

    def create_run(self, experiment: str, run_name: str) -> Any:
        key = f"r{len(self.runs)}"
        self.runs[key] = {"name": run_name, "tags": {}, "files": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=key))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.runs[run_id]["tags"] |= {tag.key: tag.value for tag in tags}

    def log_artifact(self, run_id: str, path: str) -> None:
        self.runs[run_id]["files"].append(Path(path).name)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status


def test_a_query_is_sent_once(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Store()

    def connect(uri: str, prepare: Callable[[Any], Any], *_: Any) -> tuple[Any, Any]:
        return store, prepare(store)

    monkeypatch.setattr(querytracking, "connect", connect)
    assert "logged to MLflow" in called("sync", str(asked), "--uri", "http://other:5000")
    assert "MLflow has it already" in called("sync", str(asked), "--uri", "http://other:5000")
    (run,) = store.runs.values()
    assert (run["name"], run["status"], run["tags"]["fedray.kind"]) == ("counted-2", "FINISHED", "query")
    assert {"answers.json", "report.html", "config.yaml"} <= set(run["files"])
