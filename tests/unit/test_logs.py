"""Structured logs: one JSON object a line, and the same text for people."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from typing import Any

from paths import ROOT

from fedray import logs
from fedray.faults import Fault
from fedray.tracking.closing_words import print_summary
from fedray.tracking.structured import JsonProgress
from fedray.tracking.terminal import Progress

INFO = {
    "name": "digits",
    "rounds": 3,
    "clients": 10,
    "actors": 4,
    "regime": "record",
    "budget": 8.0,
    "delta": 1e-4,
    "metric": "eval/accuracy",
}
ROW = {"round": 2, "time": 1.0, "metrics": {"eval/accuracy": 0.5, "privacy/epsilon": 2.5, "round/clients_completed": 9.0}}
SUMMARY = {"status": "completed", "name": "digits", "rounds": 3, "final": {"eval/accuracy": 0.5}, "faults": {"retries": 2}}
FAULT = Fault("client", "round 2: client st. mary on node 7 failed: the sensor is broken", 2, "st. mary", "node 7")


def structured() -> list[dict[str, Any]]:
    out = io.StringIO()
    progress = JsonProgress("digits", out)
    progress.joining("joining Ray")
    progress.start(INFO | {"run": "digits-1a2b"})
    progress.row(ROW)
    progress.fault(FAULT)
    progress.ended(SUMMARY, "/out", "fedray ui /out")
    assert out.getvalue().endswith("\n")
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_each_event_is_one_line_with_run_round_and_client() -> None:
    joining, started, row, note, ended = structured()
    assert [e["event"] for e in (joining, started, row, note, ended)] == ["joining", "started", "row", "note", "ended"]
    assert (joining["run"], ended["run"]) == ("digits", "digits-1a2b")
    assert started["info"]["rounds"] == 3
    assert (row["round"], row["metrics"], row["level"]) == (2, ROW["metrics"], "INFO")
    assert (note["kind"], note["round"], note["client"], note["node"], note["level"]) == ("client", 2, "st. mary", "node 7", "WARNING")
    assert ended["summary"] == SUMMARY
    assert all(e["time"].endswith("+00:00") for e in (joining, ended))


def test_rendered_it_reads_as_the_plain_log() -> None:
    plain = io.StringIO()
    progress = Progress(plain)
    progress.start(INFO)
    progress.row(ROW)
    progress.fault(FAULT)
    print_summary(SUMMARY, "/out", "fedray ui /out", stream=plain)
    rendered = "".join(logs.render(json.dumps(event)) + "\n" for event in structured()[1:])
    assert rendered == plain.getvalue()


def test_lines_that_are_not_structured_stay() -> None:
    for line in ("", "(raylet) killed", '{"time": broken', '{"time": 3}', '{"a": 1}'):
        assert logs.render(line) == line
        assert logs.read(line) is None


def formatted(**extra: Any) -> dict[str, Any]:
    entry = logging.LogRecord("fedray.clients", logging.WARNING, "x.py", 1, "client %s: %s", ("a", "late"), extra.pop("exc_info", None))
    entry.__dict__.update(extra)
    found: dict[str, Any] = json.loads(logs.JsonFormatter("digits").format(entry))
    return found


def test_python_s_log_records_are_lines_too() -> None:
    found = formatted(round=3, client="a")
    assert (found["level"], found["logger"], found["run"]) == ("WARNING", "fedray.clients", "digits")
    assert (found["message"], found["round"], found["client"]) == ("client a: late", 3, "a")
    assert logs.render(json.dumps(found)) == "WARNING fedray.clients: client a: late"
    assert "round" not in formatted()


def test_a_traceback_travels_in_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        found = formatted(exc_info=sys.exc_info())
    assert found["traceback"].endswith("ValueError: broken\n")
    assert logs.render(json.dumps(found)).splitlines()[-1] == "ValueError: broken"


def test_the_environment_chooses_the_form_of_errors_and_of_logging() -> None:
    code = (
        "import logging; from fedray import logs; logs.setup('a'); logs.setup('a'); logging.getLogger('fedray.x').warning('w'); "
        "import sys; print(logs.error('e'), file=sys.stderr)"
    )
    for form, expected in (("json", ["w", "e"]), ("", None)):
        done = subprocess.run([sys.executable, "-c", code], env={"FEDRAY_LOG": form}, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0
        lines = done.stderr.splitlines()
        if expected is None:
            assert lines == ["w", "e"]
        else:
            assert [json.loads(line)["message"] for line in lines] == expected
            assert json.loads(lines[1])["event"] == "error"
