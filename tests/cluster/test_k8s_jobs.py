"""Jobs as Ray and fedray see them: their configs, and what the autoscaler starts for them."""

from __future__ import annotations

import shlex

import pytest
import yaml
from manifest_placement import asks, config_of, node_types, place
from manifests import Document, documents, ray_clusters, title
from paths import ROOT

from fedray.configfile import load_config


def job(name: str) -> tuple[Document, list[Document]]:
    docs = documents(f"jobs/{name}")
    return next(doc for doc in docs if title(doc) == f"RayJob/{name}"), docs


def cluster(directory: str) -> Document:
    return ray_clusters(documents(directory))[0]


@pytest.mark.parametrize(
    ("name", "original", "changed"),
    [
        ("digits", "digits.yaml", {"clients", "ray"}),
        ("digits-local", "digits.yaml", {"clients", "ray"}),
        ("heart", "heart-private.yaml", {"name", "data", "clients", "privacy", "ray"}),
    ],
)
def test_a_job_is_its_config_but_for_the_place(name: str, original: str, changed: set[str]) -> None:
    mine, theirs = config_of(*job(name)).model_dump(), load_config(ROOT / "configs" / original).model_dump()
    assert {key for key in mine if mine[key] != theirs[key]} == changed
    assert mine["ray"]["driver"]["custom"] == {"driver": 0.01}
    places = {"source", "silos", "ledger", "groups", "start_timeout"}
    for section in changed & {"data", "clients", "privacy"}:
        assert {key for key in mine[section] if mine[section][key] != theirs[section].get(key)} <= places


def test_a_job_brings_its_own_cluster_and_no_standing_one() -> None:
    for name, overlay in (("digits", "overlays/cpu"), ("digits-local", "overlays/local"), ("heart", "overlays/silos")):
        found, docs = job(name)
        assert "RayCluster/fedray" not in [title(doc) for doc in docs]
        own, standing = found["spec"]["rayClusterSpec"], cluster(overlay)["spec"]
        assert own["workerGroupSpecs"] == standing["workerGroupSpecs"]
        assert own["authOptions"] == standing["authOptions"]


def test_the_entry_point_survives_both_shells() -> None:
    """The submitter's shell reads it first, `ray job submit` quotes its words again, and a shell on the head reads that."""
    words = shlex.split(shlex.join(shlex.split(job("digits")[0]["spec"]["entrypoint"])))
    assert words[:2] == ["bash", "-c"]
    assert words[2].startswith("python -m fedray run /etc/fedray/experiment/config.yaml --output $FEDRAY_OUTPUT/digits --resume ||")


@pytest.mark.parametrize("name", ["digits", "digits-local", "heart"])
def test_a_run_that_would_end_the_same_way_is_not_tried_again(name: str) -> None:
    """KubeRay retries whatever fails; the entry point sorts exit codes (`cluster.ended`)."""
    assert shlex.split(job(name)[0]["spec"]["entrypoint"])[2].endswith("|| python -m cluster.ended $?")


def test_a_stopped_job_has_time_to_write_a_checkpoint() -> None:
    environment = yaml.safe_load(job("digits")[0]["spec"]["runtimeEnvYAML"])["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_what_the_autoscaler_reads_off_the_manifests() -> None:
    types = node_types(cluster("overlays/gpu"))
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["driver"]["resources"] | {"memory": 0} == {"CPU": 0, "driver": 1, "memory": 0}
    assert (types["driver"]["min_workers"], types["driver"]["max_workers"]) == (1, 1)
    assert types["cpu-clients"]["resources"] == {"CPU": 4, "memory": 8 * 2**30}
    assert types["gpu-clients"]["resources"]["GPU"] == 1
    assert (types["gpu-clients"]["min_workers"], types["gpu-clients"]["max_workers"]) == (0, 4)
    assert node_types(cluster("overlays/silos"))["silo-va"]["labels"] == {"fedray.io/silo": "va"}


def test_demand_starts_the_pods_that_it_needs() -> None:
    started, unmet = place(cluster("overlays/gpu"), [({"CPU": 1}, 20), ({"GPU": 0.25, "CPU": 1}, 8), ({"driver": 0.01}, 3)])
    assert (started, unmet) == ({"driver": 1, "cpu-clients": 3, "gpu-clients": 2}, [])


def test_a_gpu_client_finds_no_room_without_a_gpu_group() -> None:
    assert place(cluster("overlays/cpu"), [({"GPU": 0.25, "CPU": 1}, 1)])[1] == [{"CPU": 1.0, "GPU": 0.25}]


def test_each_hospital_starts_its_own_group() -> None:
    found, docs = job("heart")
    asked = asks(config_of(found, docs))
    started, unmet = place(ray_clusters([found])[0], asked)
    assert unmet == []
    assert started == {"driver": 1, "silo-cleveland": 1, "silo-hungarian": 1, "silo-switzerland": 1, "silo-va": 1}
