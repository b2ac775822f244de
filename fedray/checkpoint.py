"""Checkpoints: one atomically written file per round with everything that the next round needs.

A checkpoint contains no state of random generators: draws that are not for privacy are keyed by (seed, purpose, round, client) and need
none, and the state of DP noise must never be stored.

The facts of a checkpoint are JSON in the header of a tensor file (:mod:`fedray.tensorfile`), covered by the file's digests.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedray.errors import FedrayError
from fedray.parameters import Values, Vector
from fedray.storage import damaged
from fedray.tensorfile import read_tensors, write_tensors

log = logging.getLogger(__name__)

_FORMAT = 2


@dataclass(frozen=True)
class Saved:
    """The state after ``round`` rounds.

    Attributes:
        round: number of completed rounds.
        weights: the global model, float32 ``[d]``; where there are several, one after the other.
        server: state of the server optimiser: float32 vectors by name.
        meta: JSON data (identity of the run, best result, faults, pending metrics row, ...).
        rest: the algorithm's other fields that are broadcast, float32, one after the other; None where there are none.
        states: where the clients' states lie, arrays whose names begin with ``states.``.
        rule: what the aggregation rule remembers: arrays by name.
        pacing: what the schedule's next step follows from, arrays whose names begin with ``pacing.``.
        versions: earlier globals that clients who still train have started from, by the number of completed rounds.
    """

    round: int
    weights: Vector
    server: dict[str, Vector] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    rest: Vector | None = None
    states: dict[str, Values] = field(default_factory=dict)
    rule: dict[str, Values] = field(default_factory=dict)
    pacing: dict[str, Values] = field(default_factory=dict)
    versions: dict[int, Vector] = field(default_factory=dict)

    @property
    def globals(self) -> Vector:
        """All that is broadcast, the model first."""
        return self.weights if self.rest is None else np.concatenate((self.weights, self.rest))


def save_checkpoint(directory: Path, checkpoint: Saved, keep: int) -> Path:
    """Write ``round-000012.safetensors``; delete all but the newest ``keep`` checkpoints and files of interrupted writers."""
    path = directory / f"{_stem(checkpoint.round)}.safetensors"
    tensors: dict[str, Values] = {"weights": checkpoint.weights, **{f"server.{k}": v for k, v in checkpoint.server.items()}}
    if checkpoint.rest is not None:
        tensors["rest"] = checkpoint.rest
    tensors |= checkpoint.states | {f"rule.{k}": v for k, v in checkpoint.rule.items()}
    tensors |= checkpoint.pacing | {f"versions.{n}": v for n, v in checkpoint.versions.items()}
    header = {"format": _FORMAT, "round": checkpoint.round, "meta": checkpoint.meta}
    write_tensors(path, tensors, {"fedray": json.dumps(header, allow_nan=False)})
    for old in [*_files(directory)[keep:], *directory.glob(".round-*")]:
        old.unlink(missing_ok=True)
    return path


def load_latest(directory: Path, note: Callable[[str], None] = log.warning) -> Saved | None:
    """Read the newest undamaged checkpoint; None if the directory has no checkpoints.

    Args:
        directory: the directory of the checkpoints.
        note: called with one sentence for each newer checkpoint that is damaged.

    Raises:
        FedrayError: all checkpoints are damaged.
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
    states, pacing = ({name: v for name, v in tensors.items() if name.startswith(prefix)} for prefix in ("states.", "pacing."))
    rule = {name.removeprefix("rule."): v for name, v in tensors.items() if name.startswith("rule.")}
    versions = {int(name.removeprefix("versions.")): v for name, v in tensors.items() if name.startswith("versions.")}
    return Saved(header["round"], tensors["weights"], server, header["meta"], tensors.get("rest"), states, rule, pacing, versions)


def _stem(round_: int) -> str:
    return f"round-{round_:06d}"
