"""Who may reach whom, by the NetworkPolicies of a set of manifests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from manifest_policy import selects
from manifests import Document, Pod, pods, title


@dataclass(frozen=True)
class Peer:
    """An end of a connection outside the namespace: the labels of its namespace and of its pod."""

    namespace: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)


OPERATOR = Peer({"kubernetes.io/metadata.name": "kuberay-system"}, {"app.kubernetes.io/name": "kuberay-operator"})
MONITORING = Peer({"kubernetes.io/metadata.name": "monitoring"})
ELSEWHERE = Peer({"kubernetes.io/metadata.name": "default"})


def allowed(docs: list[Document], source: Pod | Peer, target: Pod, port: int) -> bool:
    """Whether a connection is let through at both of its ends that the manifests govern."""
    leaves = not isinstance(source, Pod) or _passes(docs, source, target, port, "egress", "to")
    return leaves and admitted(docs, source, target, port)


def admitted(docs: list[Document], source: Pod | Peer, target: Pod, port: int) -> bool:
    """Whether the target's own policies let the connection in, whatever the source's say."""
    return _passes(docs, target, source, port, "ingress", "from")


def _passes(docs: list[Document], pod: Pod, other: Pod | Peer, port: int, direction: str, side: str) -> bool:
    policies = [p for p in _policies(docs, direction) if selects(p["spec"]["podSelector"], pod.labels)]
    rules = [rule for policy in policies for rule in policy["spec"].get(direction, [])]
    return not policies or any(
        ("ports" not in rule or port in [p["port"] for p in rule["ports"]])
        and (side not in rule or any(_covers(peer, other) for peer in rule[side]))
        for rule in rules
    )


def _policies(docs: list[Document], direction: str) -> list[Document]:
    return [d for d in docs if d["kind"] == "NetworkPolicy" and direction.capitalize() in d["spec"].get("policyTypes", ["Ingress"])]


def _covers(peer: dict[str, Any], other: Pod | Peer) -> bool:
    if "ipBlock" in peer:  # addresses are those of pods only by accident; network_errors looks at them
        return False
    namespace = {"kubernetes.io/metadata.name": "fedray"} if isinstance(other, Pod) else other.namespace
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], namespace):
            return False
    elif not isinstance(other, Pod):
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def network_errors(docs: list[Document]) -> list[str]:
    """Pods that no policy covers, rules that let in everybody, and connections that should not be possible."""
    found = []
    made = pods(docs)
    for pod in made:
        for direction in ("ingress", "egress"):
            if not any(selects(p["spec"]["podSelector"], pod.labels) for p in _policies(docs, direction)):
                found.append(f"{pod.owner}: no NetworkPolicy covers its {direction}.")
    for doc in docs:
        if doc["kind"] == "NetworkPolicy":
            found += _too_wide(doc)
    sources: list[Pod | Peer] = [*made, Pod("a stranger", {"app": "stranger"}, {}), OPERATOR, MONITORING, ELSEWHERE]
    for target in made:
        ports = {p["containerPort"] for c in target.spec["containers"] for p in c.get("ports", [])} | {10001, 20000}
        for source in (s for s in sources if s is not target):
            name = source.owner if isinstance(source, Pod) else f"the namespace {source.namespace['kubernetes.io/metadata.name']}"
            for port in sorted(ports):
                due = bool({(_role(target), _role(source), p) for p in (port, None)} & _CONNECTIONS)
                if due and not allowed(docs, source, target, port):
                    found.append(f"{target.owner}: {name} cannot reach its port {port}.")
                elif not due and admitted(docs, source, target, port):
                    found.append(f"{target.owner}: {name} may reach its port {port}.")
    return found


def _too_wide(policy: Document) -> list[str]:
    found = []
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(direction, []):
            if not rule.get(side):
                found.append(f"{title(policy)}: an {direction} rule without `{side}` lets everybody through.")
            for peer in rule.get(side, []):
                if peer in ({}, {"namespaceSelector": {}}):
                    found.append(f"{title(policy)}: an {direction} rule lets every namespace through.")
                if peer.get("ipBlock", {}).get("cidr") in ("0.0.0.0/0", "::/0"):
                    reason = policy["metadata"].get("annotations", {}).get("fedray.io/open-because")
                    if direction == "ingress" or not reason or not rule.get("ports"):
                        found.append(f"{title(policy)}: an {direction} rule is open to every address, without ports or a reason.")
    return found


def _role(end: Pod | Peer) -> str:
    if isinstance(end, Peer):
        return end.namespace["kubernetes.io/metadata.name"]
    if end.labels.get("ray.io/is-ray-node") == "yes":
        return "head" if end.labels["ray.io/node-type"] == "head" else "worker"
    return end.labels.get("fedray.io/role") or end.labels.get("app.kubernetes.io/name", "stranger")


#: The whole of what talks to what: target, source, port (None: any).
_CONNECTIONS: set[tuple[str, str, int | None]] = {
    *((to, source, None) for to in ("head", "worker") for source in ("head", "worker")),
    *((to, "monitoring", 8080) for to in ("head", "worker")),
    *(("head", source, 8265) for source in ("submitter", "kuberay-system")),
    *(("mlflow", source, 5000) for source in ("head", "worker")),
    ("database", "mlflow", 5432),
    *(("store", source, 9000) for source in ("head", "worker", "mlflow", "bucket")),
}
