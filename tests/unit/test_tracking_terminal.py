from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedray.tracking.closing_words import print_summary
from fedray.tracking.terminal import NoteHandler, Progress

INFO: dict[str, Any] = {
    "name": "digits-dp",
    "rounds": 12,
    "clients": 1000,
    "actors": 4,
    "model": "softmax",
    "parameters": 650,
    "regime": "record",
    "delta": 5e-4,
    "budget": 8.0,
}
SUMMARY: dict[str, Any] = {
    "status": "budget_reached",
    "rounds": 9,
    "model_sha256": "ab",
    "final": {"eval/loss": 0.2, "eval/accuracy": 0.95},
    "best": {"eval/accuracy": 0.96, "round": 7},
    "privacy": {"unit": "record", "regime": "record", "epsilon": 7.9, "delta": 1e-5, "accountant": "pld", "budget": 8.0},
    "performance": {"seconds_per_round": 0.8, "clients_per_second": 61.0},
    "faults": {"actor_deaths": 2, "late": 0},
    "mlflow": {"tracking_uri": "sqlite:////r/mlflow.db", "run_id": "abc"},
}


def row(number: int, **more: float | None) -> dict[str, Any]:
    metrics = {"eval/accuracy": number / 100, "eval/loss": 1.0, "privacy/epsilon": 0.5 * number, "time/round_s": 0.25}
    return {"round": number, "time": 0.0, "metrics": {**metrics, "round/clients_completed": 10, **more}}


def terminal(width: int = 120) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width, color_system=None, _environ={}), stream


def last_frame(stream: io.StringIO) -> str:
    return stream.getvalue().rpartition("─ fedray ")[2]


def test_a_log_has_one_line_a_round() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.start(INFO)
        for number in range(1, 13):
            progress.row(row(number, **{"round/clients_late": 2.0 if number == 5 else 0.0}))
        progress.note("client [a] lost: its actor died")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 14
    assert lines[0].startswith("digits-dp | 1,000 clients on 4 actors | softmax, 650 parameters | DP: record, epsilon <= 8, delta 0.0005")
    assert lines[5].startswith("round 5/12  accuracy 0.0500  loss 1.0000  epsilon 2.500/8  clients 10 (-2)  s/round 0.25  ETA ")
    assert "ETA" not in lines[12]
    assert lines[13] == "note: client [a] lost: its actor died"
    assert "\x1b" not in stream.getvalue()


def test_a_log_line_shows_only_what_there_is() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.start({"name": "plain", "regime": "none", "metric": "eval/auc"})
        progress.row({"round": 1, "time": 0.0, "metrics": {"eval/auc": math.nan, "train/loss_mean": 2.5}})
    assert stream.getvalue().splitlines() == ["plain | no differential privacy", "round 1  loss 2.5000"]


def test_long_lines_are_not_broken_in_a_log() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.note("x" * 1000)
    assert stream.getvalue() == "note: " + "x" * 1000 + "\n"


def test_a_terminal_shows_bars_and_the_last_rounds() -> None:
    console, stream = terminal()
    with Progress(console=console) as progress:
        progress.start(INFO)
        for number in range(1, 13):
            progress.row(row(number))
    frame = last_frame(stream)
    assert "digits-dp" in frame
    assert "12/12" in frame
    assert "6.000/8" in frame
    assert "75% of the budget" in frame
    shown = [line.split()[1] for line in frame.splitlines() if "0.25" in line]
    assert shown == [str(n) for n in range(5, 13)]
    assert "clients/s" in frame
    assert "ETA" not in frame


def test_a_terminal_shows_the_time_left_while_it_runs() -> None:
    console, stream = terminal()
    progress = Progress(console=console)
    progress.start({**INFO, "first_round": 3})
    progress.row(row(4))
    assert "4/12" in last_frame(stream)
    assert "ETA" in last_frame(stream)
    progress.close()


def test_a_terminal_shows_the_best_value_and_the_directory() -> None:
    console, stream = terminal()
    with Progress(console=console) as progress:
        progress.start({**INFO, "output": "/runs/digits-dp", "metric": "eval/loss", "lower_is_better": True})
        for number, loss in ((1, 0.9), (2, 0.3), (3, 0.5)):
            progress.row(row(number, **{"eval/loss": loss}))
    frame = last_frame(stream)
    assert "in /runs/digits-dp" in frame
    assert "loss 0.3000  round 2" in frame


def test_the_first_round_does_not_count_in_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 30.0, 31.0, 32.0, *([32.0] * 50)])
    monkeypatch.setattr("fedray.tracking.terminal.time.monotonic", lambda: next(clock))
    progress = Progress(io.StringIO())
    progress.start({"rounds": 12})
    for number in (1, 2, 3):
        progress._ends.append((next(clock), 10.0))
        progress._done = number
    assert progress._seconds_per_round() == pytest.approx(1.0)
    assert progress._clients_per_second() == pytest.approx(10.0)


def test_a_second_row_of_a_round_replaces_the_first() -> None:
    for console, stream in (terminal(), (None, io.StringIO())):
        progress = Progress(None if console else stream, console=console)
        with progress:
            progress.start(INFO)
            progress.row({"round": 1, "time": 0.0, "metrics": {"time/round_s": 0.25}})
            progress.row({"round": 1, "time": 0.0, "metrics": {"eval/accuracy": 0.5}})
        if console:
            assert "1/12" in last_frame(stream)
            assert [line for line in last_frame(stream).splitlines() if "0.5000" in line and "0.25" in line]
        else:
            assert stream.getvalue().count("round 1/12") == 1


def test_nothing_is_shown_after_the_end_and_closing_twice_is_fine() -> None:
    console, stream = terminal()
    progress = Progress(console=console)
    progress.start(INFO)
    progress.row(row(1))
    progress.close()
    shown = stream.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    progress.close()
    progress.row(row(2))
    progress.note("late")
    progress.start(INFO)
    assert stream.getvalue() == shown


def test_ctrl_c_gives_the_cursor_back() -> None:
    console, stream = terminal()

    def interrupted() -> None:
        with Progress(console=console) as progress:
            progress.start(INFO)
            progress.row(row(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")
    assert "Traceback" not in stream.getvalue()


def test_notes_stand_above_the_display_once() -> None:
    console, stream = terminal()
    logger = logging.getLogger("fedray.test_tracking_terminal")
    with Progress(console=console) as progress:
        handler = NoteHandler(progress.note)
        logger.addHandler(handler)
        progress.start(INFO)
        logger.warning("MLflow at %s is away", "[x]")
        progress.row(row(1))
        logger.removeHandler(handler)
    assert stream.getvalue().count("! MLflow at [x] is away") == 1


def test_a_narrow_terminal_works() -> None:
    console, stream = terminal(width=30)
    with Progress(console=console) as progress:
        progress.start(INFO)
        progress.row(row(1))
    assert max(len(line) for line in last_frame(stream).splitlines()[1:]) <= 40


def test_the_summary_in_a_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    (tmp_path / "model.safetensors").touch()
    print_summary({"name": "digits-dp", **SUMMARY}, tmp_path, "fedray ui runs/digits-dp", stream)
    assert stream.getvalue().splitlines() == [
        "digits-dp budget reached",
        "  rounds      9, 0.80 s each, 61.0 clients/s",
        "  accuracy    0.9500 (best 0.9600 in round 7)",
        "  loss        0.2000",
        "  epsilon     7.9000 of 8 at delta 1e-05, for one record (accountant pld)",
        "  faults      actor deaths 2",
        f"  model       {tmp_path}/model.safetensors",
        "  MLflow run  abc at sqlite:////r/mlflow.db",
        "  $ fedray ui runs/digits-dp",
    ]


def test_the_summary_names_the_registered_version_and_how_a_classifier_nobody_evaluated_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(final: dict[str, float], labels: list[str]) -> str:
        stream, run = io.StringIO(), tmp_path / "runs" / "t"
        run.mkdir(parents=True, exist_ok=True)
        (run / "partition.json").write_text(json.dumps({"class_labels": labels}))
        mlflow = {"run_id": "abc", "tracking_uri": "http://m", "registered": "models:/tumours/1"}
        print_summary({**SUMMARY, "final": final, "mlflow": mlflow}, run, stream=stream)
        return stream.getvalue()

    monkeypatch.chdir(tmp_path)
    unmeasured = "  accuracy    not measured; a query asks the clients for it: fedray query QUERY.yaml judged=runs/t\n"
    bare = said({}, ["benign", "malignant"])
    assert "  registered  tumours version 1 (models:/tumours/1)\n" in bare
    assert unmeasured in bare
    assert unmeasured not in said({"eval/accuracy": 0.5}, ["benign", "malignant"])
    assert unmeasured not in said({}, [])


def test_the_summary_names_the_books_that_outlive_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("privacy: {ledger: /srv/books}\n")
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "north.part.json").touch()
    shown = io.StringIO()
    print_summary(SUMMARY, tmp_path, stream=shown)
    assert "  ledger      /srv/books\n" in shown.getvalue()
    (tmp_path / "ledger" / "records.jsonl").touch()
    own = io.StringIO()
    print_summary(SUMMARY, tmp_path, stream=own)
    assert f"  ledger      {tmp_path}/ledger\n" in own.getvalue()


def test_the_summary_on_a_terminal_keeps_places_whole() -> None:
    console, stream = terminal(width=60)
    place = "sqlite:////" + "long/" * 30 + "mlflow.db"
    void = {**SUMMARY["privacy"], "epsilon": "infinity", "claim": "void", "claim_reasons": ["privacy.insecure_seed is set"]}
    print_summary(
        {**SUMMARY, "privacy": void, "mlflow": {"tracking_uri": place, "run_id": "abc", "complete": False}}, "/r", console=console
    )
    assert f"abc at {place} (incomplete; fedray sync /r sends the rest)" in stream.getvalue()
    assert "void: privacy.insecure_seed is set" in stream.getvalue()
    assert "infinity of 8" in stream.getvalue()


def test_the_summary_of_a_run_without_figures() -> None:
    stream = io.StringIO()
    print_summary({"status": "failed", "error": "no client could be started."}, stream=stream)
    assert stream.getvalue().splitlines() == ["run failed", "  why     no client could be started.", "  rounds  0"]


def dumb(width: int = 80) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width, _environ={"TERM": "dumb"}), stream


def test_a_dumb_terminal_gets_lines_that_fit() -> None:
    console, stream = dumb()
    with Progress(console=console) as progress:
        progress.start(INFO)
        for number in range(1, 4):
            progress.row(row(number))
        progress.note("client a on node b was lost: its actor died, and what it had of its update is lost with it; it is tried again.")
        progress.note("it is in /a/" + "long/" * 30 + "path")
    print_summary(SUMMARY, console=console)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "round 2/12  accuracy 0.0200" in text
    assert text.count("round 1/12") == 1
    assert not any(c in text for c in "╭│─")
    long = [line for line in text.splitlines() if len(line) > 80]
    assert long == ["  /a/" + "long/" * 30 + "path"]


def test_notes_on_a_terminal_break_between_words() -> None:
    console, stream = terminal(width=80)
    with Progress(console=console) as progress:
        progress.note(
            "a note of more than eighty characters, which a terminal of that width would break in the middle of a word if left alone"
        )
    first, second, *_ = stream.getvalue().splitlines()
    assert first == "! a note of more than eighty characters, which a terminal of that width would"
    assert second == "  break in the middle of a word if left alone"
