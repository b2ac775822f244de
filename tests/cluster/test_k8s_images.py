"""One registry and one tag, for what is built as for what is run; CPU and GPU images cannot be mistaken for each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from manifests import K8S, Document, documents, pods, schema_errors, title
from paths import ROOT
from test_k8s import JOBS, OVERLAYS, policy_errors

NAMES = {
    "fedray": "ghcr.io/fedray/fedray:0.2.0",
    "fedray-gpu": "ghcr.io/fedray/fedray-gpu:0.2.0",
    "fedray-mlflow": "ghcr.io/fedray/mlflow:0.2.0",
}
FOREIGN = {"docker.io/library/postgres", "quay.io/minio/minio"}
FILES = ["compose.yaml", "ray-up/aws.yaml", "ray-up/on-premises.yaml"]


def images(docs: list[Document]) -> set[str]:
    """All images but those of other projects."""
    return {c["image"] for pod in pods(docs) for _, c in pod.containers if c["image"].rpartition(":")[0] not in FOREIGN}


def make(folder: Path, *arguments: str) -> list[str]:
    """The commands of a target; `-n` shows them."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-f", "cluster/images.mk", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [part.strip() for line in done.stdout.replace("\\\n", " ").splitlines() for part in line.split("&&")]


def test_everything_that_runs_has_a_name_that_is_built() -> None:
    used = set().union(*(images(documents(directory)) for directory in [*OVERLAYS, *JOBS]))
    assert used == set(NAMES.values())
    for name in FILES:
        ours = re.findall(r"image: \"?(ghcr\.io[^\s\",]+)", (ROOT / "cluster" / name).read_text())
        assert ours, name
        assert set(ours) <= set(NAMES.values()), name


def test_what_is_built_is_tagged_pushed_and_loaded_under_the_names_that_run() -> None:
    everything = f"IMAGES={' '.join(NAMES)}"
    built = make(ROOT, "-n", "image-build", everything)
    assert [line.split(" -t ")[1] for line in built if line.startswith("docker build")] == [f"{name} ." for name in NAMES]
    assert ["TORCH_INDEX" in line for line in built if line.startswith("docker build")] == [False, True, False]
    assert [line for line in make(ROOT, "-n", "image-tag", everything) if line != "true"] == [
        f"docker tag {k} {v}" for k, v in NAMES.items()
    ]
    pushed = make(ROOT, "-n", "image-push", everything)
    assert [line for line in pushed if "push" in line] == [f"docker push {v}" for v in NAMES.values()]
    assert (
        make(ROOT, "-n", "kind-load", "KIND=test")[-1] == f"kind load docker-image --name test {NAMES['fedray']} {NAMES['fedray-mlflow']}"
    )
    assert "create secret generic fedray-registry" in make(ROOT, "-n", "pull-secret")[-1]


def test_registry_and_tag_are_set_in_one_place(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("secrets"))
    for name in ["images.mk", *FILES]:
        (tmp_path / "cluster" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "cluster" / name, tmp_path / "cluster" / name)
    for registry, tag in (("registry.example:5000/team", "1.2.0-rc.1"), ("other.example/a/b", "2.0")):  # again, too
        make(tmp_path, "images", f"REGISTRY={registry}", f"TAG={tag}")
        wanted = {f"{registry}/{name}:{tag}" for name in ("fedray", "fedray-gpu", "mlflow")}
        if tag == "2.0":
            assert images(documents(str(tmp_path / "k8s" / "overlays" / "gpu"))) == wanted
            assert images(documents(str(tmp_path / "k8s" / "jobs" / "heart"))) == {f"{registry}/fedray:{tag}"}
        for name in FILES:
            text = (tmp_path / "cluster" / name).read_text()
            assert "ghcr.io" not in text
            assert set(re.findall(rf"image: \"?({re.escape(registry)}[^\s\",]+)", text)) <= wanted
        assert f"docker push {registry}/fedray:{tag}" in make(tmp_path, "-n", "image-push")


def upgraded(folder: Path, overlay: str, *names: str) -> list[Document]:
    """An overlay of a user's, with a new tag for some images."""
    tags = "".join(f"- {{name: ghcr.io/fedray/{name}, newTag: 0.3.0}}\n" for name in names)
    (folder / "kustomization.yaml").write_text(f"resources: [{os.path.relpath(K8S / overlay, folder)}]\nimages:\n{tags}")
    return documents(str(folder))


def test_an_upgrade_leaves_gpu_pods_their_image(tmp_path: Path) -> None:
    docs = upgraded(tmp_path, "overlays/gpu", "fedray", "fedray-gpu")
    for pod in pods(docs):
        if pod.labels.get("ray.io/is-ray-node") == "yes":
            name = "fedray-gpu" if pod.labels["ray.io/group"] == "gpu-clients" else "fedray"
            assert {c["image"] for _, c in pod.containers} == {f"ghcr.io/fedray/{name}:0.3.0"}
    assert schema_errors(docs) + policy_errors(docs) == []


def test_an_upgrade_of_half_of_them_is_seen(tmp_path: Path) -> None:
    assert any("images of different versions: 0.2.0, 0.3.0" in e for e in policy_errors(upgraded(tmp_path, "overlays/gpu", "fedray")))


def test_a_pull_secret_reaches_every_pod(tmp_path: Path) -> None:
    parts = {name: os.path.relpath(K8S / name, tmp_path) for name in ("overlays/gpu", "components/pull-secret")}
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{parts['overlays/gpu']}]\ncomponents: [{parts['components/pull-secret']}]\n")
    docs = documents(str(tmp_path))
    accounts = {title(d): d.get("imagePullSecrets") for d in docs if d["kind"] == "ServiceAccount"}
    assert set(accounts) == {f"ServiceAccount/{pod.spec['serviceAccountName']}" for pod in pods(docs)}
    assert all(secrets == [{"name": "fedray-registry"}] for secrets in accounts.values())
    assert schema_errors(docs) + policy_errors(docs) == []
