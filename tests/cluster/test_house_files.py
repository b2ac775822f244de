"""The image, the compose file and the `ray up` files, as far as they can be checked without an engine or a cloud."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from paths import ROOT

from cluster.mlflow_server import server_environment

CLUSTER = ROOT / "cluster"
COMPOSE: dict[str, Any] = yaml.safe_load((CLUSTER / "compose.yaml").read_text())


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here (it is among the dev dependencies)")
    return found


# The compose file.


def faults(compose: dict[str, Any]) -> Iterator[str]:
    """What the policy forbids in a compose file."""
    for name, service in compose["services"].items():
        image = service.get("image", "")
        if not re.search(r":[^:/]*\d[^:/]*$", image) or image.endswith(":latest"):
            yield f"{name}: image {image} has no version"
        if re.fullmatch(r"(0|root)(:.*)?", str(service.get("user", "0"))):
            yield f"{name}: runs as root"
        limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
        yield from (f"{name}: no limit of {limit}" for limit in ("cpus", "memory", "pids") if limit not in limits)
        if not service.get("read_only"):
            yield f"{name}: writable root file system"
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name}: keeps privileges"
        if service.get("privileged") or "docker.sock" in str(service.get("volumes")) or service.get("network_mode") == "host":
            yield f"{name}: reaches the machine"
        yield from (
            f"{name}: publishes {port} beyond this machine" for port in service.get("ports", []) if not port.startswith("127.0.0.1:")
        )
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN", variable) and not re.search(r"_(FILE|PATH)$", variable):
                yield f"{name}: {variable} in clear"
            if re.search(r"://[^/\s]*:[^/\s]*@", str(value)):
                yield f"{name}: a password in {variable}"
        if service.get("restart") != "no" and "healthcheck" not in service:
            yield f"{name}: no health check"
    with_database = {n for n, s in compose["services"].items() if "database" in s.get("networks", [])}
    if with_database != {"mlflow", "database"} or not compose["networks"]["database"].get("internal"):
        yield f"the database is reached by {sorted(with_database)}"


def test_the_compose_file_keeps_the_policy() -> None:
    assert list(faults(COMPOSE)) == []


def _service(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda compose: compose["services"][name].update(changes)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (_service("store", image="quay.io/minio/minio:latest"), "store: image"),
        (_service("store", image="localhost:5000/minio"), "store: image"),
        (_service("worker", user="0:0"), "worker: runs as root"),
        (lambda c: c["services"]["head"].pop("user"), "head: runs as root"),
        (lambda c: c["services"]["worker"]["deploy"]["resources"]["limits"].pop("memory"), "worker: no limit of memory"),
        (_service("mlflow", read_only=False), "mlflow: writable"),
        (_service("database", cap_drop=[]), "database: keeps privileges"),
        (_service("head", ports=["8265:8265"]), "head: publishes 8265:8265"),
        (_service("head", volumes=["/var/run/docker.sock:/var/run/docker.sock"]), "head: reaches the machine"),
        (_service("database", environment={"POSTGRES_PASSWORD": "hunter2"}), "database: POSTGRES_PASSWORD in clear"),
        (_service("mlflow", environment={"MLFLOW_BACKEND_STORE_URI": "postgresql://u:p@database/m"}), "mlflow: a password in"),
        (lambda c: c["services"]["store"].pop("healthcheck"), "store: no health check"),
        (_service("worker", networks=["cluster", "database"]), "the database is reached by"),
    ],
)
def test_a_planted_mistake_is_found(plant: Callable[[dict[str, Any]], None], found: str) -> None:
    compose = copy.deepcopy(COMPOSE)
    plant(compose)
    assert any(fault.startswith(found) for fault in faults(compose))


def test_the_compose_file_is_one_by_the_specification(tmp_path: Path) -> None:
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*check, str(CLUSTER / "compose.yaml"), str(CLUSTER / "mlflow.compose.yaml")], check=True, capture_output=True)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"services": {"head": {"imag": "x:1"}}}))
    assert subprocess.run([*check, str(tmp_path / "bad.yaml")], capture_output=True).returncode == 1


def test_what_services_name_exists() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith(("/", "$")) or source in COMPOSE["volumes"], f"{name}: volume {volume}"
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"]), name
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"]), name
        for variable, path in service.get("environment", {}).items():
            if str(path).startswith("/run/secrets/"):
                assert Path(path).name in service["secrets"], f"{name}: {variable}"
        build = service.get("build")
        if build:
            assert f"AS {build['target']}\n" in (CLUSTER / "Dockerfile").read_text()
            assert (CLUSTER / build["context"] / build["dockerfile"]).exists()


# The image.


def test_the_image_passes_the_linter(tmp_path: Path) -> None:
    lint = [tool("hadolint"), "--failure-threshold", "style"]
    done = subprocess.run([*lint, str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN pip install ray\n")
    assert subprocess.run([*lint, str(tmp_path / "Dockerfile")], capture_output=True).returncode == 1


def in_the_build_context(path: str) -> bool:
    """Whether the engine gets a file, by the few forms of pattern that the ignore file uses."""
    first, *others = [line for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert all(other.startswith("!") for other in others)
    forms = [re.escape(other[1:]).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*") for other in others]
    return any(re.fullmatch(form, path) for form in forms)


def test_no_secret_gets_into_the_build_context() -> None:
    for path in (
        "cluster/secrets/ray_token",
        "cluster/host.key",
        "configs/.env",
        "fedray/id_rsa",
        "fedray/data/ca.pem",
        "k8s/secrets/s3",
        ".env",
    ):
        assert not in_the_build_context(path), path


def test_the_image_runs_as_a_user_and_takes_what_the_build_context_has() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    final = {stage.split()[0]: stage for stage in re.split(r"^FROM \S+ AS ", text, flags=re.MULTILINE)[1:]}
    for target in ("fedray", "mlflow"):
        assert re.findall(r"^USER (\S+)", final[target], re.MULTILINE) == ["1000:1000"]
        assert not re.search("^ENTRYPOINT", final[target], re.MULTILINE), "KubeRay and ray up start shells"
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for source in line.split():
            path = ROOT / source
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix == ".py" or source == "configs"]
            assert path.exists(), source
            assert all(in_the_build_context(p.relative_to(ROOT).as_posix()) for p in files), source
    pinned = (ROOT / "constraints.txt").read_text()
    for package in ("torch", "boto3", "mlflow", "psycopg2-binary", "ray"):
        assert re.search(rf"^{package}==", pinned, re.MULTILINE), package


# `ray up`.


@pytest.mark.parametrize(("name", "workers"), [("aws", {"driver": 1, "cpu": 0, "gpu": 0}), ("on-premises", {"local.cluster.node": 3})])
def test_the_ray_up_files_are_what_ray_takes(name: str, workers: dict[str, int]) -> None:
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "ray-up" / f"{name}.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert {k: v["min_workers"] for k, v in prepared["available_node_types"].items() if k != "head"} == workers
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_worker": 3}, schema)


@pytest.mark.parametrize("name", ["aws", "on-premises"])
def test_ray_up_nodes_ask_for_a_token_and_have_pinned_images(name: str) -> None:
    config = yaml.safe_load((CLUSTER / "ray-up" / f"{name}.yaml").read_text())
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    path = next(o for o in options if "RAY_AUTH_TOKEN_PATH=" in o).partition("=")[2]
    assert path in config["file_mounts"]
    images = re.findall(r"image: \"?([^\s\",]+)", (CLUSTER / "ray-up" / f"{name}.yaml").read_text())
    assert images
    assert all(re.search(r":\d", image) for image in images)
    assert all("0.0.0.0" not in command for command in config["head_start_ray_commands"])


# MLflow for hosts of one's own.


def mlflow_for_hosts() -> tuple[dict[str, Any], str]:
    """The MLflow service of compose.yaml with mlflow.compose.yaml over it, as compose merges them; and the address that hosts are given."""
    options = yaml.safe_load((CLUSTER / "ray-up" / "on-premises.yaml").read_text())["docker"]["run_options"]
    given = next(o for o in options if "MLFLOW_TRACKING_URI=" in o).partition("=")[2]
    text = (CLUSTER / "mlflow.compose.yaml").read_text()
    text = re.sub(r"\$\{FEDRAY_MLFLOW_ADDRESS(:\?[^}]*)?\}", str(urlsplit(given).hostname), text)
    base, over = COMPOSE["services"]["mlflow"], yaml.safe_load(text)["services"]
    assert set(over) == {"mlflow"}
    merged = base | {"environment": base["environment"] | over["mlflow"]["environment"], "ports": base["ports"] + over["mlflow"]["ports"]}
    return merged, given


def test_hosts_of_ones_own_reach_an_mlflow_that_answers_them() -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    service, given = mlflow_for_hosts()
    asked = urlsplit(given)
    config = yaml.safe_load((CLUSTER / "ray-up" / "on-premises.yaml").read_text())
    assert asked.hostname == config["provider"]["head_ip"]
    assert f"{asked.netloc}:5000" in service["ports"], "published where the hosts ask"
    variables = service["environment"] | {"POSTGRES_PASSWORD": "x"}
    served = server_environment({k: v for k, v in variables.items() if not k.endswith("_FILE")})
    assert (served["MLFLOW_HOST"], served["MLFLOW_PORT"]) == ("0.0.0.0", str(asked.port))
    allowed = served["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert is_allowed_host_header(allowed, asked.netloc)
    assert is_allowed_host_header(allowed, "127.0.0.1:5000"), "its own health check"
    assert not is_allowed_host_header(allowed, "evil.example:5000")
    alone = COMPOSE["services"]["mlflow"]
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" not in alone["environment"], "the compose file alone keeps to this machine"
