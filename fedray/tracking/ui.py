"""The MLflow UI: its command, the addresses of a run's pages, and a prepared dashboard.

MLflow groups charts by the part of a metric's name before the first slash, in alphabetical order. The dashboard shows accuracy against
epsilon first. It is a shared view, which MLflow stores as an undocumented experiment tag, so an error here never fails a run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fedray.clientfigures import MODELS
from fedray.errors import ConfigError
from fedray.tracking.mlflow_store import artifact_root, log, masked, sqlite_path

VIEW = "fedray"
EPSILON = "privacy/epsilon"
#: Tags in which runs must be alike for their epsilons and scores to share an axis, in words.
_NO_COMMON_AXIS = {"privacy/unit": "the protected unit", "fedray.dataset": "the data set"}
_COMPARED = 50
_NOTE = """\
How much accuracy does each epsilon buy, and for whom?

Each run is one federated training by fedray; `step` is the round. Metrics: `eval/` the global model on held-out records,
`noise/` how much of it is noise, `fairness/`, `global/`, `fine_tuned/` across clients, `privacy/` what was spent, `round/` who took part, `time/` and `traffic/` what it cost.

Epsilon is a claim only where the tag `privacy/claim` says `valid`, for the unit that `privacy/unit` names. Each run's artifacts have
`report.html` (all on one page), `privacy_statement.md` (what is claimed, for reviewers) and the books in `ledger/`.
"""


def ui_command(uri: str, port: int = 5000, host: str = "127.0.0.1") -> list[str]:
    """Return the command that serves the MLflow UI for a store.

    Args:
        uri: a SQLite or database URI.
        port: port to listen on.
        host: address of the interface to listen on.

    Raises:
        ConfigError: the URI is a server, which already has a UI, or no store that the UI can serve.
    """
    if uri.startswith(("http://", "https://")):
        raise ConfigError(f"tracking.uri: {masked(uri)} is a server with a UI of its own; open that address in a browser.")
    if "://" not in uri or uri.startswith("databricks"):
        raise ConfigError(
            f"tracking.uri: '{masked(uri)}' is no store that the MLflow UI can be started over; use sqlite:///PATH/mlflow.db."
        )
    # The job runner takes 600 MB, and runs do not use it.
    settings = ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true"]
    command = ["env", *settings, sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    root = artifact_root(uri)
    if root is not None:
        command += ["--default-artifact-root", root.as_uri()]
    return [*command, "--host", host, "--port", str(port), "--workers", "1"]


def ui_links(uri: str, experiment_id: str, run_id: str, port: int = 5000) -> dict[str, str]:
    """Return the addresses of the ``run`` and of its experiment's ``dashboard``; empty for a store without a UI.

    Those of a SQLite store are valid while ``fedray ui`` runs on ``port``.
    """
    if sqlite_path(uri) is not None:
        base = f"http://127.0.0.1:{port}"
    elif uri.startswith(("http://", "https://")):
        base = masked(uri).replace(":***@", "@").rstrip("/")
    else:
        return {}
    experiment = f"{base}/#/experiments/{experiment_id}"
    return {
        "run": f"{experiment}/runs/{run_id}?workflowType=machine_learning",
        "dashboard": f"{experiment}/runs?compareRunsMode=CHART&viewStateShareKey={VIEW}&workflowType=machine_learning",
    }


def dress_experiment(client: Any, experiment: Any, headline: str, tags: Mapping[str, str] | None = None) -> None:
    """Give an experiment its note (unless somebody else wrote one) and its dashboard; failures are only logged.

    Args:
        client: an ``MlflowClient``.
        experiment: the MLflow experiment.
        headline: the metric that runs are compared by, e.g. ``eval/accuracy``.
        tags: of the run that joins the experiment. Where its protected unit or its data set is another than that of a run there, note and
            dashboard say that the runs cannot be compared on one axis.
    """
    try:
        differ = _differences(client, experiment, tags or {})
        wanted = {f"mlflow.sharedViewState.{VIEW}": json.dumps(dashboard(headline, differ))}
        if experiment.tags.get("mlflow.note.content", _NOTE).endswith(_NOTE):
            said = f"The runs here differ in {' and in '.join(differ)}: compare only runs that are alike in it.\n\n" if differ else ""
            wanted["mlflow.note.content"] = said + _NOTE
        if "mlflow.experimentKind" not in experiment.tags:
            wanted["mlflow.experimentKind"] = "custom_model_development"
        for key, value in wanted.items():
            if experiment.tags.get(key) != value:
                client.set_experiment_tag(experiment.experiment_id, key, value)
    except Exception as error:
        log.debug("the dashboard could not be set up: %s", error)


def _differences(client: Any, experiment: Any, tags: Mapping[str, str]) -> list[str]:
    """What the runs of an experiment differ in besides settings, in words with the values."""
    found = []
    for tag, what in _NO_COMMON_AXIS.items():
        mine = tags.get(tag, "")
        if mine and "'" not in mine:
            others = client.search_runs([experiment.experiment_id], f"tags.`{tag}` != '{mine}'", max_results=_COMPARED)
            values = sorted({mine, *(run.data.tags[tag] for run in others if tag in run.data.tags)})
            found += [f"{what} ({', '.join(values)})"] if len(values) > 1 else []
    return found


def dashboard(headline: str, differ: Sequence[str] = ()) -> dict[str, Any]:
    """Return the state of the charts page that compares runs by ``headline`` and epsilon; ``differ``: in what its runs differ."""
    sections = {
        "head": "Utility and privacy" + (f"; runs differ in {' and in '.join(differ)}" if differ else ""),
        "cost": "Clients, time, traffic",
        "fair": "Fairness across clients",
        "compare": "Settings of the runs",
    }
    loss, name = "eval/loss", headline.removeprefix("eval/")
    charts = [
        _line("fedray-tradeoff", "head", [headline], against=EPSILON),
        _line("fedray-utility", "head", [headline]),
        _line("fedray-epsilon", "head", [EPSILON]),
        *([_line("fedray-loss", "head", [loss])] if headline != loss else []),
        _line("fedray-fair", "fair", [f"fairness/{name}_worst", f"fairness/{name}_p10", f"fairness/{name}_p50"]),
        _line("fedray-models", "fair", [f"{model}/{name}_mean" for model in MODELS]),
        _line("fedray-clients", "cost", ["round/clients_completed", "round/clients_failed"]),
        _line("fedray-seconds", "cost", ["time/round_s"]),
        _line("fedray-uplink", "cost", ["traffic/uplink_mb"]),
        _parallel("fedray-settings", "compare", ["privacy.target_epsilon", "training.lr"], [headline]),
    ]
    return {
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": u, "name": n, "display": u != "compare", "isReordered": False, "deleted": False, "isGenerated": False}
            for u, n in sections.items()
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "selectedColumns": [
            f"metrics.`{headline}`",
            f"metrics.`{EPSILON}`",
            "params.`privacy.regime`",
            "params.`privacy.target_epsilon`",
            "params.`training.lr`",
            "tags.`privacy/claim`",
            "tags.`fedray.ending`",
        ],
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


def _line(uuid: str, section: str, keys: list[str], against: str = "") -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": uuid,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 10,
        "metricKey": keys[0],
        "selectedMetricKeys": keys,
        "selectedYAxisMetricKey": "metric",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "xAxisKey": "metric" if against else "step",
        "selectedXAxisMetricKey": against,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "range": {},
    }


def _parallel(uuid: str, section: str, params: list[str], metrics: list[str]) -> dict[str, Any]:
    return {
        "type": "PARALLEL",
        "uuid": uuid,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        "selectedParams": params,
        "selectedMetrics": metrics,
    }
