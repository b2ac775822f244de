"""The overlays and jobs render, fit the schemas, keep to the policy, and every planted mistake is caught."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from manifest_gateway import gateway_errors
from manifest_gcs import gcs_errors
from manifest_mistakes import MISTAKES, Mistake
from manifest_network import network_errors
from manifest_placement import placement_errors
from manifest_policy import (
    disruption_errors,
    operator_errors,
    pod_errors,
    reference_errors,
    rights_errors,
    secret_errors,
)
from manifests import K8S, Document, applied, documents, overlay_of, pods, schema_errors, title

OVERLAYS = ["overlays/local", "overlays/cpu", "overlays/gpu", "overlays/silos", "overlays/federation", "overlays/production"]
JOBS = ["jobs/digits", "jobs/digits-local", "jobs/heart"]

POLICY = [
    pod_errors,
    secret_errors,
    reference_errors,
    rights_errors,
    disruption_errors,
    network_errors,
    operator_errors,
    placement_errors,
    gcs_errors,
    gateway_errors,
]


def policy_errors(docs: list[Document]) -> list[str]:
    return [error for check in POLICY for error in check(docs)]


@pytest.mark.parametrize("directory", [*OVERLAYS, *JOBS])
def test_fits_the_schemas(directory: str) -> None:
    assert schema_errors(documents(directory)) == []


@pytest.mark.parametrize("directory", [*OVERLAYS, *JOBS])
def test_keeps_to_the_policy(directory: str) -> None:
    assert policy_errors(applied(directory)) == []


def test_every_overlay_and_job_is_looked_at() -> None:
    assert {f"{kind}/{path.name}" for kind in ("overlays", "jobs") for path in (K8S / kind).iterdir()} == {*OVERLAYS, *JOBS}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_its_rayjob_and_its_config_alone(job: str) -> None:
    """`kubectl delete -k` takes what `kubectl kustomize` shows, so nothing else may be in it."""
    name, docs = job.removeprefix("jobs/"), documents(job)
    assert sorted(d["kind"] for d in docs) == ["ConfigMap", "RayJob"]
    assert {d["metadata"]["labels"]["fedray.io/job"] for d in docs} == {name}
    config, rayjob = sorted(map(title, docs))
    assert rayjob == f"RayJob/{name}"
    assert config.startswith(f"ConfigMap/{name}-")
    others = {title(d) for other in [*OVERLAYS, *JOBS] if other != job for d in documents(other)}
    assert not {config, rayjob} & others


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_job_runs_with_the_stores_of_the_overlay_that_was_applied(overlay: str) -> None:
    """Applied over any overlay, a job leaves every object of it as it was, and finds all that it refers to."""
    standing, job = documents(overlay), documents("jobs/digits")
    assert not {title(d) for d in standing} & {title(d) for d in job}
    assert reference_errors(standing + job) == []
    assert gcs_errors(standing + job) == []


def test_the_local_overlay_and_its_job_fit_one_small_node() -> None:
    """4 CPUs and 12 GiB, of which the node itself and KubeRay's operator keep 1 GiB."""
    assert overlay_of("jobs/digits-local") == "overlays/local"
    cpus, memory = 0.0, 0
    for pod in pods(applied("jobs/digits-local")):
        asked = [c["resources"]["requests"] for c in pod.spec["containers"]]
        prepares = [c["resources"]["requests"] for c in pod.spec.get("initContainers", [])]
        cpus += max(sum(cpu(a["cpu"]) for a in asked), *(cpu(a["cpu"]) for a in prepares), 0.0)
        memory += max(sum(mib(a["memory"]) for a in asked), *(mib(a["memory"]) for a in prepares), 0)
    assert cpus <= 3.5
    assert memory <= 11 * 1024


def cpu(amount: str) -> float:
    return int(amount.removesuffix("m")) / 1000 if amount.endswith("m") else float(amount)


def mib(amount: str) -> int:
    return int(amount[:-2]) * {"Mi": 1, "Gi": 1024}[amount[-2:]]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name.replace(" ", "-"))
def test_a_planted_mistake_is_caught(mistake: Mistake) -> None:
    docs = applied(mistake.directory)
    mistake.plant(docs)
    found = schema_errors(docs) or policy_errors(docs)
    assert any(mistake.words in sentence for sentence in found), found


@pytest.mark.parametrize("directory", [*OVERLAYS, *JOBS])
def test_nothing_lies_outside_the_namespace(directory: str) -> None:
    outside = [
        d["metadata"]["name"] for d in documents(directory) if d["kind"] != "Namespace" and d["metadata"].get("namespace") != "fedray"
    ]
    assert outside == []


def test_only_the_autoscaler_has_a_token_and_only_the_certifying_step_the_authority() -> None:
    holders: dict[str, set[str]] = {"kubernetes-api": set(), "ca": set()}
    for pod in pods(documents("overlays/cpu")):
        for _, container in pod.containers:
            for name in {mount["name"] for mount in container.get("volumeMounts", [])} & set(holders):
                holders[name].add(container["name"])
    assert holders == {"kubernetes-api": {"autoscaler"}, "ca": {"certify"}}


def test_each_silo_has_nodes_data_and_a_ledger_of_its_own() -> None:
    groups = {}
    for pod in pods(documents("overlays/silos")):
        if pod.labels.get("ray.io/group", "").startswith("silo-"):
            name = pod.labels["fedray.io/silo"]
            claims = {v["persistentVolumeClaim"]["claimName"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v}
            assert pod.spec["nodeSelector"] == {"fedray.io/silo": name}
            assert [t["value"] for t in pod.spec["tolerations"]] == [name]
            assert claims == {f"data-{name}", f"ledger-{name}"}
            assert [v["persistentVolumeClaim"].get("readOnly", False) for v in pod.spec["volumes"][:2]] == [True, False]
            groups[name] = claims
    assert sorted(groups) == ["cleveland", "hungarian", "switzerland", "va"]


def compose(folder: Path, overlay: str, component: str) -> list[Document]:
    """An overlay with one more component, as a user would write it."""
    here = {name: os.path.relpath(K8S / name, folder) for name in (overlay, component)}
    (folder / "kustomization.yaml").write_text(f"resources: [{here[overlay]}]\ncomponents: [{here[component]}]\n")
    return documents(str(folder))


def test_production_takes_gpus(tmp_path: Path) -> None:
    docs = compose(tmp_path, "overlays/production", "components/gpu")
    assert schema_errors(docs) + policy_errors(docs) == []


def test_head_failover_fits_the_schema_and_names_its_gate(tmp_path: Path) -> None:
    docs = compose(tmp_path, "overlays/cpu", "components/head-failover")
    assert schema_errors(docs) == []
    assert policy_errors(docs) == ["RayCluster/fedray: gcsFaultToleranceOptions with rocksdb needs a feature gate that is off by default."]
