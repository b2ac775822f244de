"""What a manifest of ours must keep to, beyond its schema. Each function gives a sentence for each thing that is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from manifests import Document, Pod, pods, ray_clusters, title

#: What every namespace has of itself.
_GIVEN = {"ConfigMap/kube-root-ca.crt"}
_SECRET_NAME = re.compile(r"(?i)(password|passwd|secret|token|credential|access_?key|private_?key)")
_SECRET_VALUE = re.compile(r"(?i)(-----BEGIN|://[^/\s:@]+:[^/\s@]+@|\bAKIA[0-9A-Z]{16}\b)")
_ALPHA = {"networkPolicy", "tlsOptions", "historyServerOptions"}


def pod_errors(docs: list[Document]) -> list[str]:
    """Users, privileges, limits, images, probes, tokens."""
    return [error for pod in pods(docs) for error in (*_pod_wide(pod), *_of_containers(pod))]


def _pod_wide(pod: Pod) -> Iterator[str]:
    spec, security = pod.spec, pod.spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield f"{pod.owner}: may run as root; set runAsNonRoot and a runAsUser other than 0."
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{pod.owner}: has no seccomp profile; set RuntimeDefault."
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{pod.owner}: {key} puts it into the node's namespace."
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"{pod.owner}: volume {volume['name']} is a path of the node."
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"{pod.owner}: volume {volume['name']} may fill the node's disk; set a sizeLimit."
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.owner}: a token for the Kubernetes API is mounted into every container; set automountServiceAccountToken: false."
    if spec.get("serviceAccountName", "default") == "default":
        yield f"{pod.owner}: runs under the namespace's default service account."


def _of_containers(pod: Pod) -> Iterator[str]:
    prepares = {container["name"] for container in pod.spec.get("initContainers", [])}
    for where, container in pod.containers:
        security, resources = container.get("securityContext", {}), container.get("resources", {})
        if security.get("runAsUser") == 0 or security.get("runAsNonRoot") is False:
            yield f"{where}: runs as root."
        if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: may gain privileges; set allowPrivilegeEscalation: false."
        if security.get("capabilities", {}).get("drop") != ["ALL"] or security.get("capabilities", {}).get("add"):
            yield f"{where}: keeps Linux capabilities; drop ALL."
        if not security.get("readOnlyRootFilesystem"):
            yield f"{where}: its root file system can be written."
        for resource in ("cpu", "memory"):
            if resource not in resources.get("limits", {}):
                yield f"{where}: has no {resource} limit."
        if resources.get("limits", {}).get("memory") != resources.get("requests", {}).get("memory"):
            yield f"{where}: memory request and limit differ, so that it is killed when the node runs short."
        image = container.get("image", "")
        if not re.search(r"(@sha256:[0-9a-f]{64}|:[^:/@]*[0-9][^:/@]*)$", image) or "latest" in image:
            yield f"{where}: image '{image}' is not pinned to a version."
        if not (pod.finite or container["name"] in prepares or container["name"] == "autoscaler"):
            for probe in ("readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{where}: has no {probe}."


def secret_errors(docs: list[Document]) -> list[str]:
    """Secrets that stand in the manifests instead of being referred to."""
    found = [f"{title(doc)}: a Secret in clear; it is made by hand and referred to." for doc in docs if doc["kind"] == "Secret"]
    for doc in docs:
        for path, value in _strings(doc):
            if _SECRET_VALUE.search(value):
                found.append(f"{title(doc)}: {path} holds a secret in clear.")
        for name, value in (doc.get("data") or {}).items() if doc["kind"] == "ConfigMap" else ():
            if _SECRET_NAME.search(name) and value:
                found.append(f"{title(doc)}: {name} is the name of a secret; refer to one.")
    for pod in pods(docs):
        for where, container in pod.containers:
            for variable in container.get("env", []):
                name = variable["name"]
                if variable.get("value") and _SECRET_NAME.search(name) and not name.endswith(("_FILE", "_PATH")):
                    found.append(f"{where}: {name} holds a secret in clear; use secretKeyRef.")
    return found


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path.lstrip("."), value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _strings(part, f"{path}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _strings(part, f"{path}.{index}")


def reference_errors(docs: list[Document]) -> list[str]:
    """Names of objects, volumes, ports and pods that lead nowhere."""
    known = {title(doc) for doc in docs} | _GIVEN
    for doc in docs:
        known |= set(doc.get("metadata", {}).get("annotations", {}).get("fedray.io/external", "").split())
    found = []
    for doc in docs:
        pulled = {f"Secret/{secret['name']}" for secret in doc.get("imagePullSecrets", [])}
        found += [f"{title(doc)}: {name} is neither defined nor declared as external." for name in sorted(pulled - known)]
    made = pods(docs)
    for pod in made:
        wanted = {f"ServiceAccount/{pod.spec.get('serviceAccountName', 'default')}", *_named(pod.spec)}
        found += [f"{pod.owner}: {name} is neither defined nor declared as external." for name in sorted(wanted - known)]
        claims = {
            claim["metadata"]["name"] for doc in docs if title(doc) == pod.owner for claim in doc["spec"].get("volumeClaimTemplates", [])
        }
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | claims
        for where, container in pod.containers:
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            found += [f"{where}: mounts the volume '{name}', which its pod has not." for name in sorted(mounts - volumes)]
            for service, port in re.findall(
                r"http://([a-z0-9-]+):(\d+)", " ".join(str(v.get("value", "")) for v in container.get("env", []))
            ):
                if not _serves(docs, service, int(port)):
                    found.append(f"{where}: there is no service {service}:{port}.")
    for doc in docs:
        if doc["kind"] == "ConfigMap":
            for service, port in re.findall(r"http://([a-z0-9-]+):(\d+)", " ".join(map(str, (doc.get("data") or {}).values()))):
                if not _serves(docs, service, int(port)):
                    found.append(f"{title(doc)}: there is no service {service}:{port}.")
        if doc["kind"] == "Service":
            targets = [pod for pod in made if doc["spec"]["selector"].items() <= pod.labels.items()]
            ports = {
                p for pod in targets for c in pod.spec["containers"] for q in c.get("ports", []) for p in (q["name"], q["containerPort"])
            }
            found += [f"{title(doc)}: no pod listens on {p['targetPort']}." for p in doc["spec"]["ports"] if p["targetPort"] not in ports]
        if doc["kind"] == "StatefulSet" and f"Service/{doc['spec']['serviceName']}" not in known:
            found.append(f"{title(doc)}: there is no service {doc['spec']['serviceName']}.")
        if doc["kind"] == "RoleBinding":
            wanted = {f"Role/{doc['roleRef']['name']}", *(f"ServiceAccount/{s['name']}" for s in doc["subjects"])}
            found += [f"{title(doc)}: there is no {name}." for name in sorted(wanted - known)]
    for cluster in ray_clusters(docs):
        name = cluster["spec"].get("authOptions", {}).get("secretName", "none")
        if f"Secret/{name}" not in known:
            found.append(f"{title(cluster)}: Secret/{name} is neither defined nor declared as external.")
    return found


def _serves(docs: list[Document], service: str, port: int) -> bool:
    return any(title(d) == f"Service/{service}" and port in [p["port"] for p in d["spec"]["ports"]] for d in docs)


def _named(value: Any) -> Iterator[str]:
    """The ConfigMaps, Secrets and claims that a pod's spec names, as ``Kind/name``."""
    kinds = {
        "configMapRef": ("ConfigMap", "name"),
        "configMapKeyRef": ("ConfigMap", "name"),
        "configMap": ("ConfigMap", "name"),
        "secretRef": ("Secret", "name"),
        "secretKeyRef": ("Secret", "name"),
        "secret": ("Secret", "secretName"),
        "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    }
    if isinstance(value, dict):
        for key, part in value.items():
            if key in kinds and isinstance(part, dict):
                kind, name = kinds[key]
                yield f"{kind}/{part.get(name) or part.get('name')}"
            yield from _named(part)
    elif isinstance(value, list):
        for part in value:
            yield from _named(part)


def rights_errors(docs: list[Document]) -> list[str]:
    """Service accounts that may do more than the autoscaler must."""
    found = []
    for doc in docs:
        if doc["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            found.append(f"{title(doc)}: rights beyond the namespace.")
        for rule in doc.get("rules", []) if doc["kind"] == "Role" else ():
            resources, verbs = set(rule["resources"]), set(rule["verbs"])
            if "*" in resources | verbs | set(rule["apiGroups"]):
                found.append(f"{title(doc)}: grants everything by '*'.")
            if "secrets" in resources:
                found.append(f"{title(doc)}: lets its holder read secrets.")
            if verbs - {"get", "list", "watch"} and not rule.get("resourceNames"):
                found.append(f"{title(doc)}: lets its holder change every one of {', '.join(sorted(resources))}; name them.")
    return found


def disruption_errors(docs: list[Document]) -> list[str]:
    """Disruption budgets that protect nothing, or that Kubernetes cannot apply."""
    found = []
    for doc in docs:
        if doc["kind"] != "PodDisruptionBudget":
            continue
        covered = [pod for pod in pods(docs) if selects(doc["spec"]["selector"], pod.labels)]
        if not covered:
            found.append(f"{title(doc)}: selects no pod.")
        if any("ray.io/cluster" in pod.labels for pod in covered) and not isinstance(doc["spec"].get("minAvailable"), int):
            found.append(f"{title(doc)}: Ray's pods have no scale, so that only a whole number as minAvailable works.")
    return found


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector covers a pod with these labels; an empty one covers all."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for rule in selector.get("matchExpressions", []):
        value, operator = labels.get(rule["key"]), rule["operator"]
        held = {"In": value in rule.get("values", []), "NotIn": value not in rule.get("values", [])}
        held |= {"Exists": value is not None, "DoesNotExist": value is None}
        if not held[operator]:
            return False
    return True


def operator_errors(docs: list[Document]) -> list[str]:
    """What KubeRay 1.7 refuses beyond its schema (`controllers/ray/utils/validation.go`), and versions that differ."""
    found = []
    for cluster in ray_clusters(docs):
        spec, name = cluster["spec"], title(cluster)
        found += [f"{name}: {key} needs a feature gate that is off by default." for key in sorted(_ALPHA & set(spec))]
        if spec.get("authOptions", {}).get("mode") != "token":
            found.append(f"{name}: anybody may submit jobs; set authOptions.mode: token.")
        if spec.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
            found.append(f"{name}: gcsFaultToleranceOptions with rocksdb needs a feature gate that is off by default.")
        images = {c["image"].rpartition(":")[2].split("-")[0] for pod in pods([cluster]) for _, c in pod.containers}
        if len(images) != 1:
            found.append(f"{name}: images of different versions: {', '.join(sorted(images))}.")
        for group in [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]:
            where, start = f"{name} {group.get('groupName', 'headgroup')}", group.get("rayStartParams", {})
            if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
                found.append(f"{where}: resources stand both in `resources` and in rayStartParams.")
            if "labels" in start:
                found.append(f"{where}: labels go into `labels`, not into rayStartParams.")
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                found.append(f"{where}: autoscaler v2 wants restartPolicy Never.")
            if group.get("minReplicas", 0) > group.get("maxReplicas", 1):
                found.append(f"{where}: minReplicas is above maxReplicas.")
            grace = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
            if grace < 120:
                found.append(f"{where}: is killed {grace} s after its end was announced, before it has drained (90 s).")
    for job in (doc for doc in docs if doc["kind"] == "RayJob"):
        spec, name = job["spec"], title(job)
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", job["metadata"]["name"]):
            found.append(f"{name}: its name must be a DNS label of at most 47 characters.")
        if spec.get("clusterSelector") and spec.get("backoffLimit"):
            found.append(f"{name}: a job on a standing cluster cannot be retried; drop clusterSelector or backoffLimit.")
        if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
            found.append(f"{name}: ttlSecondsAfterFinished needs shutdownAfterJobFinishes.")
        if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
            found.append(f"{name}: runtimeEnvYAML is no mapping.")
        for key in ("backoffLimit", "preRunningDeadlineSeconds", "activeDeadlineSeconds"):
            if not spec.get(key):
                found.append(f"{name}: sets no {key}.")
        if "--resume" not in spec["entrypoint"] or "--output $FEDRAY_OUTPUT/" not in spec["entrypoint"]:
            found.append(f"{name}: a retry would begin anew; run with --output $FEDRAY_OUTPUT/NAME --resume.")
    return found
