"""The files of a run's output directory."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save

from fedray.errors import ConfigError
from fedray.parameters import Layout, Vector, fingerprint
from fedray.storage import write_atomic, write_json

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """Paths below one run's output directory, and how each file is written."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line a round."""
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """The run's privacy ledger, or its part of the silos' ledgers."""
        return self.root / "ledger"

    @property
    def checkpoints(self) -> Path:
        """Checkpoint files."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The final model's tensors by name."""
        return self.root / "model.safetensors"

    @property
    def summary(self) -> Path:
        """How the run ended."""
        return self.root / "summary.json"

    @property
    def partition(self) -> Path:
        """Who holds how much."""
        return self.root / "partition.json"

    @property
    def statement(self) -> Path:
        """The privacy statement."""
        return self.root / "privacy_statement.json"

    def create(self) -> None:
        """Make the directory and see that it can be written.

        Raises:
            ConfigError: it cannot.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"--output {self.root}: cannot be written ({error.strerror}); choose another directory.") from None

    def begin(self) -> tuple[str, int]:
        """Count one more start of this run; returns the run's own id and the number of this start, from 1."""
        path = self.root / "run.json"
        known: dict[str, Any] = {"id": f"{self.root.name}-{secrets.token_hex(4)}", "starts": 0}
        if path.exists():
            known = json.loads(path.read_text())
        known["starts"] += 1
        write_json(path, known)
        return str(known["id"]), int(known["starts"])

    def append_row(self, row: Row) -> None:
        """Add one line to the metrics file; on disk when this returns."""
        with self.metrics.open("ab") as file:
            file.write((json.dumps(row) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def append_fault(self, round_: int, kind: str, what: str) -> None:
        """Add one line to the faults file."""
        with (self.root / "faults.jsonl").open("ab") as file:
            file.write((json.dumps({"round": round_, "time": time.time(), "kind": kind, "what": what}) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """All whole lines of the metrics file."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_bytes().split(b"\n")[:-1]:
            rows.append(json.loads(line))
        return rows

    def rewind(self, rounds: int) -> list[Row]:
        """Cut the metrics file back to the first ``rounds`` rounds; returns the rows cut off."""
        rows = self.rows()
        kept = [r for r in rows if r["round"] <= rounds]
        if len(kept) < len(rows) or self.metrics.exists():
            write_atomic(self.metrics, "".join(json.dumps(r) + "\n" for r in kept).encode())
        return [r for r in rows if r["round"] > rounds]

    def save_model(self, layout: Layout, weights: Vector) -> None:
        """Write the model's tensors by name."""
        header = {"format": "pt", "fedray_sha256": fingerprint(weights)}
        write_atomic(self.model, save({k: v.copy() for k, v in layout.views(weights).items()}, metadata=header))

    def load_model(self) -> dict[str, Vector]:
        """The final model's tensors by name."""
        tensors: dict[str, Vector] = load_file(self.model)
        return tensors

    def read_summary(self) -> dict[str, Any] | None:
        """``summary.json``; None where there is none."""
        return dict(json.loads(self.summary.read_text())) if self.summary.exists() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        write_json(self.summary, summary)


def choose_output(name: str, given: str | None, resume: bool) -> Path:
    """The output directory of a run.

    Without ``given``: ``runs/NAME``, or ``runs/NAME-2`` and so on where that exists already; with
    ``resume`` the newest of them.

    Raises:
        ConfigError: ``given`` holds a run already and ``resume`` is not asked for, or a URI was given.
    """
    if given is not None:
        if "://" in given:
            raise ConfigError(f"--output {given}: this version writes to a local path; mount the store or copy the directory afterwards.")
        root = Path(given).absolute()
        if root.exists() and not root.is_dir():
            raise ConfigError(f"--output {given}: is a file; choose a directory.")
        if not resume and (root / "config.yaml").exists():
            raise ConfigError(f"--output {given}: holds a run already; add --resume to continue it, or choose another directory.")
        return root
    base = Path("runs").absolute()
    number, last, root = 1, None, base / name
    while (root / "config.yaml").exists():
        number, last = number + 1, root
        root = base / f"{name}-{number}"
    return last if resume and last is not None else root
