"""Finds a version of a registered model: its number, its tags, and the file with its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError
from fedray.tracking.mlflow_store import UPLOAD_PATIENCE, connect, load_mlflow, masked, patience, reason

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9]\d*))")
_FORM = "models:/NAME@ALIAS or models:/NAME/VERSION"


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name, number: of the version.
        source: where its files are, as MLflow's client reads it.
        tags: of the version; see :class:`fedray.tracking.modelfolder.SavedModel`.
        uri: of the store.
    """

    name: str
    number: str
    source: str
    tags: Mapping[str, str]
    uri: str

    @property
    def reference(self) -> str:
        """``models:/NAME/VERSION``, which always means the same version."""
        return f"models:/{self.name}/{self.number}"

    def graph(self) -> Path:
        """The version's saved graph on this machine, fetched if it lies elsewhere. It is read without unpickling code.

        Raises:
            ConfigError: it cannot be fetched, or the version holds no such graph.
        """
        mlflow = load_mlflow()
        try:
            with patience(UPLOAD_PATIENCE):
                folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=self.source, tracking_uri=self.uri))
        except Exception as error:
            raise ConfigError(
                f"model.weights: the files of {self.reference} cannot be fetched ({reason(error)}); look at {masked(self.source)}."
            ) from None
        graphs = sorted(folder.glob("data/*.pt2"))
        if not graphs:
            raise ConfigError(
                f"model.weights: {self.reference} holds no data/*.pt2, so fedray has not saved it; export its state_dict as a safetensors file and "
                "name that."
            )
        return graphs[0]


def is_reference(place: str) -> bool:
    """Whether a text means a model of the registry."""
    return place.startswith("models:")


def find_version(place: str, uri: str) -> Version:
    """Look a version up.

    Args:
        place: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        uri: of the store.

    Raises:
        ConfigError: the text is of another form, or there is no such version.
        TrackingError: the store cannot be used.
    """
    read = _REFERENCE.fullmatch(place)
    if read is None:
        raise ConfigError(f"model.weights: '{place}' should be {_FORM}.")

    def look(client: Any) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            if read["alias"] is not None:
                return client.get_model_version_by_alias(read["name"], read["alias"])
            return client.get_model_version(read["name"], read["version"])
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ConfigError(
                f"model.weights: there is no {place} in the registry at {masked(uri)}; name one that is there, or its store in tracking.uri."
            ) from None

    client, found = connect(uri, look)
    source = found.source
    if str(source).startswith("models:/"):  # a logged model, which the client reads in the store that it was opened with
        with patience(UPLOAD_PATIENCE):
            source = client.get_model_version_download_uri(found.name, found.version)
    return Version(str(found.name), str(found.version), str(source), dict(found.tags), uri)
