"""The MLflow server as the compose file starts it: a real PostgreSQL, an S3 store, its own bucket, secrets in files."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import psutil
import pytest
from objectstore import object_store
from paths import ROOT
from processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def database() -> Iterator[tuple[int, str]]:
    """A PostgreSQL with the database and user mlflow: its port and the password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL server here (Debian: postgresql)")
    as_user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    directory = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    port, password = free_port(), secrets.token_urlsafe(24) + "/@:%"
    (directory / "password").write_text(password)
    if as_user:
        for path in (directory, directory / "password"):
            shutil.chown(path, "postgres", "postgres")
    common = {"cwd": directory, "stdout": subprocess.DEVNULL, **as_user}
    initdb = [programs[-1] / "initdb", "-D", directory / "data", "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", directory / "password"]
    subprocess.run(initdb, check=True, **common)  # type: ignore[call-overload]
    line = [programs[-1] / "postgres", "-D", directory / "data", "-p", str(port), "-k", directory, "-c", "listen_addresses=127.0.0.1"]
    server = subprocess.Popen(line, stderr=subprocess.DEVNULL, **common)  # type: ignore[call-overload]
    environment = os.environ | {"PGPASSWORD": password}
    create = [programs[-1] / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
    try:
        wait_until(lambda: subprocess.run(create, env=environment, capture_output=True).returncode == 0, "PostgreSQL is up", 60)
        yield port, password
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(directory, ignore_errors=True)


def test_the_server_keeps_rows_in_postgres_and_files_in_the_store(database: tuple[int, str], tmp_path: Path) -> None:
    database_port, password = database
    for name, value in (("database", password), ("user", "test"), ("key", "test")):
        (tmp_path / name).write_text(value + "\n")
    with object_store() as (address, _):
        endpoint = parse_qs(urlsplit(address).query)["endpoint_url"][0]
        s3 = {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID_FILE": str(tmp_path / "user"),
            "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "key"),
        }
        bare = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        for _ in range(2):  # the second time it is there already
            subprocess.run(
                [sys.executable, "-m", "cluster.entrypoint", "bucket", "fedray"], env=bare | s3, cwd=tmp_path, check=True, timeout=120
            )
        port = free_port()
        environment = bare | s3 | {
            "MLFLOW_PORT": str(port),
            "MLFLOW_S3_ENDPOINT_URL": endpoint,
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://fedray/mlflow",
            "POSTGRES_HOST": f"127.0.0.1:{database_port}",
            "POSTGRES_PASSWORD_FILE": str(tmp_path / "database"),
        }  # fmt: skip
        with open(tmp_path / "log", "w") as log:
            server = psutil.Popen([sys.executable, "-m", "cluster.mlflow_server"], env=environment, cwd=tmp_path, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: _status(f"{url}/health") == 200 or server.poll() is not None, "MLflow is up", 300)
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert _status(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", Host="evil.example") == 403
            assert _status(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", Host="mlflow:5000") == 200
            lines = [" ".join(p.cmdline()) for p in [server, *server.children(recursive=True)]]
            assert not any(password in line for line in lines), "a command line shows the password"
            assert password not in (tmp_path / "log").read_text()

            from mlflow import MlflowClient

            client = MlflowClient(url)
            run = client.create_run("0").info
            client.log_metric(run.run_id, "eval/accuracy", 0.9, step=1)
            client.log_text(run.run_id, "kept", "note.txt")
            assert client.get_run(run.run_id).data.metrics == {"eval/accuracy": 0.9}
        finally:
            tree = [server, *server.children(recursive=True)]
            server.terminate()
            for process in psutil.wait_procs(tree, timeout=600)[1]:
                process.kill()
        keys = boto3.client("s3", endpoint_url=endpoint).list_objects_v2(Bucket="fedray")["Contents"]
        assert [k["Key"] for k in keys] == [f"mlflow/0/{run.run_id}/artifacts/note.txt"]


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
