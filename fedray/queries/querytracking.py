"""The MLflow run of a query: what was asked, what was answered and what it cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedray import __version__
from fedray.experiment.origin import Origin
from fedray.queries.queryreport import answered, write_query_report
from fedray.queries.queryrun import QueryResult
from fedray.queryconfig import QueryConfig, dump_query, load_query
from fedray.rounding import as_given, rounded_up
from fedray.tracking.mlflow_store import UPLOAD_PATIENCE, artifact_root, connect, patience, resolve_uri
from fedray.tracking.mlflow_tracker import flat_params
from fedray.tracking.ui import ui_links

_MOST = 200  # answers that become metrics
_FILES = ("answers.json", "report.html", "privacy_statement.json", "privacy_statement.md", "config.yaml", "summary.json")


def sync_query(folder: Path, uri: str | None = None) -> str:
    """Send MLflow a query that it lacks, from the query's files; returns a sentence that names the run.

    Args:
        folder: the query's directory.
        uri: another store than the query's own.

    Raises:
        ConfigError: the query is not finished.
        TrackingError: the store cannot be used.
    """
    config = load_query(folder / "config.yaml")
    if uri is not None:
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})
    return send_query(config, QueryResult(folder, *answered(folder)), None)


def send_query(config: QueryConfig, result: QueryResult, origin: Origin | None) -> str:
    """Log a finished query as an MLflow run with the tag ``fedray.kind`` = query, unless the store has it; returns a sentence on the run.

    Args:
        config: of the query.
        result: its answers.
        origin: by whom and how it was asked; None where only its files are known.

    Raises:
        TrackingError: the store cannot be used.
    """
    from mlflow.entities import Metric, Param, RunTag

    uri, own = resolve_uri(config.tracking, result.output.parent), list[str]()

    def end(client: Any, status: str = "FAILED") -> None:
        for run_id in own:
            client.set_terminated(run_id, status)

    def begin(client: Any) -> tuple[str, str]:
        experiment = _experiment(client, uri, config.experiment or config.name)
        sent = client.search_runs([experiment], f"tags.`fedray.query` = '{result.answers['run']}' and attributes.status = 'FINISHED'")
        if sent:
            return experiment, str(sent[0].info.run_id)
        run_id = str(client.create_run(experiment, run_name=result.output.name).info.run_id)
        own.append(run_id)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in list(metrics_of(result))[:_MOST]]
        client.log_batch(run_id, metrics=metrics, tags=[RunTag(k, v[:5000]) for k, v in tags_of(config, result, origin).items()])
        params = flat_params(json.loads(json.dumps(_sections(config))))
        plan = (
            {} if result.answers["noise_multiplier"] is None else {"privacy.noise_multiplier": f"{result.answers['noise_multiplier']:.6g}"}
        )
        client.log_batch(run_id, params=[Param(k, v[:6000]) for k, v in list((params | plan).items())[:100]])
        return experiment, run_id

    client, (experiment, run_id) = connect(uri, begin, end, config.tracking.open_timeout)
    link = ui_links(uri, experiment, run_id).get("run")
    if not own:
        return f"MLflow has it already: {link or f'run {run_id}'}"
    write_query_report(result.output, verify=False)
    with patience(UPLOAD_PATIENCE):
        try:
            for name in _FILES:
                if (result.output / name).exists():
                    client.log_artifact(run_id, str(result.output / name))
        except BaseException:
            with suppress(Exception):
                end(client)
            raise
        end(client, "FINISHED")
    return f"logged to MLflow: {link or f'run {run_id}'}"


def tags_of(config: QueryConfig, result: QueryResult, origin: Origin | None) -> dict[str, str]:
    """The run's tags and description."""
    private, answers = result.summary["privacy"], result.answers
    claim = answers["claim"] if answers["noise_multiplier"] is not None else "none"
    what = ", ".join(f"{name} ({one['kind']})" for name, one in answers["answers"].items())
    if claim == "valid":
        cost = f"epsilon {rounded_up(answers['epsilon'])} at delta {as_given(answers['delta'])}; with all earlier charges {rounded_up(private['epsilon'])}"
    else:
        cost = "NOT PRIVATE: exact answers" if claim == "none" else f"**Claim {claim}.**"
    return {
        "mlflow.note.content": f"{cost}. Asked of {answers['clients']} clients: {what}.",
        "fedray.kind": "query",
        "fedray.query": str(answers["run"]),
        "fedray.dataset": config.data.source.rpartition("/")[2],
        "fedray.privacy": "+".join(config.privacy.regimes) or "none",
        "fedray.directory": str(result.output),
        "fedray.version": __version__,
        "privacy/claim": claim,
        **({} if origin is None else origin.tags()),
        **{f"privacy/{key}": str(private[key]) for key in ("unit", "epsilon", "delta", "ledger_sha256") if private.get(key) is not None},
    }


def metrics_of(result: QueryResult) -> Iterator[tuple[str, float]]:
    """Epsilon, and every single number among the answers (no lists)."""
    private, answers = result.summary["privacy"], result.answers
    if isinstance(private.get("epsilon"), float):
        yield "privacy/epsilon", private["epsilon"]
    if answers["epsilon"] is not None and math.isfinite(answers["epsilon"]):
        yield "privacy/epsilon_query", answers["epsilon"]
    yield from _numbers(answers["answers"], "answer")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if key not in ("records", "noise_std", "margin", "count_margin"):
                yield from _numbers(entry, f"{name}/{key}" if key not in ("columns", "value") else name)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name), float(value)


def _sections(config: QueryConfig) -> Mapping[str, Any]:
    from fedray.configfile import parse_yaml

    sections = parse_yaml(dump_query(config), "config")
    return {key: value for key, value in sections.items() if key in ("name", "seed", "data", "clients", "queries", "judged", "privacy")}


def _experiment(client: Any, uri: str, name: str) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    root = artifact_root(uri)
    return str(client.create_experiment(name, artifact_location=root.as_uri() if root else None))
