"""Checkpoints: one file a round, atomic, with everything that the next round needs.

There is no generator state in a checkpoint: draws that are not for privacy are keyed by
(seed, purpose, round, client) and need none, and state of DP noise must never be stored.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedray.errors import FedrayError
from fedray.parameters import Vector, fingerprint
from fedray.storage import write_atomic

log = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``round`` rounds.

    Attributes:
        round: rounds completed.
        weights: the global model, flat float32.
        server: the server optimiser's state, vectors by name.
        meta: JSON-ready facts (identity of the run, best result, faults, pending metrics row, ...).
    """

    round: int
    weights: Vector
    server: dict[str, Vector] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def write_tensors(path: Path, tensors: Mapping[str, Vector], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically and with no copy of the tensors in memory.

    Raises:
        FedrayError: the disk is full, broken or not writable; the old content stands.
    """

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:  # the library's own word for an error of the system, whose number is at its end
            number = re.search(r"os error (\d+)", str(error))
            raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error

    write_atomic(path, write)


def save_checkpoint(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``round-000012.safetensors`` and delete all but the newest ``keep``."""
    path = directory / f"round-{checkpoint.round:06d}.safetensors"
    tensors = {"weights": checkpoint.weights, **{f"server.{k}": v for k, v in checkpoint.server.items()}}
    header = {
        "format": _FORMAT,
        "round": checkpoint.round,
        "sha256": {name: fingerprint(vector) for name, vector in tensors.items()},
        "meta": checkpoint.meta,
    }
    write_tensors(path, tensors, {"fedray": json.dumps(header, allow_nan=False)})
    for old in _files(directory)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none at all.

    Raises:
        FedrayError: there are checkpoints, but none can be read.
    """
    files = _files(directory)
    problems = []
    for path in files:
        try:
            return _load(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            problems.append(f"{path.name}: {error}")
            log.warning("checkpoint %s cannot be used: %s", path, error)
    if problems:
        raise FedrayError(f"{directory}: no checkpoint can be read ({'; '.join(problems)}); start anew with another --output.")
    return None


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("round-*.safetensors"), reverse=True)


def _load(path: Path) -> Checkpoint:
    with safe_open(path, framework="numpy") as file:
        header = json.loads((file.metadata() or {})["fedray"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if header["format"] != _FORMAT:
        raise ValueError(f"format {header['format']} is not {_FORMAT}")
    for name, vector in tensors.items():
        if vector.dtype != np.float32 or fingerprint(vector) != header["sha256"][name]:
            raise ValueError(f"'{name}' is damaged")
    server = {name.removeprefix("server."): v for name, v in tensors.items() if name.startswith("server.")}
    return Checkpoint(header["round"], tensors["weights"], server, header["meta"])
