"""Begins or resumes a run: finds the newest undamaged checkpoint, repairs the journal, counts the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedray.checkpoint import Saved, load_latest
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.experiment.identity import another_run, identity, same_run
from fedray.experiment.request import Request
from fedray.faults import Fault
from fedray.planning.global_model import Model
from fedray.runfiles import RunFiles


@dataclass(frozen=True)
class Beginning:
    """The state from which a start of a run begins.

    Attributes:
        job: the run's id and the number of this start, ``ID/NUMBER``, as the privacy books name it.
        checkpoint: None if the run begins at its first round.
        meta: the checkpoint's facts with those of this start, for the next checkpoints; JSON data.
    """

    job: str
    checkpoint: Saved | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def round(self) -> int:
        """Number of rounds that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.round


def begin(files: RunFiles, request: Request, config: Config, digest: str, model: Model | None, note: Callable[[str], None]) -> Beginning:
    """Begin or resume a run. A damaged file is repaired from the checkpoint; what is lost is reported and recorded as a fault.

    Args:
        files: the run's files.
        request: what the command asked for.
        config: of this start.
        digest: of the data.
        model: the global model, if it is known already.
        note: called with one sentence for each thing that is not as it was written.

    Raises:
        ConfigError: the run in ``files`` is another run.
        FedrayError: all checkpoints are damaged, or a damaged file is needed.
    """
    checkpoint = load_latest(files.checkpoints, note) if request.resume else None
    if checkpoint is not None and not same_run(files, checkpoint.meta.get("identity"), config, digest):
        raise another_run(files, config, request.output)
    check_model(checkpoint, model, files.checkpoints)
    found = {} if checkpoint is None else checkpoint.meta
    result = Beginning("", checkpoint)
    for text in files.mend(result.round, (found.get("pending") or {}).get("round")):
        files.append_fault(Fault("files", text, result.round + 1))
        note(text)
    started = files.begin(found.get("run"))
    return Beginning(f"{started.id}/{started.starts}", checkpoint, {**found, "identity": identity(config, digest), "run": asdict(started)})


def check_model(found: Saved | None, model: Model | None, where: Path | str) -> None:
    """Check that a checkpoint is of this model; does nothing if either is None.

    Raises:
        ConfigError: the checkpoint is of another model.
    """
    if found is None or model is None:
        return
    if found.weights.shape != (model.exchange.model_size,) or found.globals.shape != (model.exchange.down_size,):
        raise ConfigError(
            f"--resume: the checkpoint in {where} is of another model; bring back the config and the data that it was written with."
        )
    if found.meta.get("frozen_sha256", "") != model.facts.frozen:
        raise ConfigError(
            f"--resume: the model's frozen parameters are others than those of the checkpoint in {where}; "
            "bring back what the model's factory read."
        )
    if model.initial is not None and found.meta.get("initial_sha256", model.initial_sha256) != model.initial_sha256:
        raise ConfigError(
            f"--resume: model.weights: {model.initial.where} is another model (sha256 {model.initial_sha256[:12]}...) than the run began with "
            f"({found.meta['initial_sha256'][:12]}...); bring back the weights that it was started with."
        )
