"""The versions of registered models that an MLflow store holds, with what their tags say of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedray.tracking.mlflow_store import UPLOAD_PATIENCE, connect, patience

_PAGE = 200


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        store: tracking URI of the store.
        name, number: of the version.
        run_id: of the MLflow run that made it; empty if that is not known.
        sha256: of the model, as fedray has tagged it; empty if it has not.
        aliases: of the version.
    """

    store: str
    name: str
    number: str
    run_id: str
    sha256: str
    aliases: tuple[str, ...]


def registered_models(store: str) -> list[ModelVersion]:
    """All versions that a store holds, in the order of names and numbers.

    Raises:
        TrackingError: the store cannot be used.
    """

    def aliases(client: Any) -> dict[str, dict[str, str]]:
        with patience(UPLOAD_PATIENCE):
            return {model.name: dict(model.aliases) for model in _pages(client.search_registered_models)}

    client, known = connect(store, aliases)
    with patience(UPLOAD_PATIENCE):
        found = list(_pages(client.search_model_versions))
    versions = [
        ModelVersion(
            store,
            str(v.name),
            str(v.version),
            str(v.run_id or ""),
            str(v.tags.get("model_sha256", "")),
            tuple(sorted(alias for alias, number in known.get(v.name, {}).items() if str(number) == str(v.version))),
        )
        for v in found
    ]
    return sorted(versions, key=lambda v: (v.name, int(v.number)))


def _pages(search: Any) -> Iterator[Any]:
    """All results of a search of the client, page by page."""
    token: str | None = None
    while True:
        page = search(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
