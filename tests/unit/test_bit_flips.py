"""No changed bit, cut, lengthening or exchange of a checkpoint or a model's file passes for what was written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from fedray.checkpoint import Saved, load_latest, save_checkpoint
from fedray.errors import FedrayError
from fedray.parameters import Entry, Layout, fingerprint
from fedray.runfiles import RunFiles
from fedray.storage import write_json

SEED = 15
RANDOM_FLIPS = 2000
META = {
    "identity": "7c" * 32,
    "ledger_heads": {"records": "a1" * 32, "clients": "b2" * 32},
    "release": {"clip": 0.8125},
    "pending": {"round": 12, "time": 1.7e9, "metrics": {"eval/accuracy": 0.9375, "privacy/epsilon": 3.25, "train/loss_mean": 0.5}},
    "faults": {"actor_deaths": 1, "retries": 2},
    "traffic": {"bytes_up": 41_600, "bytes_down": 20_800, "seconds": 2.5, "clients": 60},
}
LAYOUT = Layout((Entry("weight", (10, 64), 0, "shared"), Entry("bias", (10,), 640, "shared"), Entry("scale", (), 650, "shared")))


def values(seed: int, size: int = LAYOUT.size) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def checkpoint(folder: Path, round_: int = 12, seed: int = 0) -> Path:
    state = {"momentum": values(seed + 1), "second": values(seed + 2)}
    return save_checkpoint(folder, Saved(round_, values(seed), state, META), keep=2)


def header_bits(data: bytes) -> int:
    return 8 * (8 + int.from_bytes(data[:8], "little"))


def flips(data: bytes) -> Iterator[tuple[str, int]]:
    """Every bit of the header, and random ones of the rest."""
    head = header_bits(data)
    yield from (("header", bit) for bit in range(head))
    rest = np.random.default_rng(SEED).choice(8 * len(data) - head, RANDOM_FLIPS, replace=False)
    yield from (("tensors", head + int(bit)) for bit in rest)


def refused(read: Callable[[], object], path: Path) -> bool:
    """Whether reading ends in one sentence that names the file."""
    try:
        read()
    except FedrayError as error:
        text = str(error)
        return path.name in text and "\n" not in text and text.endswith(".")
    return False


def attack(path: Path, read: Callable[[], object]) -> dict[str, int]:
    """Flip bit by bit; returns how many were tried, by place. None may be accepted."""
    whole = path.read_bytes()
    tried = {"header": 0, "tensors": 0}
    accepted = []
    with path.open("r+b", buffering=0) as file:
        for where, bit in flips(whole):
            at = bit // 8
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << bit % 8]), at)
            tried[where] += 1
            if not refused(read, path):
                accepted.append((where, bit))
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    read()
    assert not accepted, f"{len(accepted)} accepted, the first {accepted[:5]}"
    return tried


def cuts(path: Path, read: Callable[[], object]) -> int:
    """Cut the file at every byte of its header and at 200 places behind, and lengthen it; returns how many were tried."""
    whole = path.read_bytes()
    head = header_bits(whole) // 8
    behind = np.random.default_rng(SEED).choice(np.arange(head, len(whole)), 200, replace=False).tolist()
    longer = [b"\0", b" ", b"\n", b"}", whole]
    for more in longer:
        path.write_bytes(whole + more)
        assert refused(read, path), f"{more[:8]!r} behind the end is accepted"
    path.write_bytes(whole)
    read()
    sizes = sorted({*range(head), *behind}, reverse=True)
    for size in sizes:
        os.truncate(path, size)
        assert refused(read, path), f"{size} of {len(whole)} bytes are accepted"
    return len(sizes) + len(longer)


def test_no_flipped_bit_of_a_checkpoint_is_accepted(tmp_path: Path) -> None:
    tried = attack(checkpoint(tmp_path), lambda: load_latest(tmp_path))
    print(f"checkpoint: {tried['header']} bits of the header and {tried['tensors']} of the rest flipped, 0 accepted")


def test_no_flipped_bit_of_a_model_is_accepted(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.save_model(LAYOUT, values(0))
    tried = attack(files.model, files.load_model)
    print(f"model: {tried['header']} bits of the header and {tried['tensors']} of the rest flipped, 0 accepted")


def test_no_cut_or_lengthened_file_is_accepted(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.save_model(LAYOUT, values(0))
    tried = cuts(files.model, files.load_model), cuts(checkpoint(tmp_path), lambda: load_latest(tmp_path))
    print(f"{tried[0]} cut or lengthened models and {tried[1]} such checkpoints, 0 accepted")


@pytest.mark.parametrize("change", ["header", "tensors", "cut"])
def test_a_damaged_checkpoint_leaves_the_one_before_it(tmp_path: Path, change: str) -> None:
    checkpoint(tmp_path, 11, seed=20)
    newest = checkpoint(tmp_path, 12)
    data = bytearray(newest.read_bytes())
    data[100 if change == "header" else -1] ^= 4
    newest.write_bytes(data[:-3] if change == "cut" else data)
    told: list[str] = []
    found = load_latest(tmp_path, told.append)
    assert found is not None
    assert (found.round, found.weights.tobytes()) == (11, values(20).tobytes())
    assert len(told) == 1
    assert newest.name in told[0] and "goes on from round 11" in told[0]


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, 11).rename(tmp_path / "round-000014.safetensors")
    with pytest.raises(FedrayError, match=r"round-000014.*it holds round 11"):
        load_latest(tmp_path)


def test_a_checkpoint_of_the_format_before_is_refused_by_its_name(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    header = {"format": 1, "round": 3, "sha256": {"weights": fingerprint(values(0))}, "meta": META}
    save_file({"weights": values(0)}, tmp_path / "round-000003.safetensors", metadata={"fedray": json.dumps(header)})
    with pytest.raises(FedrayError, match=r"round-000003.*carries no digest"):
        load_latest(tmp_path)


def test_another_runs_model_is_refused(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.save_model(LAYOUT, values(0))
    write_json(files.summary, {"status": "completed", "model_sha256": fingerprint(values(0))})
    assert files.load_model()["bias"].tobytes() == values(0)[640:650].tobytes()
    other = RunFiles(tmp_path / "other")
    other.save_model(LAYOUT, values(1))
    other.model.replace(files.model)
    with pytest.raises(FedrayError, match=r"model\.safetensors: holds another model"):
        files.load_model()


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.save_model(LAYOUT, values(3))
    with safe_open(files.model, framework="numpy") as file:
        assert file.metadata()["fedray_sha256"] == fingerprint(values(3))
        assert {name: file.get_tensor(name).shape for name in file.keys()} == {e.name: e.shape for e in LAYOUT.entries}  # noqa: SIM118
        assert file.get_tensor("weight").tobytes() == values(3)[:640].tobytes()
    with safe_open(checkpoint(tmp_path), framework="numpy") as file:
        assert json.loads(file.metadata()["fedray"])["meta"] == META
        assert file.get_tensor("server.momentum").tobytes() == values(1).tobytes()
