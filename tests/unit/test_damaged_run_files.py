"""Files of a run that are damaged end in a sentence with their name, and a run goes on wherever its checkpoint is whole."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rehearsed import config_of
from test_report import finished

from fedray.checkpoint import Saved
from fedray.cli import cli
from fedray.errors import ConfigError, FedrayError
from fedray.experiment.request import Request
from fedray.experiment.resume import begin
from fedray.faults import Fault
from fedray.parameters import Layout, fingerprint
from fedray.reporting import report_page
from fedray.runfiles import RunFiles
from fedray.storage import read_json, write_json
from fedray.tracking import mlflow_tracker, uiserver
from fedray.tracking.journal import State
from fedray.tracking.mlflow_store import TrackingError

SEED = 15
CONFIG = config_of({"kind": "fedavg"})
JUNK = {
    "empty": b"",
    "null": b"null\n",
    "a list": b"[1, 2]\n",
    "a number": b"3\n",
    "binary": bytes(range(128, 256)),
    "zeros": bytes(300),
    "deep": b"[" * 3000,
}
#: Which commands read a file.
READ_BY = {
    "run.json": ["report", "sync", "verify"],
    "summary.json": ["report", "sync", "verify", "audit"],
    "partition.json": ["report", "sync", "audit"],
    "privacy_statement.json": ["report", "sync", "verify"],
    "metrics.jsonl": ["report", "sync"],
    "faults.jsonl": ["report"],
    "config.yaml": ["report", "sync", "audit"],
    "model.safetensors": ["report", "sync", "audit"],
    "tracking.json": ["sync", "ui"],
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished private run with all its files. Commands stop where they would train, draw or reach a server."""
    from torch import nn

    folder = finished(tmp_path / "run")
    files = RunFiles(folder)
    layout = Layout.of(nn.Linear(64, 10))
    weights = np.arange(layout.size, dtype=np.float32)
    summary = read_json(files.summary) or {}
    files.save_model(layout, weights)
    write_json(files.summary, {**summary, "model_sha256": fingerprint(weights)})
    write_json(folder / "run.json", {"id": "run", "starts": 1})
    files.append_fault(Fault("node", "node b was lost", 2))
    State(f"sqlite:///{tmp_path}/mlflow.db", "e", "1", "r1", "trial", shipped={"eval/accuracy": 2}).save(folder)

    def stop(*_: Any, **__: Any) -> Any:
        raise TrackingError("the command has read all it reads.")

    monkeypatch.setattr(mlflow_tracker, "connect", stop)
    monkeypatch.setattr("fedray.audit.run.prepare", stop)
    monkeypatch.setattr(report_page, "charts", lambda _: [])
    monkeypatch.setattr(uiserver, "serve", lambda *_, **__: 0)
    return folder


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "report": lambda run: ["report", str(run)],
    "sync": lambda run: ["sync", str(run)],
    "verify": lambda run: ["ledger", "verify", str(run)],
    "audit": lambda run: ["audit", str(run)],
    "ui": lambda run: ["ui", str(run)],
}


def call(command: str, run: Path) -> tuple[bool, str]:
    """Whether the command read all it reads, and what it said; never an error that nobody worded."""
    result = CliRunner().invoke(cli, COMMANDS[command](run))
    text = result.stderr + result.stdout
    assert "fedray: unexpected" not in text and "Traceback" not in text, f"{command}: {text}"
    assert result.exception is None or isinstance(result.exception, SystemExit), f"{command}: {result.exception!r}"
    return result.exit_code == 0 or "has read all it reads" in text, text


def test_every_command_reads_what_is_whole(run: Path) -> None:
    for command in COMMANDS:
        done, text = call(command, run)
        assert done, f"{command}: {text}"


@pytest.mark.parametrize("name", READ_BY)
def test_junk_ends_in_a_sentence_with_the_files_name(name: str, run: Path) -> None:
    whole = (run / name).read_bytes()
    changes = JUNK | {"torn": whole[: len(whole) // 2]} | ({"a broken line": b"{\n" + whole} if name.endswith(".jsonl") else {})
    for kind, content in changes.items():
        if name.endswith(".jsonl") and b"\n" not in content:
            continue  # a last line without its end is what a crash leaves
        if kind == "torn" and name.endswith((".jsonl", ".yaml")):
            continue  # a beginning may be whole by itself
        (run / name).write_bytes(content)
        for command in READ_BY[name]:
            done, text = call(command, run)
            assert not done, f"{command} takes {name} ({kind})"
            assert name in text.splitlines()[0], text
    (run / name).write_bytes(whole)


@pytest.mark.parametrize("name", [name for name in READ_BY if name != "model.safetensors"])
def test_random_damage_is_no_traceback(name: str, run: Path) -> None:
    """Flipped bits, cuts and bytes of another value: each command does its work or ends in a sentence."""
    draws = np.random.default_rng([SEED, *name.encode()])
    whole = (run / name).read_bytes()
    told: Counter[str] = Counter()
    for trial in range(60):
        data = bytearray(whole)
        at = int(draws.integers(len(data)))
        if trial % 3 == 0:
            data[at] ^= 1 << int(draws.integers(8))
        elif trial % 3 == 1:
            data[at] = int(draws.integers(256))
        else:
            del data[at : at + int(draws.integers(1, 9))]
        (run / name).write_bytes(data)
        command = READ_BY[name][trial % len(READ_BY[name])]
        done, text = call(command, run)
        # A changed value may also contradict the books, or be no address.
        assert done or name in text or "ledger" in text or "tracking.uri" in text, f"{command}: {text}"
        told["read" if done else "refused"] += 1
    (run / name).write_bytes(whole)
    print(f"{name}: {told['refused']} of 60 damages refused in a sentence, the others read")


def test_rows_that_are_missing_are_noticed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for kept, sentence in (
        ([rows[0], rows[2]], "lacks what was written of round 2;"),
        (rows[:2], "lacks what was written of round 3;"),
        ([], "lacks what was written of rounds 1, 2 and 3;"),
        ([*rows, rows[1]], "holds round 2 more than once"),
        ([*rows, rows[1].replace('"round": 2', '"round": 2000000000')], "rounds 4 to 1999999999 (1999999996 in all)"),
        ([*rows, rows[1][:-9]], "the last line is cut short"),
    ):
        (run / "metrics.jsonl").write_text("".join(kept))
        caplog.clear()
        assert call("report", run)[0]
        assert sentence in caplog.text
        assert sentence in (run / "report.md").read_text()


class Told(list[str]):
    """The sentences of a start."""


def start(files: RunFiles, resume: bool = True) -> tuple[str, int, Told]:
    """A start of the run up to its first round: job, round, what was told."""
    told = Told()
    found = begin(files.claim(), Request(files.root, "q", resume), CONFIG, "digest", None, told.append)
    files.rewind(found.round)
    return found.job, found.round, told


def interrupted(root: Path, rounds: int = 4) -> RunFiles:
    """A run that was killed after some rounds, the row of the last still pending."""
    files = RunFiles(root)
    began = begin(files, Request(root, "q"), CONFIG, "digest", None, print)
    for number in range(1, rounds + 1):
        row = {"round": number, "time": 1.7e9, "metrics": {"eval/accuracy": 0.1 * number}}
        files.save_checkpoint(Saved(number, np.full(8, number, np.float32), {}, {**began.meta, "pending": row}), keep=2)
        if number < rounds:
            files.append_row(row)
    files.append_fault(Fault("node", "node b was lost", 2))
    return files


def test_a_start_counts_on(tmp_path: Path) -> None:
    files = interrupted(tmp_path / "run")
    first = start(files)
    assert first[1:] == (4, [])
    second = start(files)
    assert first[0].endswith("/2") and second[0].endswith("/3") and first[0][:-1] == second[0][:-1]


@pytest.mark.parametrize("kind", [*JUNK, "missing", "torn", "flipped"])
def test_a_whole_checkpoint_stands_in_for_run_json(tmp_path: Path, kind: str) -> None:
    files = interrupted(tmp_path / "run")
    path = files.root / "run.json"
    before, whole = read_json(path), path.read_bytes()
    assert before is not None
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes({**JUNK, "torn": whole[:20], "flipped": whole.replace(b"run-", b"rul-")}[kind])
    job, round_, _ = start(files)
    assert (job, round_) == (f"{before['id']}/2", 4)  # the id under which the books know the run's charges


def test_without_a_checkpoint_run_json_is_needed(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    start(files, resume=False)
    (files.root / "run.json").write_bytes(b"{")
    with pytest.raises(FedrayError, match=r"run\.json: is damaged .*bring it back from a copy\."):
        start(files)


def test_another_runs_files_are_refused(tmp_path: Path) -> None:
    files, other = interrupted(tmp_path / "run"), interrupted(tmp_path / "other")
    (files.root / "run.json").write_bytes((other.root / "run.json").read_bytes())
    with pytest.raises(FedrayError, match=r"run\.json: is of the run other-.*, but the checkpoint is of run-"):
        start(files)
    foreign = begin(RunFiles(tmp_path / "third"), Request(tmp_path / "third", "q"), CONFIG, "another", None, print)
    RunFiles(tmp_path / "third").save_checkpoint(Saved(9, np.ones(8, np.float32), {}, foreign.meta), keep=2)
    (tmp_path / "third/checkpoints/round-000009.safetensors").rename(files.checkpoints / "round-000009.safetensors")
    with pytest.raises(ConfigError, match="config or the data differs"):
        start(files)


def test_a_run_goes_on_with_every_other_file_damaged(tmp_path: Path) -> None:
    draws = np.random.default_rng(SEED)
    resumed = 0
    for trial in range(25):
        files = interrupted(tmp_path / f"run{trial}")
        for name in (
            "run.json",
            "metrics.jsonl",
            "faults.jsonl",
            "owner.json",
            "summary.json",
            "partition.json",
            "config.yaml",
            "tracking.json",
        ):
            path = files.root / name
            data = bytearray(path.read_bytes() if path.exists() else b"{}")
            match int(draws.integers(4)):
                case 0:
                    del data[int(draws.integers(len(data))) :]
                case 1:
                    data[int(draws.integers(len(data)))] ^= 1 << int(draws.integers(8))
                case 2:
                    data = bytearray(draws.bytes(40))
            path.write_bytes(data)
        job, round_, told = start(files)
        assert round_ == 4
        assert job.startswith(f"run{trial}-")
        kept = [row["round"] for row in files.rows()]
        assert len(kept) == 3 or any("metrics.jsonl" in text for text in told), (kept, told)
        assert [f["what"] for f in files.faults() if f["kind"] == "files"] == told
        resumed += 1
    print(f"{resumed} of 25 runs with damaged files resumed from their checkpoint")


def test_a_damaged_owner_is_named_and_is_nobody_else(tmp_path: Path) -> None:
    files = interrupted(tmp_path / "run").claim()
    (files.root / "owner.json").write_bytes(b"{")
    with pytest.raises(FedrayError, match=r"owner\.json: is damaged"):
        files.append_row({"round": 5, "time": 0.0, "metrics": {}})
    assert files.owned()  # so that the driver still ends its MLflow run
    RunFiles(files.root).claim()
    assert not files.owned()


def test_lost_rows_are_told_when_the_run_goes_on(tmp_path: Path) -> None:
    files = interrupted(tmp_path / "run", rounds=6)
    lines = files.metrics.read_bytes().splitlines(keepends=True)
    files.metrics.write_bytes(lines[0] + b"\0" * 30 + b"\n" + lines[3] + lines[3] + lines[4] + b'{"round": 6, "ti')
    told = start(files)[2]
    assert [text.partition(": ")[2] for text in told] == [
        "line 2 cannot be read.",
        "the last line is cut short, as after a crash.",
        "lacks what was written of rounds 2 and 3; figures over all rounds, such as the best, leave it out.",
        "holds round 4 more than once; the last row counts.",
    ]
    assert [row["round"] for row in files.rows()] == [1, 4, 5]
    assert start(files)[2] == [
        f"{files.metrics}: lacks what was written of rounds 2 and 3; figures over all rounds, such as the best, leave it out."
    ]


_FULL = """
import resource, signal, sys
from fedray.errors import LedgerError
from fedray.privacy.ledger.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # as a disk with room for no more
try:
    Ledger.open(sys.argv[1], "run/2")
except LedgerError as error:
    print(error)
"""


def test_a_torn_ledger_on_a_full_disk_is_named_and_left_as_it_is(run: Path) -> None:
    book = run / "ledger" / "records.jsonl"
    torn = book.read_bytes()[:-9]
    book.write_bytes(torn)
    files = {path.name for path in book.parent.iterdir()}
    done = subprocess.run([sys.executable, "-c", _FULL, str(book)], capture_output=True, text=True, check=True)
    assert re.fullmatch(r".*/records\.jsonl: its last line is torn, .*\(File too large\); free the disk .*\.\n", done.stdout)
    assert book.read_bytes() == torn
    assert {path.name for path in book.parent.iterdir()} == files
