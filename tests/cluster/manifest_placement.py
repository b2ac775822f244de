"""Whether Ray's autoscaler would find room for what a job asks for, by Ray's own (private) autoscaler code."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from manifests import Document, ray_clusters, title
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

from fedray.choices import Resources
from fedray.config import Config
from fedray.configfile import build_config, parse_yaml
from fedray.errors import ConfigError


def node_types(cluster: Document) -> dict[str, dict[str, Any]]:
    """The kinds of node that the autoscaler reads off a RayCluster: resources, labels, how many at least and at most.

    Raises:
        ValueError: the autoscaler could not work with it.
    """
    types: dict[str, dict[str, Any]] = derive(cluster)["available_node_types"]
    return types


def place(cluster: Document, requests: list[tuple[dict[str, float], int]]) -> tuple[dict[str, int], list[dict[str, float]]]:
    """What the autoscaler would start on an empty cluster for so many requests of a kind: pods by group, and what fits nowhere."""
    types = node_types(cluster)
    configs = {
        name: NodeTypeConfig(name, kind["min_workers"], kind["max_workers"], resources=kind["resources"], labels=kind["labels"])
        for name, kind in types.items()
    }
    reply = ResourceDemandScheduler(AutoscalerEventLogger(Mock())).schedule(
        SchedulingRequest(
            node_type_configs=configs,
            resource_requests=[ResourceRequestByCount(request=ResourceRequestUtil.make(asked), count=n) for asked, n in requests],
            current_instances=[],
            disable_launch_config_check=True,
            max_num_nodes=sum(kind["max_workers"] for kind in types.values()) + 1,
        )
    )
    started = {request.instance_type: request.count for request in reply.to_launch}
    return started, [dict(sorted(r.resources_bundle.items())) for r in reply.infeasible_resource_requests]


def config_of(job: Document, docs: list[Document]) -> Config:
    """The config that a RayJob mounts, through fedray's own loader.

    Raises:
        ConfigError: fedray would refuse it.
        LookupError: there is no such ConfigMap.
    """
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    name = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "experiment")
    text = {title(doc): doc for doc in docs}[f"ConfigMap/{name}"]["data"]["config.yaml"]
    return build_config(parse_yaml(text, f"ConfigMap {name}"))


def asks(config: Config) -> list[tuple[dict[str, float], int]]:
    """What the actors of a run ask Ray for: its driver, and its clients by group."""
    grouped = [
        (group.resources or config.clients.resources, len(group.clients))
        for group in config.clients.groups
        if isinstance(group.clients, list)
    ]
    clients = grouped or [(config.clients.resources, 1)]
    return [(_bundle(config.ray.driver), 1), *((_bundle(resources), n) for resources, n in clients)]


def _bundle(resources: Resources) -> dict[str, float]:
    asked = {"CPU": resources.cpu, "GPU": resources.gpu, **resources.custom}
    return {name: amount for name, amount in asked.items() if amount}


def placement_errors(docs: list[Document]) -> list[str]:
    """Clusters that the autoscaler cannot work with, configs that fedray refuses, and actors that would wait for ever."""
    found = []
    for cluster in ray_clusters(docs):
        try:
            node_types(cluster)
        except ValueError as error:
            found.append(f"{title(cluster)}: the autoscaler refuses it: {error}")
    if found:
        return found
    for job in (doc for doc in docs if doc["kind"] == "RayJob"):
        try:
            asked = asks(config_of(job, docs))
        except (ConfigError, LookupError) as error:
            found.append(f"{title(job)}: has no config that fedray takes: {error}")
        else:
            unmet = place(ray_clusters([job])[0], asked)[1]
            found += [f"{title(job)}: no group has room for an actor that asks for {bundle}." for bundle in unmet]
    return found
