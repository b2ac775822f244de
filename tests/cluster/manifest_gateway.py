"""What opens the cluster to silos outside it: which pods, which port, to whom, and which secrets lie there."""

from __future__ import annotations

from collections.abc import Iterator

from manifest_policy import selects
from manifests import Document, Pod, pods, title

_SECRET = "fedray-federation"
_NEEDED = {"identity.pem", "federation.pem", "revoked.json"}


def gateway_errors(docs: list[Document]) -> list[str]:
    """Services that are open to the outside, the policies that let addresses in, and pods with a federation's identity."""
    made, opened = pods(docs), [doc for doc in docs if doc["kind"] == "Service" and doc["spec"].get("type", "ClusterIP") != "ClusterIP"]
    found = [error for service in opened for error in _of_service(docs, service, made)]
    holders = [(pod, volume["secret"]) for pod in made for volume in pod.spec.get("volumes", []) if _holds(volume)]
    for pod, secret in holders:
        if {item["key"] for item in secret.get("items", [])} != _NEEDED:
            found.append(f"{pod.owner}: mounts more of {_SECRET} than a gateway needs; name {', '.join(sorted(_NEEDED))} as items.")
        if secret.get("defaultMode", 0o644) & 0o037:
            found.append(f"{pod.owner}: {_SECRET} can be read by others, so that the gateway refuses it; set defaultMode: 0440.")
        if not any(_targets(service, pod) for service in opened):
            found.append(f"{pod.owner}: holds a federation's identity, and no service leads silos to it.")
        if any(m.get("subPath") for _, c in pod.containers for m in c.get("volumeMounts", []) if m["name"] == "federation"):
            found.append(f"{pod.owner}: a subPath never sees a Secret that changes, so that a revocation would not count.")
    for doc in docs:
        if doc["kind"] == "NetworkPolicy" and any("ipBlock" in peer for rule in _rules(doc) for peer in rule.get("from", [])):
            found += _of_policy(doc, opened, made)
    return found


def _of_service(docs: list[Document], service: Document, made: list[Pod]) -> Iterator[str]:
    spec, targets = service["spec"], [pod for pod in made if _targets(service, pod)]
    if any(not any(_holds(volume) for volume in pod.spec.get("volumes", [])) for pod in targets):
        yield f"{title(service)}: opens a pod that is no gateway."
    ranges = spec.get("loadBalancerSourceRanges", [])
    if not ranges or any(block in ("0.0.0.0/0", "::/0") for block in ranges):
        yield f"{title(service)}: is open to every address; set loadBalancerSourceRanges."
    if spec.get("externalTrafficPolicy") != "Local":
        yield f"{title(service)}: hides the silos' addresses from the policy; set externalTrafficPolicy: Local."
    for pod in targets:
        policies = [d for d in docs if d["kind"] == "NetworkPolicy" and selects(d["spec"]["podSelector"], pod.labels)]
        for block in ranges:
            for port in spec["ports"]:
                let_in = any(
                    {"ipBlock": {"cidr": block}} in rule.get("from", [])
                    and port["targetPort"] in [p["port"] for p in rule.get("ports", [])]
                    for policy in policies
                    for rule in _rules(policy)
                )
                if not let_in:
                    yield f"{title(service)}: no NetworkPolicy lets {block} reach port {port['targetPort']} of {pod.owner}."


def _of_policy(policy: Document, opened: list[Document], made: list[Pod]) -> Iterator[str]:
    targets = [pod for pod in made if selects(policy["spec"]["podSelector"], pod.labels)]
    ports = {port["targetPort"] for service in opened for port in service["spec"]["ports"]}
    if any(not any(_targets(service, pod) for service in opened) for pod in targets):
        yield f"{title(policy)}: lets addresses from outside reach a pod that no open service names."
    for rule in _rules(policy):
        if any("ipBlock" in peer for peer in rule["from"]) and not {p["port"] for p in rule.get("ports", [{"port": None}])} <= ports:
            yield f"{title(policy)}: lets addresses from outside reach more than the gateway's port."


def _rules(policy: Document) -> list[Document]:
    rules: list[Document] = policy["spec"].get("ingress", [])
    return rules


def _targets(service: Document, pod: Pod) -> bool:
    return bool(service["spec"]["selector"].items() <= pod.labels.items())


def _holds(volume: Document) -> bool:
    return bool(volume.get("secret", {}).get("secretName") == _SECRET)
