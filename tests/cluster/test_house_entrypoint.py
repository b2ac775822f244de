"""What the image starts, and with which environment; run as the image does it, in an environment with nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from cluster.entrypoint import command, memory_limit, object_store
from cluster.mlflow_server import server_environment

TOKEN = {"RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token"}


def test_a_head_runs_no_work_asks_for_a_token_and_sizes_its_store() -> None:
    line, environment = command(["head", "--labels=site=a"], TOKEN | {"RAY_ADDRESS": "elsewhere:6379"})
    assert line[:4] == [sys.executable, "-m", "ray.scripts.scripts", "start"]
    assert {"--head", "--block", "--num-cpus=0", "--labels=site=a"} <= set(line)
    assert any(part.startswith("--object-store-memory=") for part in line)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_ADDRESS" not in environment


def test_a_worker_joins_the_head_it_is_given_and_settings_of_the_container_count() -> None:
    assert "--address=head:6379" in command(["worker"], TOKEN)[0]
    line, environment = command(["worker"], TOKEN | {"FEDRAY_HEAD": "10.0.0.1:6379", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5"})
    assert "--address=10.0.0.1:6379" in line
    assert environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "5"


def test_anything_else_is_a_command_of_fedray() -> None:
    assert command(["run", "digits.yaml", "rounds=2"], {})[0][1:] == ["-m", "fedray", "run", "digits.yaml", "rounds=2"]
    assert command(["bucket", "fedray"], {})[0][1:] == ["-m", "cluster.bucket", "fedray"]


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_a_node_without_a_token_is_refused(kind: str) -> None:
    with pytest.raises(SystemExit, match="RAY_AUTH_TOKEN_PATH"):
        command([kind], {})


def test_without_arguments_it_says_what_to_give() -> None:
    with pytest.raises(SystemExit, match="head, worker"):
        command([], {})


def test_secrets_come_from_files_and_never_to_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k3y\n")
    line, environment = command(["worker"], TOKEN | {"AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "key"), "SSL_CERT_FILE": "/ca.pem"})
    assert environment["AWS_SECRET_ACCESS_KEY"] == "k3y"
    assert "AWS_SECRET_ACCESS_KEY_FILE" not in environment
    assert environment["SSL_CERT_FILE"] == "/ca.pem", "not a secret of ours"
    assert "k3y" not in " ".join(line)


def test_a_secret_that_is_absent_empty_or_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot be read"):
        command(["run"], {"AWS_ACCESS_KEY_ID_FILE": str(tmp_path / "absent")})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SystemExit, match="is empty"):
        command(["run"], {"AWS_ACCESS_KEY_ID_FILE": str(tmp_path / "empty")})
    with pytest.raises(SystemExit, match="keep one"):
        command(["run"], {"AWS_ACCESS_KEY_ID_FILE": str(tmp_path / "empty"), "AWS_ACCESS_KEY_ID": "x"})


def test_the_object_store_fits_memory_and_shared_memory() -> None:
    gib = 2**30
    assert object_store(10 * gib, 100 * gib) == 3 * gib
    assert object_store(10 * gib, 2 * gib) == 2 * gib * 9 // 10
    with pytest.raises(SystemExit, match="64 MiB of /dev/shm.*shm_size"):
        object_store(10 * gib, 64 * 2**20)
    assert 2**28 < memory_limit() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_mlflow_server_has_its_database_with_any_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a/b@c:d%")
    given = {
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"),
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://fedray/mlflow",
        "MLFLOW_PORT": "5001",
    }
    environment = server_environment(given)
    from sqlalchemy.engine import make_url

    url = make_url(environment["MLFLOW_BACKEND_STORE_URI"])
    assert (url.username, url.password, url.host, url.port, url.database) == ("mlflow", "a/b@c:d%", "database", 5432, "mlflow")
    assert environment["MLFLOW_PORT"] == "5001"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert not any(name.startswith("POSTGRES") for name in environment)
    with pytest.raises(SystemExit, match="POSTGRES_PASSWORD_FILE"):
        server_environment({"MLFLOW_ARTIFACTS_DESTINATION": "s3://x/y"})
    with pytest.raises(SystemExit, match="MLFLOW_ARTIFACTS_DESTINATION"):
        server_environment({"MLFLOW_BACKEND_STORE_URI": "sqlite:///x.db"})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_entry_point_runs_where_only_what_the_image_has_is_installed(tmp_path: Path) -> None:
    """The image's steps without the engine: its packages in an environment of its own, its files, its commands."""
    image = tmp_path / "image"
    subprocess.run([sys.executable, "-m", "venv", image], check=True)
    python = str(image / "bin" / "python")
    constraints = ROOT / "constraints.txt"
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "fedray", source / "fedray", ignore=shutil.ignore_patterns("__pycache__"))
    for what in ([torch], ["-c", str(constraints), f"{source}[s3]"]):
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what], capture_output=True, text=True
        )
        if done.returncode and "No matching distribution" in done.stderr:
            pytest.skip(f"no packages can be had here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    shutil.copytree(ROOT / "cluster", image / "source" / "cluster", ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": f"{image / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(image / "source"), "HOME": str(home)}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, "-m", *arguments], cwd=home, env=environment | more, capture_output=True, text=True, timeout=600)

    version = run("cluster.entrypoint", "--version")
    assert version.stdout.startswith("fedray, version"), version.stderr
    refused = run("cluster.entrypoint", "head")
    assert refused.returncode == 1
    assert refused.stderr == "head: a node needs the cluster's token; set RAY_AUTH_TOKEN_PATH to its file.\n"
    assert run("cluster.tls", str(home / "tls"), "--host", "10.0.0.1").returncode == 0
    job = run("cluster.entrypoint", "run", str(ROOT / "configs" / "digits.yaml"), "rounds=2", "--output", str(home / "out"))
    assert job.returncode == 0, job.stderr
    assert (home / "out" / "model.safetensors").exists()


def test_the_mlflow_images_entry_point_needs_nothing_of_fedray() -> None:
    script = "import sys, cluster.mlflow_server; sys.exit(any(m.partition('.')[0] in ('fedray', 'click', 'ray') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-S", "-c", script], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}).returncode == 0
