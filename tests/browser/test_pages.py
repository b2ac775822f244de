"""What a reviewer sees in a browser: a run's report on desktop, phone and paper, and the pages of MLflow."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from chromium import PROGRAM, at_width, elements, printed_pages, text
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


@pytest.fixture(scope="module")
def site(run: Path) -> Iterator[dict[str, str]]:
    """The addresses of the run's pages in an MLflow server over SQLite that has the run."""
    uri = f"sqlite:///{run.parent / 'mlflow.db'}"
    tags = {"privacy/claim": "valid", "fedray.dataset": "digits"}
    tracker = Tracker.open(run, {"training.lr": "0.1"}, tags, uri=uri, experiment="trial", run_name="trial")
    for row in read_rows(run):
        tracker.log(row)
    assert tracker.close("FINISHED", 120, pages=lambda: report_pages(run))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    server = subprocess.Popen(ui_command(uri, port), cwd=run.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + _UP
        while time.monotonic() < limit:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.5)
        yield ui_links(uri, "1", tracker.run_id, port)
    finally:
        server.terminate()
        server.wait(30)


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
    shown = text(site["run"])
    for words in ("trial", "Description accuracy 0.3 · epsilon", "claim valid", "Metrics"):
        assert words in shown, shown[:2000]
    assert shown.index("eval/accuracy") < shown.index("privacy/epsilon") < shown.index("Parameters")


def test_the_dashboard_compares_runs_by_result_and_epsilon(site: dict[str, str]) -> None:
    shown = text(site["dashboard"])
    assert "How much accuracy does each epsilon buy" in shown
    assert shown.index("Utility and privacy") < shown.index("Clients, time, traffic")


def test_the_report_is_shown_among_the_artifacts(site: dict[str, str]) -> None:
    page = elements(site["run"].replace("?", "/artifacts/report.html?"))
    for name in ("figures", "report.html", "privacy_statement.md", "mlflow-html-iframe"):
        assert name in page, name
