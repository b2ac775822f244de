"""The files of a run's output directory."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedray.checkpoint import Saved, save_checkpoint
from fedray.errors import ConfigError, FedrayError, Stopped, StoreError
from fedray.faults import Fault
from fedray.frozen import around
from fedray.parameters import Layout, Values, Vector
from fedray.participation import rewind_participants
from fedray.storage import append_line, read_json, read_lines, write_atomic, write_json
from fedray.stores.mirror import OWNER, SUMMARY, Mirror, working_directory
from fedray.stores.object_path import Location, ObjectPath, location
from fedray.stores.s3 import Bucket
from fedray.tensorfile import DIGEST, read_tensors, write_tensors
from fedray.tracking.journal import journal, latest, shortcomings
from fedray.tracking.starts import STARTS, Started, StartNote, last_start

Row = dict[str, Any]


#: What the aggregation rule remembers of single clients, a row each.
RULE_CLIENTS = "rule_clients.json"
#: Which of several models each client takes, as of its last evaluation, a row each.
CLUSTERS = "clusters.json"
#: The signed receipts of a run that signs, and the signed digests of all its files.
RECEIPTS, MANIFEST = "receipts.jsonl", "manifest.json"


@dataclass(frozen=True)
class RunFiles:
    """Paths in one run's output directory, and methods that read and write its files.

    Attributes:
        root: the directory; the working directory on this node if the output is in an object store.
        remote: the output's prefix in the object store, or None.
        driver: id of the driver that has claimed the files (see :meth:`claim`); it stops writing once another driver has claimed them.
    """

    root: Path
    remote: ObjectPath | None = None
    driver: str | None = None

    @classmethod
    def at(cls, output: Location) -> RunFiles:
        """Return the files of an output on this node.

        Raises:
            ConfigError: no working directory can be made.
        """
        if isinstance(output, Path):
            return cls(output)
        return cls(working_directory(output), output)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics, one JSON line per round."""
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """The run's privacy ledger, or its part of the silos' ledgers."""
        return self.root / "ledger"

    @property
    def books(self) -> Location:
        """Directory of the books with ``privacy.ledger: run``; it lies in the object store if the output does."""
        return self.ledger if self.remote is None else self.remote / "ledger"

    @property
    def registration(self) -> Path:
        """The registration of the data, where the config names one."""
        return self.root / "registration.json"

    @property
    def faults_file(self) -> Path:
        """The faults, one JSON line each."""
        return self.root / "faults.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def states(self) -> Path:
        """Directory of what clients keep between their turns."""
        return self.root / "states"

    @property
    def model(self) -> Path:
        """The final model's tensors by name."""
        return self.root / "model.safetensors"

    @property
    def summary(self) -> Path:
        """The summary, written at the run's end."""
        return self.root / SUMMARY

    @property
    def partition(self) -> Path:
        """The partition report and the model's description."""
        return self.root / "partition.json"

    @property
    def statement(self) -> Path:
        """The privacy statement."""
        return self.root / "privacy_statement.json"

    @property
    def receipts(self) -> Path:
        """What clients and driver have signed, a line each."""
        return self.root / RECEIPTS

    @property
    def manifest(self) -> Path:
        """The signed digests of all files, as of the run's end."""
        return self.root / MANIFEST

    @property
    def profile(self) -> Path:
        """Where the rounds' time went, as a table."""
        return self.root / "profile.txt"

    @property
    def trace(self) -> Path:
        """The spans of all processes, for a trace viewer."""
        return self.root / "profile.json"

    @property
    def taken(self) -> bool:
        """Whether a run has begun its rounds here."""
        return self.config.exists() or any(self.checkpoints.glob("*.safetensors"))

    def create(self) -> None:
        """Make the directory and check that it can be written.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"--output {self.root}: cannot be written ({error.strerror}); choose another directory.") from None

    def mirror(self, note: Callable[[str], None]) -> Mirror | None:
        """Return the mirror that copies the files to the object store during the run; None if the output is a directory."""
        return None if self.remote is None else Mirror(self.root, Bucket(self.remote, patience=0.0), note)

    def claim(self) -> RunFiles:
        """Return these files as owned by the calling driver.

        A driver that lost its connection and was replaced notices at its next write that another driver has claimed the files, and stops.
        """
        driver = secrets.token_hex(8)
        write_json(self.root / OWNER, {"driver": driver, "node": socket.gethostname()})
        return replace(self, driver=driver)

    def last_node(self) -> str:
        """Return the name of the host whose driver claimed these files last."""
        try:
            return str((read_json(self.root / OWNER) or {})["node"])
        except (FedrayError, KeyError):
            return "another node"

    def owned(self) -> bool:
        """Return whether no other driver has claimed the files since this one; also True if ``owner.json`` is damaged."""
        try:
            self._check_owned()
        except FedrayError as error:
            return not isinstance(error, Stopped)
        return True

    def _check_owned(self) -> None:
        if self.driver is not None and (read_json(self.root / OWNER) or {}).get("driver") != self.driver:
            raise Stopped(f"{self.remote or self.root}: another driver has taken this run over; this one stops and leaves the files alone.")

    def begin(self, known: Mapping[str, Any] | None = None) -> Started:
        """Count one more start of this run, and return it.

        Args:
            known: the start (``id``, ``starts``) that the checkpoint names. It replaces a ``run.json`` that is damaged or missing, because
                under a new id the run's limits in the privacy books would begin anew.

        Raises:
            FedrayError: ``run.json`` is damaged and no checkpoint exists, or it belongs to another run than the checkpoint.
        """
        path, saved = self.root / "run.json", None if known is None else Started(str(known["id"]), int(known["starts"]))
        try:
            found = last_start(path)
        except FedrayError:
            if saved is None:
                raise
            found = None
        if found is not None and saved is not None and found.id != saved.id:
            raise FedrayError(f"{path}: is of the run {found.id}, but the checkpoint is of {saved.id}; bring the run's own files back.")
        earlier = [start for start in (found, saved) if start is not None]
        id_ = earlier[0].id if earlier else f"{self.root.name}-{secrets.token_hex(4)}"
        now = Started(id_, 1 + max((start.starts for start in earlier), default=0))
        write_json(path, {**asdict(now), "sha256": now.digest})
        return now

    def mend(self, rounds: int, pending: int | None = None) -> list[str]:
        """Remove broken lines from the journal and the faults file, and repeated rounds from the journal.

        Args:
            rounds: number of rounds that the checkpoint has done.
            pending: a round whose row is not in the journal yet, or None.

        Returns:
            One sentence for each kind of defect.
        """
        self._check_owned()
        rows, faults = journal(self.root), read_lines(self.faults_file, _is_fault)
        due = replace(rows, whole=[r for r in rows.whole if r["round"] <= rounds])
        lacking = shortcomings(due, rounds - 1 if pending == rounds else rounds)
        if lacking:
            self._rewrite(self.metrics, latest(rows.whole))
        if faults.broken or faults.torn:
            lacking += shortcomings(replace(faults, whole=[]), 0)
            self._rewrite(self.faults_file, faults.whole)
        return lacking

    def append_row(self, row: Row) -> None:
        """Append one line to the metrics file; it is on disk when this returns.

        Raises:
            Stopped: another driver owns the files. All methods that write raise this.
            FedrayError: the disk is full or broken. All methods that write raise this.
        """
        self._check_owned()
        append_line(self.metrics, json.dumps(row))

    def append_start(self, note: StartNote) -> None:
        """Add a start of the run to ``starts.jsonl``."""
        self._check_owned()
        append_line(self.root / STARTS, json.dumps(asdict(note)))

    def append_fault(self, fault: Fault) -> None:
        """Add a fault of a known round to the faults file."""
        self._check_owned()
        where = {key: value for key, value in (("client", fault.client), ("node", fault.node)) if value is not None}
        line = {"round": fault.round, "time": time.time(), "kind": fault.kind, "what": fault.text, **where}
        append_line(self.faults_file, json.dumps(line))

    def append_receipts(self, lines: Sequence[str]) -> None:
        """Add signed lines to the receipts; they are on disk when this returns."""
        self._check_owned()
        append_line(self.receipts, "\n".join(lines))

    def replace_manifest(self, line: str | None) -> None:
        """Write the manifest; None: take away that of an earlier end."""
        self._check_owned()
        if line is None:
            self.manifest.unlink(missing_ok=True)
        else:
            write_atomic(self.manifest, f"{line}\n".encode())

    def faults(self) -> list[Row]:
        """Read all faults in order: round, time (Unix seconds), kind, what (a sentence), client and node where they are known.

        Raises:
            FedrayError: the file is damaged.
        """
        return read_lines(self.faults_file, _is_fault).all()

    def rows(self) -> list[Row]:
        """Read the rows of the metrics file, without a torn last line.

        Raises:
            FedrayError: the file is damaged.
        """
        return read_lines(self.metrics).all()

    def rewind(self, rounds: int) -> list[Row]:
        """Cut the metrics file and the participants' file back to the first ``rounds`` rounds; returns the rows cut off."""
        self._check_owned()
        rows = journal(self.root).whole
        if self.metrics.exists():
            self._rewrite(self.metrics, [r for r in rows if r["round"] <= rounds])
        rewind_participants(self.root, rounds)
        return [r for r in rows if r["round"] > rounds]

    def _rewrite(self, path: Path, lines: Sequence[Row]) -> None:
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def save_checkpoint(self, checkpoint: Saved, keep: int) -> None:
        """Write a checkpoint and delete all but the newest ``keep``."""
        self._check_owned()
        save_checkpoint(self.checkpoints, checkpoint, keep)

    def save_model(self, layout: Layout, weights: Vector, frozen: Mapping[str, Values] | None = None) -> None:
        """Write the model's tensors by name, in the order in which :func:`fedray.frozen.model_digest` reads them; where there are several
        models, with their number and a dot in front of each name.

        The summary of an earlier model is removed first, so that a crash cannot leave a summary that names another model than the file.
        """
        self._check_owned()
        self.summary.unlink(missing_ok=True)
        before, behind = around(frozen or {})
        models = [layout.views(part) for part in (weights[at : at + layout.size] for at in range(0, len(weights), layout.size))]
        many = {f"{k}.{name}": value for k, model in enumerate(models) for name, value in model.items()}
        write_tensors(self.model, {**before, **(models[0] if len(models) == 1 else many), **behind}, {"format": "pt"})

    def load_model(self) -> dict[str, Values]:
        """Read the final model's tensors by name.

        Raises:
            FedrayError: the file is damaged, or is not the model that ``summary.json`` names.
        """
        tensors, metadata = read_tensors(self.model)
        named = (self.read_summary() or {}).get("model_sha256")
        if named not in (None, metadata[DIGEST]):
            raise FedrayError(
                f"{self.model}: holds another model (sha256 {metadata[DIGEST][:12]}...) than summary.json names ({str(named)[:12]}...); "
                "bring the run's own files back from a copy, or continue the run with --resume, which writes them anew."
            )
        return tensors

    def read_summary(self) -> dict[str, Any] | None:
        """Read ``summary.json``; None if it does not exist.

        Raises:
            FedrayError: the file is damaged.
        """
        return read_json(self.summary)

    def save_profile(self, table: str, trace: str) -> None:
        """Write where the rounds' time went, and the spans for a viewer."""
        self._check_owned()
        write_atomic(self.profile, f"{table}\n".encode())
        write_atomic(self.trace, trace.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        self._check_owned()
        write_json(self.summary, summary)


def _is_fault(found: Row) -> bool:
    return {"round", "kind", "what"} <= set(found) and isinstance(found.get("time"), int | float)


def refuse_taken(output: str | Location) -> ConfigError:
    """Return the error of a new run whose output holds a run already."""
    return ConfigError(f"--output {output}: holds a run already; add --resume to continue it, or choose another directory.")


def choose_output(name: str, given: str | None, resume: bool) -> Location:
    """Choose where a run's files go.

    Args:
        name: the run's name.
        given: the user's choice; None: ``runs/NAME``, or ``runs/NAME-2`` and so on if that holds a run.
        resume: whether a run is to be continued; without ``given`` the newest of the run's directories.

    Returns:
        An absolute path, or a prefix in an object store.

    Raises:
        ConfigError: ``given`` holds a run and ``resume`` is false, is a file, or its store does not answer.
    """
    if given is not None:
        output = location(given, "--output")
        if isinstance(output, ObjectPath):
            try:
                taken = Bucket(output, patience=0.0).get("config.yaml") is not None
            except StoreError as error:
                raise ConfigError(f"--output: {error}") from None
        else:
            output = output.absolute()
            if output.exists() and not output.is_dir():
                raise ConfigError(f"--output {given}: is a file; choose a directory.")
            taken = RunFiles(output).taken
        if taken and not resume:
            raise refuse_taken(given)
        return output
    base = Path("runs").absolute()
    number, last, root = 1, None, base / name
    while RunFiles(root).taken:
        number, last = number + 1, root
        root = base / f"{name}-{number}"
    return last if resume and last is not None else root
