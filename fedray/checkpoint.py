"""Checkpoints: one file a round, atomic, with everything that the next round needs.

There is no generator state in a checkpoint: draws that are not for privacy are keyed by
(seed, purpose, round, client) and need none, and state of DP noise must never be stored.

The facts of a checkpoint are JSON in the header of a tensor file (:mod:`fedray.tensorfile`), under its digest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray.errors import FedrayError
from fedray.parameters import Vector
from fedray.storage import damaged
from fedray.tensorfile import read_tensors, write_tensors

log = logging.getLogger(__name__)

_FORMAT = 2


@dataclass(frozen=True)
class Saved:
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


def save_checkpoint(directory: Path, checkpoint: Saved, keep: int) -> Path:
    """Write ``round-000012.safetensors`` and delete all but the newest ``keep``, and what writers that were killed have left."""
    path = directory / f"{_stem(checkpoint.round)}.safetensors"
    tensors = {"weights": checkpoint.weights, **{f"server.{k}": v for k, v in checkpoint.server.items()}}
    header = {"format": _FORMAT, "round": checkpoint.round, "meta": checkpoint.meta}
    write_tensors(path, tensors, {"fedray": json.dumps(header, allow_nan=False)})
    for old in [*_files(directory)[keep:], *directory.glob(".round-*")]:
        old.unlink(missing_ok=True)
    return path


def load_latest(directory: Path, note: Callable[[str], None] = log.warning) -> Saved | None:
    """The newest checkpoint that is whole; None if there is none at all.

    Args:
        directory: of the checkpoints.
        note: told in a sentence of each newer one that is not.

    Raises:
        FedrayError: there are checkpoints, but none can be used.
    """
    problems = []
    for path in _files(directory):
        try:
            found = _load(path)
        except FedrayError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            note(f"{problem} The run goes on from round {found.round}, the newest checkpoint that is whole.")
        return found
    if problems:
        raise FedrayError(f"{directory}: no checkpoint can be read, so the run cannot go on. {' '.join(problems)}")
    return None


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("round-*.safetensors"), reverse=True)


def _load(path: Path) -> Saved:
    tensors, metadata = read_tensors(path)
    header = json.loads(metadata.get("fedray", "{}"))
    if header.get("format") != _FORMAT:
        raise damaged(path, f"this version reads checkpoints of format {_FORMAT}, not {header.get('format')}")
    if path.stem != _stem(header["round"]):
        raise damaged(path, f"it holds round {header['round']}, so it was renamed")
    server = {name.removeprefix("server."): v for name, v in tensors.items() if name.startswith("server.")}
    return Saved(header["round"], tensors["weights"], server, header["meta"])


def _stem(round_: int) -> str:
    return f"round-{round_:06d}"
