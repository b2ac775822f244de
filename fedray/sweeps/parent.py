"""The sweep's own run in MLflow, under which its trials stand."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fedray import __version__
from fedray.config import Config
from fedray.configfile import load_config
from fedray.experiment.origin import Origin
from fedray.experiment.served import served_model
from fedray.runfiles import RunFiles
from fedray.tracking.journal import State
from fedray.tracking.mlflow_store import connect, experiment_name, masked, resolve_uri
from fedray.tracking.mlflow_tracker import flat_params, sync
from fedray.tracking.opening import experiment_id

#: Tags of MLflow and of fedray that make a run a part of another one.
PARENT = "mlflow.parentRunId"
KIND = "fedray.kind"


class ParentRun:
    """The MLflow run of a sweep; made by :meth:`open`."""

    def __init__(self, uri: str, run_id: str, experiment: str, config: Config) -> None:
        self._uri, self.run_id, self._experiment, self._config = uri, run_id, experiment, config

    @classmethod
    def open(cls, config: Config, where: Path, known: str | None, origin: Origin) -> ParentRun | None:
        """Make the run, or open the one of an earlier start again; None without MLflow.

        Raises:
            TrackingError: the store cannot be used.
        """
        if not config.tracking.enabled:
            return None
        uri = resolve_uri(config.tracking, where.parent)
        name = experiment_name(config)
        tags = {KIND: "sweep", "fedray.directory": str(where), "fedray.version": __version__, **origin.tags()}

        def make(client: Any) -> tuple[str, str]:
            experiment = experiment_id(client, uri, name, config.evaluation.headline, tags)
            if known is not None:
                with suppress(Exception):  # deleted in the meantime: a new one takes its place
                    client.update_run(known, status="RUNNING")
                    return known, experiment
            made = client.create_run(experiment, start_time=int(time.time() * 1000), tags=tags, run_name=where.name)
            return str(made.info.run_id), experiment

        _, (run_id, experiment) = connect(uri, make, wait=config.tracking.open_timeout)
        return cls(uri, run_id, experiment, config)

    def tags(self) -> dict[str, str]:
        """The tags of a trial's run."""
        return {PARENT: self.run_id, KIND: "trial"}

    def close(self, status: str, description: str, metrics: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path]) -> None:
        """Describe the outcome, attach files, and end the run."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)

        def end(client: Any) -> None:
            written = {"mlflow.note.content": description, **tags}
            client.log_batch(
                self.run_id,
                metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
                tags=[RunTag(name, masked(value)[:5000]) for name, value in written.items()],
            )
            for file in files:
                client.log_artifact(self.run_id, str(file))
            client.set_terminated(self.run_id, status)

        connect(self._uri, end, wait=self._config.tracking.close_timeout)

    def adopt(self, where: Path, config: Config) -> None:
        """Send the run that a sealed sweep has released in ``where``, and register its model: this is the sweep's own MLflow run."""
        name = experiment_name(config)
        state = State(masked(self._uri), name, self._experiment, self.run_id, where.name, self.registered_name, _parameters(config))
        state.save(where)
        send_run(where, config)

    def register(self, run: Path) -> None:
        """Register the model of a trial, which was logged only."""
        state = State.load(run)
        if state is not None:
            state.register_as = self.registered_name
            state.save(run)
            send_run(run, load_config(RunFiles(run).config))

    @property
    def registered_name(self) -> str:
        """The name under which the best model is registered."""
        return self._config.tracking.register_as or self._config.name


def send_run(run: Path, config: Config) -> None:
    """Bring MLflow up to date with a run's files, with its model.

    Raises:
        TrackingError: the store cannot be used.
    """
    sync(run, model=partial(served_model, RunFiles(run), config))


def _parameters(config: Config) -> dict[str, str]:
    found = flat_params(json.loads(config.model_dump_json(exclude={"ray", "tracking", "experiment", "sweep"})))
    found.pop("privacy.insecure_seed", None)
    return found
