"""The comparison of golden runs says what differs, and nothing where nothing does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.golden.__main__ import RUNS, main
from tests.golden.compare import KINDS, LEDGER, differences


def left_behind(run: Path, time: float = 0.0) -> Path:
    """What a run leaves, made by hand; ``time`` stands for all that may differ."""
    run.mkdir()
    save_file({"out.weight": np.ones((2, 3), np.float32)}, run / "model.safetensors", metadata={"time": str(time)})
    rows = [{"round": n, "time": time, "metrics": {"eval/loss": 0.5 / n, "time/round_s": time, "traffic/uplink_mb": time}} for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    privacy = {"epsilon": 1.5, "statement": f"at {time}"}
    summary = {"status": "completed", "rounds": 2, "engine": "book", "final": {"eval/loss": float("nan")}, "best": None, "privacy": privacy}
    (run / "summary.json").write_text(json.dumps(summary | {"performance": {"setup_seconds": time}}))
    clients = [{"name": f"client-{n}", "epsilon": 1.0 + n / 2} for n in (0, 1)]
    books = [{"file": str(run / "ledger" / "records.jsonl"), "entries": 8, "clients": clients}]
    (run / LEDGER).write_text(json.dumps({"books": books}))
    return run


def edit(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def one_bit(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    tensors["out.weight"].view(np.uint8).reshape(-1)[4] ^= 1
    save_file(tensors, run / "model.safetensors")


def another_name(run: Path) -> None:
    save_file({"head.weight": np.ones((2, 3), np.float32)}, run / "model.safetensors")


def another_shape(run: Path) -> None:
    save_file({"out.weight": np.ones((3, 2), np.float32)}, run / "model.safetensors")


def one_row(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace("0.25", "0.2500000000000001"))


def no_last_row(run: Path) -> None:
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")


def one_epsilon(run: Path) -> None:
    edit(run / LEDGER, lambda ledger: ledger["books"][0]["clients"][1].update(epsilon=1.6))


def one_client_less(run: Path) -> None:
    edit(run / LEDGER, lambda ledger: ledger["books"][0]["clients"].pop())


def the_claimed_epsilon(run: Path) -> None:
    edit(run / "summary.json", lambda summary: summary["privacy"].update(epsilon=1.6))


def the_result(run: Path) -> None:
    edit(run / "summary.json", lambda summary: summary.update(status="budget_reached"))


CHANGES = [
    (one_bit, "model", ["out.weight has 1 other bytes of 24; a number moved by at most 1.2e-07"]),
    (another_name, "model", ["head.weight is only in the working tree", "out.weight is only at the base"]),
    (another_shape, "model", ["out.weight was F32[2, 3] and is F32[3, 2]"]),
    (one_row, "rows", ["round 2 eval/loss was 0.25 and is 0.2500000000000001"]),
    (no_last_row, "rows", ["round 2 eval/loss is only at the base"]),
    (one_epsilon, "ledger", ["records.jsonl client-1 epsilon was 1.5 and is 1.6"]),
    (one_client_less, "ledger", ["records.jsonl client-1 epsilon is only at the base"]),
    (the_claimed_epsilon, "ledger", ["epsilon was 1.5 and is 1.6"]),
    (the_result, "results", ["status was 'completed' and is 'budget_reached'"]),
]


def test_times_and_traffic_are_no_difference(tmp_path: Path) -> None:
    found = differences(left_behind(tmp_path / "base", 1.0), left_behind(tmp_path / "tree", 2.0))
    assert found == {kind: [] for kind in KINDS}


@pytest.mark.parametrize(("change", "kind", "sentences"), CHANGES, ids=[change.__name__ for change, _, _ in CHANGES])
def test_one_difference_is_named(change: Callable[[Path], None], kind: str, sentences: list[str], tmp_path: Path) -> None:
    base, tree = left_behind(tmp_path / "base"), left_behind(tmp_path / "tree")
    change(tree)
    found = differences(base, tree)
    assert sorted(found.pop(kind)) == sentences
    assert not any(found.values())


def test_a_run_without_a_model_is_never_the_same(tmp_path: Path) -> None:
    base, tree = left_behind(tmp_path / "base"), left_behind(tmp_path / "tree")
    for run in (base, tree):
        (run / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        differences(base, tree)


def test_there_are_ten_runs_and_other_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(RUNS) == 10
    for arguments in (["HEAD", "w2"], ["HEAD", "w1", "--expect", "w1:modle"]):
        with pytest.raises(SystemExit):
            main(arguments)
    said = capsys.readouterr().err
    assert "no golden run is called w2" in said and "--expect w1:modle: give RUN or RUN:KIND" in said
