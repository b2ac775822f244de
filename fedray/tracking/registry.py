"""The final model in MLflow: logged with a signature, linked to the run's metrics, registered once.

It is saved as a traced graph (pt2), which loads without running foreign code, and built from an
example of zeros: no record of any client goes into it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedray.errors import first_line
from fedray.tracking.journal import Point, State
from fedray.tracking.store import UPLOAD_PATIENCE, load_mlflow, log, patience

if TYPE_CHECKING:
    from torch import nn

#: Builds the final model with its weights loaded, and an example batch [n, ...] of which only shape
#: and dtype are used.
ModelBuilder = Callable[[], "tuple[nn.Module, npt.NDArray[Any]]"]

#: Alias of the newest version (MLflow keeps ``latest`` to itself).
ALIAS = "newest"
_NAME = "model"


@dataclass(frozen=True)
class SavedModel:
    """A model saved in MLflow's format.

    Attributes:
        folder: holds it; a temporary folder.
        fields: the ``Model`` that the folder's MLmodel file was written from.
        params: settings shown with the model.
        tags: epsilon, delta, unit, accountant, claim, ledger_sha256, model_sha256.
        metrics: the final metrics, linked to the model.
        sha256: identifies the weights.
        description: of the registered version, Markdown.
    """

    folder: Path
    fields: Any
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Sequence[Point]
    sha256: str
    description: str = ""


def save_model(
    builder: ModelBuilder,
    run_id: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Sequence[Point],
    sha256: str,
    description: str = "",
) -> SavedModel | None:
    """Build and save the model for :func:`log_final_model`.

    Returns:
        None where the model cannot be traced by ``torch.export``; the log says why.
    """
    load_mlflow()
    import mlflow.pytorch
    import torch
    from mlflow.models import Model, infer_signature

    # Two records: a batch of one would be traced as a constant.
    folder = Path(tempfile.mkdtemp(prefix="fedray-model-"))
    try:
        model, example = builder()
        zeros = np.zeros((2, *example.shape[1:]), dtype=example.dtype)
        model = model.to("cpu").eval()
        with torch.no_grad():
            outputs = model(torch.from_numpy(zeros)).numpy()
        fields = Model(artifact_path=_NAME, run_id=run_id)
        mlflow.pytorch.save_model(
            model,
            str(folder / _NAME),
            mlflow_model=fields,
            signature=infer_signature(zeros, outputs),
            input_example=zeros,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
        )
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        log.warning(
            "the model is not in MLflow, because it cannot be exported (%s); model.safetensors has its weights.", first_line(error)[:200]
        )
        return None
    return SavedModel(folder, fields, dict(params), dict(tags), list(metrics), sha256, description)


def log_final_model(client: Any, state: State, saved: SavedModel, keep: Callable[[], None]) -> None:
    """Log the model and register it, each once for the same weights, however often this is called.

    Args:
        client: an ``MlflowClient``.
        state: ``state.model`` says what was done already.
        saved: from :func:`save_model`.
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
    from mlflow.entities import LoggedModelOutput, Metric

    with patience(UPLOAD_PATIENCE):
        logged = client.create_logged_model(
            state.experiment_id,
            name=_NAME,
            source_run_id=state.run_id,
            tags=dict(saved.tags) | {"model_sha256": saved.sha256},
            params=dict(saved.params),
            model_type="fedray",
        )
        saved.fields.model_id = saved.fields.model_uuid = logged.model_id
        saved.fields.artifact_path = logged.artifact_location
        saved.fields.save(str(saved.folder / _NAME / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(saved.folder / _NAME))
        step = max((m.round for m in saved.metrics), default=0)
        client.log_outputs(state.run_id, [LoggedModelOutput(logged.model_id, step)])
        linked = [Metric(m.key, m.value, m.time, m.round, model_id=logged.model_id) for m in saved.metrics]
        client.log_batch(state.run_id, metrics=linked)
        client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _register(client: Any, state: State, saved: SavedModel) -> str:
    from mlflow.exceptions import MlflowException

    name, model_id = state.register_as, state.model["id"]
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
        client.set_registered_model_alias(name, ALIAS, made.version)
    return str(made.version)


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
