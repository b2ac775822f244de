"""Whether every container that talks to the head's GCS can: with TLS where the head asks for it, and with the files that it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from manifests import WAITS, Document, pods, title

_FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


def environment(docs: list[Document], container: dict[str, Any]) -> dict[str, str]:
    """The variables of a container whose values stand in the manifests: ``envFrom``, over it ``env``."""
    data = {title(doc): doc.get("data") or {} for doc in docs if doc["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= data.get(f"ConfigMap/{source['configMapRef']['name']}", {})
    return found | {variable["name"]: variable["value"] for variable in container.get("env", []) if "value" in variable}


def gcs_errors(docs: list[Document]) -> list[str]:
    """Containers of Ray's pods that would not reach the head, or could not start for want of a file or a directory."""
    made = [pod for pod in pods(docs) if pod.labels.get("ray.io/is-ray-node") == "yes"]
    heads = {pod.labels["ray.io/cluster"]: pod.spec["containers"][0] for pod in made if pod.labels["ray.io/node-type"] == "head"}
    wanted = {cluster: environment(docs, head).get("RAY_USE_TLS", "0") for cluster, head in heads.items()}
    found = []
    for pod in made:
        speaking = [c for c in pod.spec.get("initContainers", []) if c["name"] == WAITS] + pod.spec["containers"]
        for container in speaking:
            tls = wanted[pod.labels["ray.io/cluster"]]
            found += [f"{pod.owner}, container {container['name']}: {why}" for why in _faults(environment(docs, container), container, tls)]
    return found


def _faults(variables: dict[str, str], container: dict[str, Any], tls: str) -> Iterator[str]:
    mounts = {PurePosixPath(mount["mountPath"]): mount for mount in container.get("volumeMounts", [])}
    if variables.get("RAY_USE_TLS", "0") != tls:
        yield f"cannot talk to the head: RAY_USE_TLS is {variables.get('RAY_USE_TLS', 'unset')} here and {tls} there."
    for name in _FILES if tls == "1" else ():
        path = PurePosixPath(variables.get(name, "/nowhere"))
        if not any(path.is_relative_to(mount) for mount in mounts):
            yield f"{name} ({variables.get(name, 'unset')}) lies in no volume of this container."
    home = PurePosixPath(variables.get("HOME", "/home/ray"))
    if not any(home.is_relative_to(path) and not mount.get("readOnly") for path, mount in mounts.items()):
        yield f"HOME ({home}) cannot be written."
