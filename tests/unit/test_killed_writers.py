"""A driver that is killed at any moment of its writing leaves a run that goes on: nothing done is lost, doubled or half there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
from rehearsed import config_of

from fedray.checkpoint import Saved
from fedray.experiment.request import Request
from fedray.experiment.resume import Beginning, begin
from fedray.faults import Fault
from fedray.parameters import Entry, Layout, fingerprint
from fedray.runfiles import RunFiles

SEED, KILLS = 15, 60
SIZE = 50_000
CONFIG = config_of({"kind": "fedavg"})
LAYOUT = Layout((Entry("weight", (SIZE,), 0, "shared"),))


def weights(round_: int) -> np.ndarray:
    return np.full(SIZE, round_, dtype=np.float32)


def start(files: RunFiles, told: list[str]) -> tuple[RunFiles, Beginning]:
    files = files.claim()
    began = begin(files, Request(files.root, "q", resume=True), CONFIG, "digest", None, told.append)
    files.rewind(began.round)
    return files, began


def drive(root: Path, ready: int) -> NoReturn:
    """What a driver writes, round after round: the checkpoint with its pending row, the row, now and then the end of a run."""
    files, began = start(RunFiles(root), [])
    pending = began.meta.get("pending")
    os.write(ready, b"r")
    round_ = began.round
    while True:
        if pending is not None and all(row["round"] != pending["round"] for row in files.rows()):
            files.append_row(pending)
        round_ += 1
        pending = {"round": round_, "time": float(round_), "metrics": {"eval/accuracy": 1 / round_}}
        files.save_checkpoint(Saved(round_, weights(round_), {}, {**began.meta, "pending": pending}), keep=2)
        if round_ % 3 == 0:
            files.append_fault(Fault("node", "a node was lost", round_))
            files.save_model(LAYOUT, weights(round_))
            files.write_summary({"status": "interrupted", "rounds": round_, "model_sha256": fingerprint(weights(round_))})


def test_a_run_survives_kills_at_any_moment(tmp_path: Path) -> None:
    draws, root = np.random.default_rng(SEED), tmp_path / "run"
    done, ids = 0, set()
    for _ in range(KILLS):
        ready, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                drive(root, writer)
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(ready, 1) == b"r"
        time.sleep(float(draws.uniform(0, 0.03)))  # the moment of the kill, not a wait for something
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(ready)
        told: list[str] = []
        files, began = start(RunFiles(root), told)
        assert not [text for text in told if "lacks" in text or "cannot be read" in text or "more than once" in text], told
        assert began.round >= done, "what a checkpoint held is lost"
        if began.checkpoint is not None:
            assert began.checkpoint.weights.tobytes() == weights(began.round).tobytes()
            assert began.meta["pending"]["round"] == began.round
        assert [row["round"] for row in files.rows()] in (list(range(1, began.round)), list(range(1, began.round + 1)))
        if files.model.exists():
            assert files.load_model()["weight"][0] % 3 == 0
        done = began.round
        ids.add(began.job.rpartition("/")[0])
    assert len(ids) == 1
    assert int(began.job.rpartition("/")[2]) == 2 * KILLS
    assert done > KILLS / 10
    print(f"{KILLS} kills while files were written, {done} rounds done, none lost, doubled or half there")
