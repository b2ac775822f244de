"""The files of a run's output directory."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedray.checkpoint import Checkpoint, save_checkpoint
from fedray.errors import ConfigError, FedrayError, Stopped
from fedray.frozen import around
from fedray.mirror import OWNER, SUMMARY, Mirror, working_directory
from fedray.parameters import Layout, Values, Vector
from fedray.privacy.location import Location, ObjectPath
from fedray.remote import Remote, StoreAway, canonical, is_remote
from fedray.storage import append_line, write_atomic, write_json
from fedray.tensorfile import DIGEST, read_tensors, write_tensors

Row = dict[str, Any]

#: Where a run's files go: a directory, or the address of a prefix in an object store.
Output = Path | str


@dataclass(frozen=True)
class RunFiles:
    """Paths below one run's output directory, and how each file is written.

    Attributes:
        root: the directory; of a run in a store, the working directory on this node.
        remote: the address in the store.
        driver: whose files these are: a driver that has claimed them writes nothing more once another has (see :meth:`claim`).
    """

    root: Path
    remote: str | None = None
    driver: str | None = None

    @classmethod
    def at(cls, output: Output) -> RunFiles:
        """The files of an output, on this node.

        Raises:
            ConfigError: no working directory can be made.
        """
        if not is_remote(output):
            return cls(Path(output))
        return cls(working_directory(str(output)), str(output))

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
    def books(self) -> Location:
        """Where ``privacy.ledger: run`` keeps its books: beside the other files, in the store itself where the output is one.

        Raises:
            ConfigError: that store has no conditional writes, so a charge could be lost.
        """
        if self.remote is None:
            return self.ledger
        if not self.remote.startswith("s3://"):
            raise ConfigError(
                f"--output {self.remote}: this store can hold a run's files but not its privacy ledger (it has no conditional writes that this "
                "program knows); set privacy.ledger to a directory on a durable volume, or to s3://bucket/prefix."
            )
        return ObjectPath.parse(self.remote, "--output") / "ledger"

    @property
    def faults_file(self) -> Path:
        """One JSON line a fault."""
        return self.root / "faults.jsonl"

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
        return self.root / SUMMARY

    @property
    def partition(self) -> Path:
        """Who holds how much."""
        return self.root / "partition.json"

    @property
    def statement(self) -> Path:
        """The privacy statement."""
        return self.root / "privacy_statement.json"

    @property
    def profile(self) -> Path:
        """Where the rounds' time went, as a table."""
        return self.root / "profile.txt"

    @property
    def trace(self) -> Path:
        """The same, as spans for a trace viewer."""
        return self.root / "profile.json"

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

    def mirror(self, note: Callable[[str], None]) -> Mirror | None:
        """What copies the files to the store while the run goes on; None where the output is a directory."""
        return None if self.remote is None else Mirror(self.root, Remote(self.remote), note)

    def claim(self) -> RunFiles:
        """These files, owned by the driver that calls this: whichever claimed them last.

        A driver that was cut off, and replaced because it seemed dead, finds that out at its next write and stops.
        """
        driver = secrets.token_hex(8)
        write_json(self.root / OWNER, {"driver": driver, "node": socket.gethostname()})
        return replace(self, driver=driver)

    def last_node(self) -> str:
        """Name of the host of the driver that claimed these files last."""
        try:
            return str(json.loads((self.root / OWNER).read_text())["node"])
        except (OSError, ValueError, KeyError):
            return "another node"

    def owned(self) -> bool:
        """Whether no other driver has claimed the files since this one did."""
        if self.driver is None:
            return True
        try:
            return bool(json.loads((self.root / OWNER).read_text())["driver"] == self.driver)
        except (OSError, ValueError, KeyError):
            return False

    def _check_owned(self) -> None:
        if not self.owned():
            raise Stopped(f"{self.remote or self.root}: another driver has taken this run over; this one stops and leaves the files alone.")

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
        """Add one line to the metrics file; on disk when this returns.

        Raises:
            Stopped: another driver owns the files. So do all that write here.
            FedrayError: the disk is full or broken. So do all that write here.
        """
        self._check_owned()
        append_line(self.metrics, json.dumps(row))

    def append_fault(self, round_: int, kind: str, what: str) -> None:
        """Add what befell the run to the faults file.

        Args:
            round_: from 1.
            kind: actor, node, client, driver, store, tracking or memory.
            what: a sentence.
        """
        self._check_owned()
        append_line(self.faults_file, json.dumps({"round": round_, "time": time.time(), "kind": kind, "what": what}))

    def faults(self) -> list[Row]:
        """All that befell the run, in order: round, time (Unix seconds), kind, what."""
        return _lines(self.faults_file)

    def rows(self) -> list[Row]:
        """All whole lines of the metrics file."""
        return _lines(self.metrics)

    def rewind(self, rounds: int) -> list[Row]:
        """Cut the metrics file back to the first ``rounds`` rounds; returns the rows cut off."""
        self._check_owned()
        rows = self.rows()
        if self.metrics.exists():
            write_atomic(self.metrics, "".join(json.dumps(r) + "\n" for r in rows if r["round"] <= rounds).encode())
        return [r for r in rows if r["round"] > rounds]

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        """Write a checkpoint and delete all but the newest ``keep``."""
        self._check_owned()
        save_checkpoint(self.checkpoints, checkpoint, keep)

    def save_model(self, layout: Layout, weights: Vector, frozen: Mapping[str, Values] | None = None) -> None:
        """Write the model's tensors by name, the trained ones in the vector's order: the digest of the file's tensors is that of the model."""
        self._check_owned()
        before, behind = around(frozen or {})
        write_tensors(self.model, {**before, **layout.views(weights), **behind}, {"format": "pt"})

    def load_model(self) -> dict[str, Values]:
        """The final model's tensors by name.

        Raises:
            FedrayError: the file is damaged, or is not the model that ``summary.json`` names.
        """
        tensors, metadata = read_tensors(self.model)
        named = (self.read_summary() or {}).get("model_sha256")
        if named not in (None, metadata[DIGEST]):
            raise FedrayError(
                f"{self.model}: holds another model (sha256 {metadata[DIGEST][:12]}...) than summary.json names ({str(named)[:12]}...); "
                "bring the run's own file back from a copy."
            )
        return tensors

    def read_summary(self) -> dict[str, Any] | None:
        """``summary.json``; None where there is none."""
        return dict(json.loads(self.summary.read_text())) if self.summary.exists() else None

    def save_profile(self, table: str, trace: str) -> None:
        """Write where the rounds' time went, and the spans for a viewer."""
        self._check_owned()
        write_atomic(self.profile, f"{table}\n".encode())
        write_atomic(self.trace, trace.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        self._check_owned()
        write_json(self.summary, summary)


def _lines(path: Path) -> list[Row]:
    """All whole lines of a file of JSON lines; a last one that a crash cut short is left out."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def choose_output(name: str, given: str | None, resume: bool) -> Output:
    """Where a run's files go.

    Without ``given``: ``runs/NAME``, or ``runs/NAME-2`` and so on where that exists already; with
    ``resume`` the newest of them.

    Returns:
        an absolute path, or the address of a prefix in an object store.

    Raises:
        ConfigError: ``given`` holds a run already and ``resume`` is not asked for, is no place for a run, or its store does not answer.
    """
    if given is not None:
        if is_remote(given):
            output: Output = canonical(given)
            try:
                taken = Remote(str(output)).get("config.yaml") is not None
            except StoreAway as error:
                raise ConfigError(f"--output: {error}; check the address, the credentials and the network.") from None
        else:
            output = Path(given.removeprefix("file://")).absolute()
            if output.exists() and not output.is_dir():
                raise ConfigError(f"--output {given}: is a file; choose a directory.")
            taken = (output / "config.yaml").exists()
        if taken and not resume:
            raise ConfigError(f"--output {given}: holds a run already; add --resume to continue it, or choose another directory.")
        return output
    base = Path("runs").absolute()
    number, last, root = 1, None, base / name
    while (root / "config.yaml").exists():
        number, last = number + 1, root
        root = base / f"{name}-{number}"
    return last if resume and last is not None else root
