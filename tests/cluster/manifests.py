"""Kubernetes manifests as plain data: rendered, validated against schemas, and seen as the pods that they make.

What KubeRay adds to a pod (labels, the autoscaler's container, the one in which a worker waits for the head, the token) is read in
`ray-operator/controllers/ray/common/pod.go` of ray-project/kuberay v1.7.0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from paths import ROOT

Document = dict[str, Any]

K8S = ROOT / "k8s"
KUBERNETES = "1.32"

#: The name of the container in which a worker waits for the head.
WAITS = "wait-gcs-ready"


@cache
def render(directory: str) -> str:
    """What ``kubectl apply -k k8s/DIRECTORY`` would send, as YAML; skips where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here to render the overlays with")
    done = subprocess.run([kubectl, "kustomize", str(K8S / directory)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"k8s/{directory} does not render: {done.stderr}"
    return done.stdout


def documents(directory: str) -> list[Document]:
    """The objects of a kustomization, freshly parsed."""
    return list(yaml.load_all(render(directory), Loader=yaml.CSafeLoader))


def overlay_of(job: str) -> str:
    """The overlay that a job is made for, and that is applied before it: ``overlays/NAME``."""
    (resource,) = yaml.safe_load((K8S / job / "kustomization.yaml").read_text())["resources"]
    return os.path.relpath((K8S / job / resource).resolve(), K8S)


def applied(directory: str) -> list[Document]:
    """What is in the cluster once a kustomization is applied: for a job, its overlay's objects, too."""
    return documents(directory) + (documents(overlay_of(directory)) if directory.startswith("jobs/") else [])


def title(document: Document) -> str:
    """``Kind/name``."""
    return f"{document.get('kind', '?')}/{document.get('metadata', {}).get('name', '?')}"


@dataclass(frozen=True)
class Pod:
    """A pod that a document makes: whose it is, the labels it will carry, its spec, and whether it runs until it is done."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]
    finite: bool = False

    @property
    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each container, first the preparing ones, with its place in words."""
        for container in [*self.spec.get("initContainers", []), *self.spec["containers"]]:
            yield f"{self.owner}, container {container['name']}", container


def pods(docs: list[Document]) -> list[Pod]:
    """All pods that the documents make, as the cluster will see them."""
    found = []
    for doc in docs:
        spec = doc.get("spec", {})
        if doc["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = spec["template"]
            found.append(Pod(title(doc), template["metadata"].get("labels", {}), template["spec"], doc["kind"] == "Job"))
        elif doc["kind"] == "RayCluster":
            found += _ray_pods(title(doc), doc["metadata"]["name"], spec)
        elif doc["kind"] == "RayJob":
            found += _ray_pods(title(doc), f"{doc['metadata']['name']}-abcde", spec.get("rayClusterSpec", {}))
            if "submitterPodTemplate" in spec:
                template = spec["submitterPodTemplate"]
                found.append(Pod(f"{title(doc)} submitter", template["metadata"].get("labels", {}), template["spec"], True))
    return found


def _ray_pods(owner: str, cluster: str, spec: dict[str, Any]) -> Iterator[Pod]:
    head = spec["headGroupSpec"]
    groups = [("head", "headgroup", head), *(("worker", g["groupName"], g) for g in spec.get("workerGroupSpecs", []))]
    for kind, name, group in groups:
        template = group["template"]
        labels = {
            "app.kubernetes.io/name": "kuberay",
            **template.get("metadata", {}).get("labels", {}),
            **group.get("labels", {}),
            "ray.io/is-ray-node": "yes",
            "ray.io/cluster": cluster,
            "ray.io/node-type": kind,
            "ray.io/group": name,
        }
        pod = template["spec"]
        if kind == "head" and spec.get("enableInTreeAutoscaling"):
            # KubeRay starts it from the head's image unless told otherwise, and gives it no probes.
            added = {"name": "autoscaler", "image": pod["containers"][0]["image"], **spec.get("autoscalerOptions", {})}
            pod = {**pod, "containers": [*pod["containers"], added]}
        elif kind == "worker":
            pod = {**pod, "initContainers": [*pod.get("initContainers", []), _waiting(cluster, pod["containers"][0])]}
        if spec.get("authOptions", {}).get("mode") == "token":
            pod = _with_token(pod, spec["authOptions"]["secretName"])
        yield Pod(f"{owner} {name}", labels, pod)


#: KubeRay's words, but for what it says while it waits.
_WAIT = """
SECONDS=0
while true; do
    if (( SECONDS <= 120 )); then
        if ray health-check --address {address} > /dev/null 2>&1; then
            break
        fi
    else
        if ray health-check --address {address}; then
            break
        fi
    fi
    sleep 5
done
"""


def _waiting(cluster: str, ray: dict[str, Any]) -> dict[str, Any]:
    """The container in which a worker waits for the head, as ``DefaultWorkerPodTemplate`` makes it.

    Of the Ray container it has image, security context, ``env`` and ``volumeMounts``; ``envFrom`` is not copied.
    """
    made = {
        "name": WAITS,
        "command": ["/bin/bash", "-c", "--"],
        "args": [_WAIT.format(address=f"{cluster}-head-svc.fedray.svc.cluster.local:6379")],
        "resources": {"limits": {"cpu": "200m", "memory": "256Mi"}, "requests": {"cpu": "200m", "memory": "256Mi"}},
    }
    return made | {key: ray[key] for key in ("image", "imagePullPolicy", "securityContext", "env", "volumeMounts") if key in ray}


def _with_token(pod: dict[str, Any], secret: str) -> dict[str, Any]:
    """The pod with the token where KubeRay puts it: into the Ray container, the waiting one and the autoscaler."""
    token = [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "auth_token"}}},
    ]

    def given(container: dict[str, Any], here: bool) -> dict[str, Any]:
        return {**container, "env": [*container.get("env", []), *token]} if here else container

    return {
        **pod,
        "initContainers": [given(c, c["name"] == WAITS) for c in pod.get("initContainers", [])],
        "containers": [given(c, index == 0 or c["name"] == "autoscaler") for index, c in enumerate(pod["containers"])],
    }


def ray_clusters(docs: list[Document]) -> list[Document]:
    """RayCluster objects, those of jobs as KubeRay would make them."""
    made = []
    for doc in docs:
        if doc["kind"] == "RayCluster":
            made.append(doc)
        elif doc["kind"] == "RayJob":
            metadata = {**doc["metadata"], "name": f"{doc['metadata']['name']}-abcde"}
            made.append({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": doc["spec"]["rayClusterSpec"]})
    return made


def schema_errors(docs: list[Document]) -> list[str]:
    """What the API server, or KubeRay's definitions, would refuse or silently drop: unknown keys are errors."""
    return [error for doc in docs for error in _schema_errors(json.dumps(doc, sort_keys=True))]


@cache  # overlays share most of their objects
def _schema_errors(text: str) -> list[str]:
    doc = json.loads(text)
    if doc["apiVersion"].startswith("ray.io/"):
        validator = jsonschema.Draft202012Validator(_ray_schema(doc["kind"]))
        return [f"{title(doc)}: {e.json_path}: {e.message[:300]}" for e in validator.iter_errors(doc)]
    try:
        kubernetes_validate.validate(doc, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{title(doc)}: {'.'.join(map(str, error.path))}: {error.message[:300]}"]
    return []


@cache
def _ray_schema(kind: str) -> dict[str, Any]:
    folder = Path(os.environ.get("FEDRAY_CRDS", ROOT.parent / "shared" / "crds"))
    path = folder / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"no {path}; set FEDRAY_CRDS to a folder with KubeRay's custom resource definitions")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # which the API server checks itself
    return schema


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural OpenAPI schema as a JSON Schema in which keys that it does not name are errors."""
    made: dict[str, Any] = {
        k: schema[k] for k in ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength") if k in schema
    }
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    for key in ("items", "additionalProperties"):
        if key in schema:
            made[key] = _strict(schema[key]) if isinstance(schema[key], dict) else schema[key]
    if "properties" in schema:
        made["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        defaulted = {name for name, part in schema["properties"].items() if "default" in part}
        made["required"] = [name for name in schema.get("required", []) if name not in defaulted]
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    return made
