"""What a reviewer sees in a browser: a run's report on desktop, phone and paper, and the pages of MLflow."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import PROGRAM, at_width, elements, printed_pages, text
from postgres import PROGRAMS, database
from test_report import finished

from fedray.reporting.report_page import report_pages
from fedray.tracking.journal import read_rows
from fedray.tracking.mlflow_tracker import Tracker
from fedray.tracking.ui import ui_command, ui_links

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here (Debian: apt-get install chromium)"),
]

_UP = 180.0  # seconds within which a server must answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a twin without privacy, and its report."""
    folder = tmp_path_factory.mktemp("runs")
    made, twin = finished(folder / "trial"), finished(folder / "trial-2", private=False)
    (twin / "config.yaml").write_text((made / "config.yaml").read_text().replace("regime: record", "regime: none"))
    (made / "class_results.json").write_text(json.dumps({"labels": [0, 1], "confusion": [[8, 1], [2, 9]], "round": 3}))
    report_pages(made)
    return made


def with_starts(run: Path, *starts: dict[str, Any], **summary: Any) -> Path:
    """The run with other starts and other entries of its summary, and its report."""
    (run / "starts.jsonl").write_text("".join(json.dumps({"number": i, "time": 1.7e9, **s}) + "\n" for i, s in enumerate(starts, start=1)))
    (run / "summary.json").write_text(json.dumps(json.loads((run / "summary.json").read_text()) | summary))
    report_pages(run)
    return run


@pytest.fixture(scope="module")
def runs(run: Path) -> dict[str, Path]:
    """The run, one that was killed in its third round and resumed, and one that its budget stopped, in the order in which they ended."""
    resumed = with_starts(finished(run.parent / "trial-3"), {}, {"after": 2, "given_up": 1})
    stopped = with_starts(finished(run.parent / "trial-4", status="budget_reached"), {"spent_before": {"record": 1.5}}, planned_rounds=9)
    return {"trial": run, "resumed": resumed, "stopped": stopped}


@contextmanager
def served_by_mlflow(store: str, folder: Path) -> Iterator[str]:
    """Start an MLflow server over a store; gives its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    server = subprocess.Popen(ui_command(store, port), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + _UP
        while time.monotonic() < limit and server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Iterator[dict[str, str]]:
    """The addresses of the runs' pages on an MLflow server over SQLite or PostgreSQL, to which the runs are sent."""
    folder = runs["trial"].parent
    if request.param == "postgresql":
        if PROGRAMS is None:
            pytest.skip("there is no PostgreSQL here (Debian: apt-get install postgresql)")
        with database() as store, served_by_mlflow(store, folder) as server:
            yield sent(runs, server)
    else:
        with served_by_mlflow(f"sqlite:///{folder / 'mlflow.db'}", folder) as server:
            yield sent(runs, server)


def sent(runs: dict[str, Path], uri: str) -> dict[str, str]:
    """Send the runs to a server; returns the addresses of their pages, and of their experiment's ``dashboard``."""
    found = {"server": uri}
    tags = {"privacy/claim": "valid", "fedray.dataset": "digits"}
    model = (torch.nn.Linear(2, 2), np.zeros((1, 2), dtype=np.float32))
    for name, run in runs.items():
        status = "KILLED" if name == "stopped" else "FINISHED"
        tracker = Tracker.open(
            run, {"training.lr": "0.1"}, tags, uri=uri, experiment="trial", run_name=run.name, register_as="trial", wait=_UP
        )
        for row in read_rows(run):
            tracker.log(row)
        assert tracker.close(status, 120, model=lambda: model, pages=lambda run=run: report_pages(run))  # type: ignore[misc]
        links = ui_links(uri, tracker._run.state.experiment_id, tracker.run_id)
        found |= {name: links["run"], "dashboard": links["dashboard"]}
    return found


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_report_needs_no_sideways_scrolling(run: Path, width: int) -> None:
    found = at_width(run, "report.html", width)
    assert found["title"] == "fedray: trial"
    assert found["screen"] == width
    assert found["page"] <= width and not found["wide"], found


def test_the_report_shows_the_result_first_and_takes_four_printed_pages_at_most(run: Path) -> None:
    url = (run / "report.html").as_uri()
    shown = text(url, 5)
    assert shown.startswith("fedray: trial trial accuracy 0.3 · epsilon")
    assert shown.index("accuracy 0.3") < shown.index("same config without privacy") < shown.index("Results")
    assert printed_pages(url) <= 4


def test_a_run_s_page_begins_with_result_epsilon_and_claim_and_its_first_metric_is_the_result(site: dict[str, str]) -> None:
    shown = text(site["trial"])
    for words in ("trial", "Description accuracy 0.3 · epsilon", "claim valid", "Metrics"):
        assert words in shown, shown[:2000]
    assert shown.index("eval/accuracy") < shown.index("privacy/epsilon") < shown.index("Parameters")


def test_the_dashboard_compares_runs_by_result_and_epsilon(site: dict[str, str]) -> None:
    shown = text(site["dashboard"])
    assert "How much accuracy does each epsilon buy" in shown
    assert shown.index("Utility and privacy") < shown.index("Clients, time, traffic")


def test_the_report_is_shown_among_the_artifacts(site: dict[str, str]) -> None:
    page = elements(site["trial"].replace("?", "/artifacts/report.html?"))
    for name in ("figures", "report.html", "privacy_statement.md", "mlflow-html-iframe"):
        assert name in page, name


def test_a_resumed_run_says_so_and_takes_the_alias(site: dict[str, str]) -> None:
    shown = text(site["resumed"])
    assert "Status Finished" in shown
    assert "Ended: completed all 3 rounds; resumed at round 3; the round given up is charged." in shown, shown[:2000]
    version = text(f"{site['server']}/#/models/trial/versions/2")
    assert "resumed at round 3" in version and "newest" in version, version[:2000]


def test_a_stopped_run_says_so_first_and_does_not_take_the_alias(site: dict[str, str], runs: dict[str, Path]) -> None:
    shown = text(site["stopped"])
    assert "Status Killed" in shown
    said = "stopped by its budget after 3 of 9 rounds"
    first = shown[shown.index("Description ") :]
    assert first.startswith(f"Description S{said[1:]} · accuracy 0.3 · epsilon"), first[:500]
    assert f"fedray.ending : {said}" in shown.replace("fedray.ending:", "fedray.ending :"), shown[:2000]
    version = text(f"{site['server']}/#/models/trial/versions/3")
    assert f"S{said[1:]} · accuracy 0.3 · epsilon" in version and "1.50 of" in version, version[:2000]
    assert "newest" not in version
    page = text((runs["stopped"] / "report.html").as_uri(), 5)
    assert page.startswith(f"fedray: trial-4 trial-4 S{said[1:]} ; 1.50 of"), page[:300]
    assert page.index("accuracy 0.3 ·") < page.index("Results")
