"""Checkpoints are whole or not there, and take no copy of the model in memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np

from fedray.checkpoint import Saved, load_latest, save_checkpoint
from fedray.tensorfile import write_tensors

WEIGHTS = np.arange(300_000, dtype=np.float32)

_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from fedray.checkpoint import Saved, save_checkpoint
from fedray.errors import FedrayError
from fedray.tensorfile import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk with room for no more
folder = Path(sys.argv[1])
for write in (lambda: save_checkpoint(folder, Saved(2, np.ones(300_000, np.float32)), 2),
              lambda: write_tensors(folder / "model.safetensors", {"w": np.ones(300_000, np.float32)}, {})):
    try:
        write()
    except FedrayError as error:
        print(error)
"""


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    view = WEIGHTS.view()
    view.flags.writeable = False  # as weights in the object store
    remembered = {"previous": np.linspace(0, 1, 7), "counts": np.arange(3)}
    save_checkpoint(tmp_path, Saved(3, view, {"momentum": -WEIGHTS}, {"a": 1}, rule=remembered), keep=2)
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.round, found.meta) == (3, {"a": 1})
    assert found.weights.tobytes() == WEIGHTS.tobytes()
    assert found.server["momentum"].tobytes() == (-WEIGHTS).tobytes()
    assert {k: (v.dtype, v.tobytes()) for k, v in found.rule.items()} == {k: (v.dtype, v.tobytes()) for k, v in remembered.items()}


def test_what_a_schedule_goes_on_from_is_read_as_it_was(tmp_path: Path) -> None:
    pacing = {"pacing.clock": np.array([1.5]), "pacing.training": np.zeros((0, 2), dtype=np.int64)}
    save_checkpoint(tmp_path, Saved(3, WEIGHTS, pacing=pacing, versions={1: -WEIGHTS}), keep=2)
    found = load_latest(tmp_path)
    assert found is not None and found.versions.keys() == {1} and (found.versions[1] == -WEIGHTS).all()
    assert {n: (v.shape, v.dtype, v.tolist()) for n, v in found.pacing.items()} == {
        n: (v.shape, v.dtype, v.tolist()) for n, v in pacing.items()
    }


def test_a_disk_that_is_full_is_told_and_the_old_files_stand(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Saved(1, WEIGHTS), keep=2)
    write_tensors(tmp_path / "model.safetensors", {"w": WEIGHTS}, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all("cannot be written (File too large); see to the disk" in line for line in said)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before  # and nothing half-written beside them


def test_writing_takes_no_copy(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Saved(0, WEIGHTS), keep=2)  # imports are done
    tracemalloc.start()
    try:
        save_checkpoint(tmp_path, Saved(1, WEIGHTS), keep=2)
        assert tracemalloc.get_traced_memory()[1] < WEIGHTS.nbytes / 10
    finally:
        tracemalloc.stop()
