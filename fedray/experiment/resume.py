"""What a start of a run goes on from: the newest checkpoint that is whole, the journal without what is damaged, the run's own id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedray.checkpoint import Saved, load_latest
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.experiment.identity import another_run
from fedray.experiment.request import Request
from fedray.planning.preparation import Model
from fedray.runfiles import RunFiles


@dataclass(frozen=True)
class Beginning:
    """Where a start of a run begins.

    Attributes:
        job: the run's id and the number of this start, as the privacy books name it.
        checkpoint: None where the run begins at its first round.
        meta: the checkpoint's facts, and those of this start that the next checkpoints are to hold.
    """

    job: str
    checkpoint: Saved | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def round(self) -> int:
        """Rounds that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.round


def begin(
    files: RunFiles, request: Request, identity: str, model: Model | None, note: Callable[[str], None], config: Config | None = None
) -> Beginning:
    """Take a run up, or begin it. A damaged file is mended from the checkpoint, and what is lost with it is told and noted as a fault.

    Args:
        files: the run's.
        request: what the driver is asked.
        identity: of all that decides the model.
        model: where it is known already.
        note: told in sentences what is not as it was written.
        config: of this start, to say what differs where the run in ``files`` is another one.

    Raises:
        ConfigError: the run in ``files`` is another one.
        FedrayError: no checkpoint is whole, or a damaged file cannot be done without.
    """
    checkpoint = load_latest(files.checkpoints, note) if request.resume else None
    if checkpoint is not None and checkpoint.meta.get("identity") != identity:
        raise another_run(files, config, request.output)
    check_model(checkpoint, model, files.checkpoints)
    found = {} if checkpoint is None else checkpoint.meta
    result = Beginning("", checkpoint)
    for text in files.mend(result.round, (found.get("pending") or {}).get("round")):
        files.append_fault(result.round + 1, "files", text)
        note(text)
    started = files.begin(found.get("run"))
    return Beginning(f"{started.id}/{started.starts}", checkpoint, {**found, "identity": identity, "run": asdict(started)})


def check_model(found: Saved | None, model: Model | None, where: Path | str) -> None:
    """See that a checkpoint is of this model, where there is one and the model is known.

    Raises:
        ConfigError: it is of another.
    """
    if found is None or model is None:
        return
    if found.weights.shape != (model.facts.layout.size,):
        raise ConfigError(
            f"--resume: the checkpoint in {where} is of another model; bring back the config and the data that it was written with."
        )
    if found.meta.get("frozen_sha256", "") != model.facts.frozen:
        raise ConfigError(
            f"--resume: the model's frozen parameters are others than those of the checkpoint in {where}; "
            "bring back what the model's factory read."
        )
