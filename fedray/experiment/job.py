"""One run inside its driver actor."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from fedray import __version__, components
from fedray.driver import Driver
from fedray.errors import ClaimVoid, FedrayError
from fedray.experiment.events import Events
from fedray.experiment.preparation import Prepared
from fedray.experiment.wiring import Request, Wiring
from fedray.runfiles import RunFiles
from fedray.tracking.mlflow_tracker import STATUSES
from fedray.tracking.terminal import NoteHandler


class Experiment:
    """One run, inside the driver actor: :meth:`run` wires, trains and writes everything down."""

    def __init__(self, prepared: Prepared, data: Sequence[Any], request: Request) -> None:
        # ``data`` holds the reference of the federation in the object store, in a list so that Ray does not fetch it.
        self._prepared, self._data, self._request = prepared, list(data), request
        self._stop, self._events = threading.Event(), Events()
        self._files = RunFiles(request.root)

    def events(self) -> list[tuple[str, Any]]:
        """What happened since the last call."""
        return self._events.take()

    def stop(self) -> None:
        """End the run after a checkpoint; called from another thread."""
        self._stop.set()

    def run(self) -> dict[str, Any]:
        """Train; returns the summary (also in ``summary.json``).

        Raises:
            FedrayError: the run failed; what could be saved is saved and the MLflow run is marked FAILED.
        """
        components.provide(self._request.provided)
        logging.getLogger("fedray.tracking").addHandler(NoteHandler(self._events.on_note))
        began = time.monotonic()
        wiring = Wiring(self._prepared, self._data, self._request, self._files, self._events, self._stop)
        try:
            parts = wiring.build()
            driver = Driver(parts, self._stop)
            wiring.tick = driver.tick
            self._events.put("started", wiring.info() | {"setup_seconds": time.monotonic() - began})
            setup = time.monotonic() - began
            try:
                status = driver.run()
            except FedrayError as error:
                if isinstance(error, ClaimVoid):
                    wiring.problems.append(str(error))
                self._write(wiring, driver, "failed", setup, str(error))
                raise
            return self._write(wiring, driver, status, setup)
        finally:
            wiring.close()

    def _write(self, wiring: Wiring, driver: Driver, status: str, setup: float, error: str | None = None) -> dict[str, Any]:
        files, parts = self._files, wiring.parts
        files.save_model(parts.layout, driver.weights)
        result = driver.result()
        summary: dict[str, Any] = {
            "status": status,
            "error": error,
            "name": parts.config.name,
            "rounds": result["rounds"],
            "planned_rounds": parts.config.rounds,
            "model_sha256": result["model_sha256"],
            "final": result["final"],
            "best": result["best"],
            "privacy": wiring.privacy_summary(result["rounds"]),
            "performance": {"setup_seconds": setup, **result["performance"]},
            "faults": result["faults"],
            "mlflow": wiring.tracking_summary(),
            "fedray": __version__,
        }
        files.write_summary(summary)
        if wiring.tracker is not None:
            tags = {"fedray.stop_reason": status, "fedray.model_sha256": result["model_sha256"], **wiring.claim_tags(final=True)}
            whole = wiring.tracker.close(STATUSES[status], parts.config.tracking.close_timeout, model=wiring.model_for_tracking, tags=tags)
            summary["mlflow"]["complete"] = whole
            files.write_summary(summary)
            if not whole:
                self._events.on_note(
                    f"MLflow at {wiring.tracker.uri} was away for too long; nothing is lost: fedray sync {files.root} sends the rest."
                )
        return summary
