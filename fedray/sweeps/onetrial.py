"""One trial of a sweep: a run in a process of its own, and the file that says how it ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.config import Config
from fedray.errors import FedrayError, first_line
from fedray.experiment import launch
from fedray.experiment.occupied import PATIENCE, check_free
from fedray.experiment.request import PartOf
from fedray.runfiles import RunFiles
from fedray.storage import read_json, write_json
from fedray.sweeps.space import Point

#: In a trial's directory: how it ended. A directory without it is that of a trial that is not done.
RESULT = "trial.json"


@dataclass(frozen=True)
class Trial:
    """What a trial's process is told.

    Attributes:
        number: from 1.
        point: what it tries.
        config: its config.
        output: its run's directory.
        metric: what trials are compared by.
        part_of: the sweep.
        folder: the working directory of the command, from which relative paths of the config lead.
        before: directories of trials whose processes must have ended before it begins, because they hold its ledgers.
    """

    number: int
    point: Point
    config: Config
    output: Path
    metric: str
    part_of: PartOf
    folder: str
    before: Sequence[Path] = ()

    @property
    def result(self) -> dict[str, Any] | None:
        """How the trial ended; None if it has not."""
        return read_json(self.output / RESULT)

    def write(self, status: str, score: float | None, **more: Any) -> dict[str, Any]:
        """Write how the trial ended."""
        found = {"trial": self.number, "point": self.point, "status": status, "score": score, "directory": self.output.name, **more}
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(self.output / RESULT, found)
        return found


def run_trial(trial: Trial, report: Callable[[Mapping[str, Any]], None] | None = None) -> None:
    """Train, or continue a trial that was interrupted, and write how it ended; an error of the run is such an end.

    Args:
        trial: what to run.
        report: receives each round's row, as soon as it is known.
    """
    os.chdir(trial.folder)  # Ray Tune has gone to a directory of its own
    sys.path.insert(0, trial.folder)  # python: parts beside the user's config
    began = time.monotonic()

    def listen(kind: str, value: Any) -> None:
        if kind == "row" and report is not None:
            report(value)

    try:
        for other in trial.before:
            check_free(RunFiles(other), PATIENCE)
        resume = RunFiles(trial.output).taken
        result = launch.run(trial.config, output=trial.output, resume=resume, callbacks=[listen], part_of=trial.part_of)
    except Exception as error:
        why = str(error) if isinstance(error, FedrayError) else f"unexpected {type(error).__name__}: {first_line(error)}"
        trial.write("failed", None, error=why, seconds=time.monotonic() - began)
        return
    if result.status == "interrupted":
        return
    summary = result.summary
    trial.write(
        result.status,
        summary["final"].get(trial.metric),
        final=summary["final"],
        rounds=summary["rounds"],
        privacy={k: summary["privacy"].get(k) for k in ("unit", "delta", "claim", "epsilon", "adjacency")},
        mlflow=summary["mlflow"].get("run_id"),
        seconds=time.monotonic() - began,
    )
