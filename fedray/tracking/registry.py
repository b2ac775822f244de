"""Logs the final model to MLflow with its signature, links it to the run's metrics, and registers it once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from fedray.tracking.journal import Point, State
from fedray.tracking.mlflow_store import UPLOAD_PATIENCE, patience
from fedray.tracking.modelfolder import NAME, SavedModel

#: Alias of the newest version whose run did all that was planned (MLflow reserves ``latest``). A void claim does not replace a valid one.
ALIAS = "newest"


def log_final_model(client: Any, state: State, saved: SavedModel, keep: Callable[[], None]) -> None:
    """Log the model and register it. Repeated calls with the same weights do each only once.

    Args:
        client: an ``MlflowClient``.
        state: the run's state; ``state.model`` records what was done.
        saved: from :func:`fedray.tracking.modelfolder.save_model`.
        keep: saves ``state``; called after each step that must not be repeated.
    """
    if state.model.get("sha256") != saved.sha256:
        state.model = {"sha256": saved.sha256}
    if "id" not in state.model:
        state.model["id"] = _find_logged(client, state, saved.sha256) or _log(client, state, saved)
        keep()
    if state.register_as and "version" not in state.model:
        version = _find_version(client, state, saved.sha256) or _register(client, state, saved)
        state.model["version"] = version
        keep()


def _log(client: Any, state: State, saved: SavedModel) -> str:
    from mlflow.entities import LoggedModelOutput

    with patience(UPLOAD_PATIENCE):
        logged = client.create_logged_model(
            state.experiment_id,
            name=re.sub(r"[/:.%\"']", "-", state.run_name) or NAME,
            source_run_id=state.run_id,
            tags=dict(saved.tags) | {"model_sha256": saved.sha256},
            params=dict(saved.params),
            model_type="fedray",
        )
        saved.fields.model_id = saved.fields.model_uuid = logged.model_id
        saved.fields.artifact_path = logged.artifact_location
        saved.fields.save(str(saved.folder / NAME / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(saved.folder / NAME))
        step = max((m.round for m in saved.metrics), default=0)
        client.log_outputs(state.run_id, [LoggedModelOutput(logged.model_id, step)])
        client.log_batch(state.run_id, metrics=[_linked(m, str(logged.model_id), saved.measured_on) for m in saved.metrics])
        client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _register(client: Any, state: State, saved: SavedModel) -> str:
    from mlflow.exceptions import MlflowException

    name, model_id = str(state.register_as), state.model["id"]
    with patience(UPLOAD_PATIENCE):
        try:
            client.create_registered_model(name, description="Trained by fedray; each version's tags say what it cost in privacy.")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise
        tags = dict(saved.tags) | {"model_sha256": saved.sha256}
        # A database store opened in this process would look models:/ID up in MLflow's global store, not in its own.
        served = state.tracking_uri.startswith(("http://", "https://"))
        source = f"models:/{model_id}" if served else client.get_logged_model(model_id).artifact_location
        made = client.create_model_version(name, source, run_id=state.run_id, tags=tags, model_id=model_id, description=saved.description)
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": made.version}])})
        if saved.whole and not (saved.tags.get("claim", "").startswith("void") and _claim_of_newest(client, name) == "valid"):
            client.set_registered_model_alias(name, ALIAS, made.version)
    return str(made.version)


def _linked(point: Point, model_id: str, measured_on: tuple[str, str] | None) -> Any:
    """A value as the model's own, and of the data set that it was measured on."""
    from mlflow.entities import Metric

    name, digest = measured_on if measured_on is not None and point.key.startswith("eval/") else (None, None)
    return Metric(point.key, point.value, point.time, point.round, model_id=model_id, dataset_name=name, dataset_digest=digest)


def _claim_of_newest(client: Any, name: str) -> str | None:
    """The claim of the version that has the alias; None if no version has it."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, ALIAS).tags.get("claim"))
    except MlflowException:
        return None


def _find_logged(client: Any, state: State, sha256: str) -> str | None:
    with patience(UPLOAD_PATIENCE):
        found = client.search_logged_models([state.experiment_id], filter_string=f"source_run_id = '{state.run_id}'", max_results=50)
    ready = [m for m in found if m.tags.get("model_sha256") == sha256 and str(m.status) in ("READY", "LoggedModelStatus.READY")]
    return str(ready[0].model_id) if ready else None


def _find_version(client: Any, state: State, sha256: str) -> str | None:
    with patience(UPLOAD_PATIENCE):
        found = client.search_model_versions(f"run_id = '{state.run_id}'")
    same = [v for v in found if v.name == state.register_as and v.tags.get("model_sha256") == sha256]
    return str(max(int(v.version) for v in same)) if same else None
