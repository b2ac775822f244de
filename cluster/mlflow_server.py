"""The MLflow server with a PostgreSQL database and an S3 store: ``python -m cluster.mlflow_server``.

Everything that is secret comes from files (`cluster.secret_files`) and reaches the server by its environment, so that no command line
shows it. The server's own variables (``MLFLOW_PORT``, ``MLFLOW_WORKERS``, ``MLFLOW_ARTIFACTS_DESTINATION``, ...) count as they are.
Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from urllib.parse import quote

from cluster.secret_files import with_secrets

SECRETS = ("MLFLOW_BACKEND_STORE_URI", "POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

_DEFAULTS = {
    "MLFLOW_HOST": "0.0.0.0",
    "MLFLOW_PORT": "5000",
    "MLFLOW_WORKERS": "1",
    # Its job runner, of no use here, would take 600 MB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Setting it replaces MLflow's own: the name in a compose file, and what a port-forward comes from.
    "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow,mlflow:*,localhost:*,127.0.0.1:*",
}


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for `mlflow server`.

    Without ``MLFLOW_BACKEND_STORE_URI`` the database is ``POSTGRES_DB`` (mlflow) at ``POSTGRES_HOST`` (database:5432), for
    ``POSTGRES_USER`` (mlflow) with ``POSTGRES_PASSWORD``.

    Raises:
        SystemExit: a secret is missing or cannot be read, or no place for artifacts is named.
    """
    resolved = {**_DEFAULTS, **with_secrets(environment, SECRETS)}
    settings = {name: resolved.pop(f"POSTGRES_{name}", default) for name, default in _POSTGRES.items()}
    if "MLFLOW_BACKEND_STORE_URI" not in resolved:
        if not settings["PASSWORD"]:
            raise SystemExit("MLflow's database: set POSTGRES_PASSWORD_FILE, or MLFLOW_BACKEND_STORE_URI_FILE.")
        user, password = quote(settings["USER"], safe=""), quote(settings["PASSWORD"], safe="")
        resolved["MLFLOW_BACKEND_STORE_URI"] = f"postgresql+psycopg2://{user}:{password}@{settings['HOST']}/{settings['DB']}"
    if "MLFLOW_ARTIFACTS_DESTINATION" not in resolved:
        raise SystemExit("MLflow's artifacts: set MLFLOW_ARTIFACTS_DESTINATION, e.g. s3://fedray/mlflow.")
    return resolved


_POSTGRES = {"HOST": "database:5432", "USER": "mlflow", "DB": "mlflow", "PASSWORD": ""}


if __name__ == "__main__":
    os.execvpe("mlflow", ["mlflow", "server", *sys.argv[1:]], server_environment(os.environ))
