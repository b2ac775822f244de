"""The ground floor: parameters, keyed generators, checkpoints, files of a run."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedray import rng
from fedray.checkpoint import Saved, load_latest, save_checkpoint
from fedray.errors import ConfigError, FedrayError
from fedray.parameters import Layout, fingerprint, get_vector, set_vector
from fedray.runfiles import RunFiles, choose_output
from fedray.storage import write_atomic


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_vector_round_trip_and_layout_kinds():
    model, other = net(), net()
    layout = Layout.of(model)
    assert {e.kind for e in layout.entries} == {"shared", "buffer"}
    assert "1.num_batches_tracked" not in {e.name for e in layout.entries}
    assert layout.mask("shared").sum() == 9 * 2 + 2 + 4 + 8 * 3 + 3
    vector = get_vector(model, layout) * 2 + 1
    set_vector(other, layout, vector)
    assert (get_vector(other, layout) == vector).all()
    assert layout.views(vector)["3.bias"].base is not None  # views, no copies


def test_loading_a_vector_never_aliases_it():
    model = net()
    layout = Layout.of(model)
    shared = get_vector(model, layout)
    shared.flags.writeable = False  # as the object store gives it
    before = fingerprint(shared)
    set_vector(model, layout, shared)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(5)
    assert fingerprint(shared) == before
    with pytest.raises(ValueError, match="layout"):
        set_vector(model, layout, shared[:-1])


def test_named_draws_depend_on_every_part_of_the_name():
    names = [(7, "a", 1, 2), (7, "a", 1, 3), (7, "a", 2, 2), (7, "b", 1, 2), (8, "a", 1, 2), (7, "a", 12), (7, "a", "1", 2)]
    assert len({rng.derive(*n) for n in names}) == len(names)
    assert rng.generator(7, "a", 1).random(4).tolist() == rng.generator(7, "a", 1).random(4).tolist()
    assert 0 <= rng.torch_seed(1, "x") < 2**32


@given(
    st.lists(st.tuples(st.integers(0, 2**70), st.one_of(st.integers(-5, 2**40), st.text(max_size=5))), min_size=2, max_size=6, unique=True),
    st.integers(0, 9),
)
def test_generators_that_are_set_anew_are_those_of_their_names(names, used):
    draws, found = rng.Keyed(7, "a", 3), []
    for keys in [*names, *names]:
        mine = draws(*keys)
        found.append(mine.random(4).tolist())
        assert found[-1] == rng.Keyed(7, "a")(3, *keys).random(4).tolist()  # wherever the name is cut in two
        mine.integers(9, size=used, dtype=np.uint32)  # half a word may be left over
    assert found[: len(names)] == found[len(names) :]
    assert len(set(map(tuple, found))) == len(names)


def test_generators_that_are_set_anew_draw_uniformly():
    """Means and neighbours' correlations over 20,000 names, each within five standard deviations."""
    draws, n = rng.Keyed(7, "batches", 0), 20_000
    x = np.array([draws(k).random(3) for k in range(n)])
    deviation = 1 / np.sqrt(12)
    assert (abs(x.mean(0) - 0.5) < 5 * deviation / np.sqrt(n)).all()
    z = (x - 0.5) / deviation
    for a, b in ((z[:, 0], z[:, 1]), (z[:, 1], z[:, 2]), (z[1:, 0], z[:-1, 0])):
        assert abs((a * b).mean()) < 5 / np.sqrt(n)


def test_checkpoints_keep_the_newest_and_survive_a_damaged_one(tmp_path):
    weights = np.arange(5, dtype=np.float32)
    for r in range(1, 5):
        save_checkpoint(tmp_path, Saved(r, weights * r, {"momentum": weights}, {"best": {"a": 1.0}}), keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["round-000003.safetensors", "round-000004.safetensors"]
    newest = load_latest(tmp_path)
    assert newest is not None
    assert newest.round == 4
    assert (newest.weights == weights * 4).all()
    assert (newest.server["momentum"] == weights).all()
    file = tmp_path / "round-000004.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    fallback = load_latest(tmp_path)
    assert fallback is not None
    assert fallback.round == 3
    (tmp_path / "round-000003.safetensors").write_bytes(b"")
    with pytest.raises(FedrayError, match="no checkpoint can be read"):
        load_latest(tmp_path)
    assert load_latest(tmp_path / "none") is None


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FedrayError, match=r"x\.json: cannot be written \(disk full\); see to the disk"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_rewinding_the_metrics_file_keeps_whole_lines_of_earlier_rounds(tmp_path):
    files = RunFiles(tmp_path)
    for r in range(1, 4):
        files.append_row({"round": r, "time": 0.0, "metrics": {}})
    with files.metrics.open("ab") as f:
        f.write(b'{"round": 4, "ti')  # the line a crash cut short
    cut = files.rewind(2)
    assert [r["round"] for r in cut] == [3]
    assert [json.loads(line)["round"] for line in files.metrics.read_text().splitlines()] == [1, 2]


def fill(root: Path, parameters: int) -> str:
    """Write rounds until nothing more fits; what was said then."""
    files, done = RunFiles(root), 0
    with pytest.raises(FedrayError) as error:
        for r in range(1, 1000):
            files.save_checkpoint(Saved(r, np.zeros(parameters, dtype=np.float32)), keep=1000)
            files.append_row({"round": r, "metrics": {"x" * 9000: 0.0}})
            done = r
    newest = load_latest(files.checkpoints)
    assert newest is not None
    assert newest.round in (done, done + 1)
    assert [r["round"] for r in files.rows()] == list(range(1, done + 1))
    assert files.metrics.read_bytes().endswith(b"\n")
    assert not list(root.rglob(".*")), "parts were left behind"
    return str(error.value)


def test_a_line_that_does_not_fit_is_one_sentence_and_leaves_no_part(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system writes a part of the line that does not fit
    try:
        said = fill(tmp_path, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said == f"{tmp_path}/metrics.jsonl: cannot be written (File too large); see to the disk, then start again (a run with --resume)."


def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_leaves_no_part(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        said = fill(disk, 100_000)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert re.match(r".*/round-00000\d\.safetensors: cannot be written \(No space left on device\); see to the disk", said)


def test_output_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = choose_output("x", None, False)
    first.mkdir(parents=True)
    (first / "config.yaml").write_text("")
    assert choose_output("x", None, False).name == "x-2"
    assert choose_output("x", None, True) == first
    with pytest.raises(ConfigError, match="--resume"):
        choose_output("x", str(first), False)
    assert choose_output("x", str(first), True) == first
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        choose_output("x", str(file), False)
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFiles(file / "below").create()
