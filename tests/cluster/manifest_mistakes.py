"""Mistakes to plant in manifests, each of which a check must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manifests import Document, title


@dataclass(frozen=True)
class Mistake:
    """A change to the documents of a kustomization, and words of the sentence that must then appear."""

    name: str
    directory: str
    plant: Callable[[list[Document]], None]
    words: str


def _get(docs: list[Document], name: str) -> Document:
    return next(doc for doc in docs if title(doc) == name)


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[int(key) if key.isdigit() else key]
    return value


def put(name: str, path: str, value: Any) -> Callable[[list[Document]], None]:
    """Set what lies at ``path`` (keys and indices between dots) of an object."""
    parent, _, last = path.rpartition(".")
    return lambda docs: _at(_get(docs, name), parent).__setitem__(int(last) if last.isdigit() else last, value)


def drop(name: str, path: str) -> Callable[[list[Document]], None]:
    """Take away what lies at ``path``."""
    parent, _, last = path.rpartition(".")
    return lambda docs: _at(_get(docs, name), parent).__delitem__(int(last) if last.isdigit() else last)


def lose(name: str) -> Callable[[list[Document]], None]:
    """Take a whole object away."""
    return lambda docs: docs.remove(_get(docs, name))


def add(document: Document) -> Callable[[list[Document]], None]:
    """Put in an object."""
    return lambda docs: docs.append(document)


def by_config_map(name: str, path: str, variable: str) -> Callable[[list[Document]], None]:
    """Take a variable out of a container's ``env`` and put it into the ConfigMap of its ``envFrom``, which KubeRay does not copy."""

    def plant(docs: list[Document]) -> None:
        container = _at(_get(docs, name), path)
        (found,) = (v for v in container["env"] if v["name"] == variable)
        container["env"] = [v for v in container["env"] if v is not found]
        _get(docs, "ConfigMap/fedray-environment")["data"][variable] = found["value"]

    return plant


def _experiment(docs: list[Document]) -> dict[str, str]:
    return next(doc["data"] for doc in docs if title(doc).startswith("ConfigMap/digits-"))


_HEAD = "spec.headGroupSpec.template.spec"
_DRIVER = "spec.workerGroupSpecs.0.template.spec"
_CLIENTS = "spec.workerGroupSpecs.1.template.spec"
_MLFLOW = "spec.template.spec"

MISTAKES = [
    Mistake(
        "unknown key of KubeRay",
        "overlays/cpu",
        put("RayCluster/fedray", "spec.autoscalerOptions.idleTimeoutSecond", 60),
        "idleTimeoutSecond",
    ),
    Mistake(
        "unknown key of Kubernetes", "overlays/cpu", put("Deployment/mlflow", f"{_MLFLOW}.containers.0.readinesProbe", {}), "readinesProbe"
    ),
    Mistake(
        "unknown key deep in a pod of Ray",
        "overlays/gpu",
        put("RayCluster/fedray", f"{_CLIENTS}.containers.0.ports.0.containerport", 1),
        "containerport",
    ),
    Mistake("mistyped choice", "overlays/cpu", put("RayCluster/fedray", "spec.authOptions.mode", "tokens"), "'tokens' is not one of"),
    Mistake("wrong type", "overlays/cpu", put("Deployment/mlflow", "spec.replicas", "two"), "Deployment/mlflow: spec.replicas"),
    Mistake("authentication off", "overlays/cpu", put("RayCluster/fedray", "spec.authOptions.mode", "disabled"), "anybody may submit jobs"),
    Mistake(
        "tag latest",
        "overlays/cpu",
        put("Deployment/mlflow", f"{_MLFLOW}.containers.0.image", "ghcr.io/fedray/mlflow:latest"),
        "not pinned",
    ),
    Mistake("no tag", "overlays/cpu", put("StatefulSet/store", f"{_MLFLOW}.containers.0.image", "quay.io/minio/minio"), "not pinned"),
    Mistake(
        "two versions of Ray",
        "overlays/cpu",
        put("RayCluster/fedray", f"{_CLIENTS}.containers.0.image", "ghcr.io/fedray/fedray:0.3.0"),
        "different versions",
    ),
    Mistake(
        "no memory limit", "overlays/cpu", drop("RayCluster/fedray", f"{_CLIENTS}.containers.0.resources.limits.memory"), "no memory limit"
    ),
    Mistake("no CPU limit", "overlays/gpu", drop("RayCluster/fedray", f"{_CLIENTS}.containers.0.resources.limits.cpu"), "no cpu limit"),
    Mistake(
        "no CPUs for the autoscaler",
        "overlays/cpu",
        put("RayCluster/fedray", f"{_CLIENTS}.containers.0.resources", {}),
        "the autoscaler refuses it",
    ),
    Mistake("root", "overlays/cpu", put("RayCluster/fedray", f"{_HEAD}.securityContext.runAsUser", 0), "may run as root"),
    Mistake(
        "root in a container",
        "overlays/cpu",
        put("StatefulSet/database", f"{_MLFLOW}.containers.0.securityContext.runAsUser", 0),
        "runs as root",
    ),
    Mistake(
        "privileged",
        "overlays/cpu",
        put("StatefulSet/database", f"{_MLFLOW}.containers.0.securityContext.allowPrivilegeEscalation", True),
        "gain privileges",
    ),
    Mistake(
        "capability",
        "overlays/cpu",
        put("Deployment/mlflow", f"{_MLFLOW}.containers.0.securityContext.capabilities.add", ["SYS_ADMIN"]),
        "capabilities",
    ),
    Mistake(
        "writable root",
        "overlays/cpu",
        put("RayCluster/fedray", "spec.autoscalerOptions.securityContext.readOnlyRootFilesystem", False),
        "can be written",
    ),
    Mistake(
        "path of the node",
        "overlays/cpu",
        put("RayCluster/fedray", f"{_CLIENTS}.volumes.1", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
        "path of the node",
    ),
    Mistake("no probe", "overlays/cpu", drop("RayCluster/fedray", f"{_CLIENTS}.containers.0.livenessProbe"), "no livenessProbe"),
    Mistake(
        "token for jobs",
        "overlays/cpu",
        put("RayCluster/fedray", f"{_HEAD}.automountServiceAccountToken", True),
        "token for the Kubernetes API",
    ),
    Mistake(
        "wider role", "overlays/cpu", put("Role/fedray", "rules.0.verbs", ["get", "list", "watch", "patch"]), "change every one of pods"
    ),
    Mistake(
        "secret as an object",
        "overlays/cpu",
        add({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "fedray-s3"}}),
        "Secret in clear",
    ),
    Mistake(
        "secret in the environment",
        "overlays/cpu",
        put("StatefulSet/database", f"{_MLFLOW}.containers.0.env.2", {"name": "POSTGRES_PASSWORD", "value": "hunter2"}),
        "POSTGRES_PASSWORD holds a secret in clear",
    ),
    Mistake(
        "secret in an address",
        "overlays/production",
        put("ConfigMap/fedray-environment", "data.MLFLOW_TRACKING_URI", "http://admin:hunter2@mlflow:5000"),
        "MLFLOW_TRACKING_URI holds a secret in clear",
    ),
    Mistake(
        "secret in a ConfigMap", "overlays/cpu", put("ConfigMap/fedray-environment", "data.AWS_SECRET_ACCESS_KEY", "x"), "name of a secret"
    ),
    Mistake(
        "wrong ConfigMap",
        "overlays/cpu",
        put("RayCluster/fedray", f"{_CLIENTS}.containers.0.envFrom.0.configMapRef.name", "fedray-env"),
        "ConfigMap/fedray-env is neither",
    ),
    Mistake("wrong Secret", "overlays/cpu", put("RayCluster/fedray", "spec.authOptions.secretName", "token"), "Secret/token is neither"),
    Mistake(
        "wrong claim",
        "overlays/silos",
        put("RayCluster/fedray", f"{_CLIENTS}.volumes.1.persistentVolumeClaim.claimName", "ledger-a"),
        "PersistentVolumeClaim/ledger-a is neither",
    ),
    Mistake(
        "wrong account",
        "overlays/cpu",
        put("Deployment/mlflow", f"{_MLFLOW}.serviceAccountName", "tracker"),
        "ServiceAccount/tracker is neither",
    ),
    Mistake(
        "wrong volume",
        "overlays/cpu",
        put("Deployment/mlflow", f"{_MLFLOW}.containers.0.volumeMounts.0.name", "temp"),
        "mounts the volume 'temp'",
    ),
    Mistake(
        "wrong service",
        "overlays/cpu",
        put("ConfigMap/fedray-environment", "data.MLFLOW_TRACKING_URI", "http://ml-flow:5000"),
        "no service ml-flow:5000",
    ),
    Mistake("wrong port", "overlays/cpu", put("Service/mlflow", "spec.ports.0.targetPort", 5001), "no pod listens on 5001"),
    Mistake(
        "hash lost",
        "jobs/digits",
        put("RayJob/digits", "spec.rayClusterSpec.headGroupSpec.template.spec.volumes.0.configMap.name", "digits"),
        "ConfigMap/digits is neither",
    ),
    Mistake("nothing is denied", "overlays/cpu", lose("NetworkPolicy/default-deny"), "no NetworkPolicy covers its ingress"),
    Mistake(
        "open to the namespace",
        "overlays/cpu",
        put("NetworkPolicy/database", "spec.ingress.0.from", [{"podSelector": {}}]),
        "may reach its port 5432",
    ),
    Mistake("open to everybody", "overlays/cpu", drop("NetworkPolicy/mlflow", "spec.ingress.0.from"), "lets everybody through"),
    Mistake(
        "open to every address",
        "overlays/cpu",
        put("NetworkPolicy/jobs", "spec.ingress.0.from", [{"ipBlock": {"cidr": "0.0.0.0/0"}}]),
        "open to every address",
    ),
    Mistake("open without a reason", "overlays/cpu", drop("NetworkPolicy/autoscaler", "metadata.annotations"), "without ports or a reason"),
    Mistake("cut off", "overlays/cpu", lose("NetworkPolicy/ray-to-store"), "cannot reach its port 9000"),
    Mistake(
        "budget for nothing",
        "overlays/cpu",
        put("PodDisruptionBudget/driver", "spec.selector.matchLabels", {"ray.io/group": "drivers"}),
        "selects no pod",
    ),
    Mistake("budget in per cent", "overlays/cpu", put("PodDisruptionBudget/clients", "spec.minAvailable", "50%"), "only a whole number"),
    Mistake(
        "killed while draining",
        "overlays/cpu",
        put("RayCluster/fedray", f"{_CLIENTS}.terminationGracePeriodSeconds", 30),
        "before it has drained",
    ),
    Mistake("gated field", "overlays/cpu", put("RayCluster/fedray", "spec.tlsOptions", {"enabled": True}), "needs a feature gate"),
    Mistake(
        "labels for ray start",
        "overlays/silos",
        put("RayCluster/fedray", "spec.workerGroupSpecs.1.rayStartParams", {"labels": "a=b"}),
        "labels go into `labels`",
    ),
    Mistake(
        "retry on a standing cluster",
        "jobs/digits",
        put("RayJob/digits", "spec.clusterSelector", {"ray.io/cluster": "fedray"}),
        "cannot be retried",
    ),
    Mistake(
        "retry that begins anew",
        "jobs/digits",
        put("RayJob/digits", "spec.entrypoint", "python -m fedray run config.yaml"),
        "would begin anew",
    ),
    Mistake(
        "resource that no group has",
        "jobs/heart",
        put("RayJob/heart", "spec.rayClusterSpec.workerGroupSpecs.4.resources", {"site_v": "1"}),
        "'site_va': 1.0",
    ),
    Mistake(
        "key that fedray does not know",
        "jobs/digits",
        lambda docs: _experiment(docs).update({"config.yaml": _experiment(docs)["config.yaml"].replace("rounds:", "round:")}),
        "round: unknown key",
    ),
    Mistake(
        "TLS for those who start, not for those who wait",
        "overlays/cpu",
        by_config_map("RayCluster/fedray", f"{_CLIENTS}.containers.0", "RAY_USE_TLS"),
        "cpu-clients, container wait-gcs-ready: cannot talk to the head: RAY_USE_TLS is unset here and 1 there",
    ),
    Mistake(
        "no home for those who wait",
        "overlays/gpu",
        by_config_map("RayCluster/fedray", "spec.workerGroupSpecs.2.template.spec.containers.0", "HOME"),
        "gpu-clients, container wait-gcs-ready: HOME (/home/ray) cannot be written",
    ),
    Mistake(
        "no TLS for the autoscaler",
        "overlays/cpu",
        drop("RayCluster/fedray", "spec.autoscalerOptions.env"),
        "container autoscaler: cannot talk to the head",
    ),
    Mistake(
        "certificates not mounted",
        "jobs/heart",
        drop("RayJob/heart", "spec.rayClusterSpec.workerGroupSpecs.1.template.spec.containers.0.volumeMounts.0"),
        "container wait-gcs-ready: RAY_TLS_SERVER_CERT (/etc/fedray/tls/pod.pem) lies in no volume",
    ),
    Mistake(
        "no group for drivers", "jobs/digits", drop("RayJob/digits", "spec.rayClusterSpec.workerGroupSpecs.0"), "asks for {'driver': 0.01}"
    ),
    Mistake(
        "gateway open to the world",
        "overlays/federation",
        drop("Service/gateway", "spec.loadBalancerSourceRanges"),
        "is open to every address",
    ),
    Mistake(
        "gateway that no silo reaches",
        "overlays/federation",
        put("Service/gateway", "spec.loadBalancerSourceRanges", ["198.51.100.0/24"]),
        "lets 198.51.100.0/24 reach port 7443",
    ),
    Mistake(
        "the head open to silos",
        "overlays/federation",
        put("Service/gateway", "spec.selector", {"ray.io/cluster": "fedray", "ray.io/node-type": "head"}),
        "opens a pod that is no gateway",
    ),
    Mistake(
        "the jobs API open to silos",
        "overlays/federation",
        put("NetworkPolicy/gateway", "spec.ingress.0.ports.0.port", 8265),
        "more than the gateway's port",
    ),
    Mistake(
        "all pods open to silos",
        "overlays/federation",
        put("NetworkPolicy/gateway", "spec.podSelector", {}),
        "reach a pod that no open service names",
    ),
    Mistake(
        "the authority's key in a pod",
        "overlays/federation",
        drop("RayCluster/fedray", f"{_DRIVER}.volumes.3.secret.items"),
        "mounts more of fedray-federation than a gateway needs",
    ),
    Mistake(
        "an identity that others can read",
        "overlays/federation",
        put("RayCluster/fedray", f"{_DRIVER}.volumes.3.secret.defaultMode", 0o444),
        "can be read by others",
    ),
    Mistake(
        "revocations that do not arrive",
        "overlays/federation",
        put("RayCluster/fedray", f"{_DRIVER}.containers.0.volumeMounts.2.subPath", "revoked.json"),
        "a subPath never sees",
    ),
    Mistake("a gateway without a service", "overlays/federation", lose("Service/gateway"), "no service leads silos to it"),
]
