"""Gathers a finished run's artifacts, tags and model from its output directory, and sends them to MLflow.

Gathering uses files only; sending may fail part-way and be repeated.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.clientfigures import FRONTS
from fedray.credentials import cleaned
from fedray.errors import FedrayError
from fedray.rounding import claim_text, rounded_down, rounded_up
from fedray.storage import read_json
from fedray.tracking.charts import charts
from fedray.tracking.chartstyle import save_charts
from fedray.tracking.datainputs import describe_data, evaluated_on
from fedray.tracking.journal import State, latest_rows, not_finite, number, points
from fedray.tracking.mlflow_store import UPLOAD_PATIENCE, log, patience, reason
from fedray.tracking.modelfolder import LONGEST_TAG, ModelBuilder, SavedModel, save_model
from fedray.tracking.note import UNDER_WAY, result_text, run_note, version_note
from fedray.tracking.registry import log_final_model
from fedray.tracking.rundata import CLASS_RESULTS, RunData, client_rows, headline
from fedray.tracking.starts import StartNote, ending, last_start, read_starts

_PLAIN = (
    "partition.json",
    "privacy_statement.json",
    "privacy_statement.md",
    "summary.json",
    "rule_clients.json",
    "clusters.json",
    CLASS_RESULTS,
)
_TABLE = "clients/clients.json"
_COLUMNS = ("client", "records", "epsilon", "budget left", "rounds", "rounds left")
#: Rows up to which MLflow shows a table without delay.
_MOST_CLIENTS = 1000
#: Bytes of privacy books that are sent; larger ones stay in the run's directory.
_LARGEST_BOOKS = 64 * 2**20
_MODEL_TAGS = (
    "epsilon",
    "epsilon_unamplified",
    "epsilon_observers",
    "delta",
    "unit",
    "protects",
    "adjacency",
    "regime",
    "accountant",
    "statement",
    "ledger_sha256",
)
#: The ends of a run with which its model is kept in MLflow.
_TRAINED = ("completed", "budget_reached")
_MODEL_PARAMS = ("model.", "training.", "algorithm.", "privacy.")


@dataclass(frozen=True)
class Staged:
    """Everything to send: the files below ``files``, tags, the data sets' descriptions, the saved model, the end in Unix milliseconds."""

    files: Path
    tags: Mapping[str, str]
    datasets: Sequence[Any]
    model: SavedModel | None
    end_time: int | None

    def remove(self) -> None:
        """Delete the temporary folders."""
        shutil.rmtree(self.files, ignore_errors=True)
        if self.model is not None:
            shutil.rmtree(self.model.folder, ignore_errors=True)


#: Writes pages about a run for its reviewer; returns those that MLflow shows.
Pages = Callable[[], Sequence[Path]]


def stage(run_dir: Path, state: State, builder: ModelBuilder | None, pages: Pages | None = None) -> Staged:
    """Gather what :func:`send` sends; a part that cannot be gathered is left out and named in the log.

    Args:
        run_dir: the run's output directory.
        state: of its MLflow run.
        builder: builds the model; None: it is left out.
        pages: writes the run's report; None: it is left out.

    Raises:
        FedrayError: a file of the run is damaged.
    """
    names = ("summary", "privacy_statement", "partition", "rule_clients", "clusters")
    summary, statement, partition, *others = (read_json(run_dir / f"{name}.json") or {} for name in names)
    rows = latest_rows(run_dir)
    files = Path(tempfile.mkdtemp(prefix="fedray-artifacts-"))
    starts = read_starts(run_dir)
    tags = _tags(state, rows, summary, statement, starts)
    quality = headline(rows, summary.get("best"))
    secret = bool(statement.get("reveals_cohorts"))  # charges tell who was in a cohort, which the claim needs secret
    if secret:
        statement = _without_clients(statement)

    def copies() -> None:
        for name in _PLAIN:
            if (run_dir / name).is_file():
                shutil.copyfile(run_dir / name, files / name)
        if secret:
            (files / "privacy_statement.json").write_text(json.dumps(statement, indent=2) + "\n", encoding="utf-8")
        if (run_dir / "config.yaml").is_file():
            (files / "config.yaml").write_text(cleaned((run_dir / "config.yaml").read_text(encoding="utf-8")), encoding="utf-8")
        books = [] if secret else sorted((run_dir / "ledger").glob("*.jsonl"))
        if sum(book.stat().st_size for book in books) > _LARGEST_BOOKS:
            log.info("the books in %s are too large for MLflow and stay where they are.", run_dir / "ledger")
            books = []
        for entry in books:
            (files / "ledger").mkdir(exist_ok=True)
            shutil.copyfile(entry, files / "ledger" / entry.name)

    def table() -> None:
        columns, data = clients_table(partition, statement, others)
        if data:
            _write_clients(files, columns, data)
            tags["mlflow.loggedArtifacts"] = json.dumps([{"path": _TABLE, "type": "table"}])

    def pictures() -> None:
        if reported:  # the report has drawn them
            shutil.copytree(run_dir / "report_files", files / "figures")
        elif shown := charts(RunData.of(run_dir)):
            (files / "figures").mkdir()
            save_charts(files / "figures", shown)

    def report() -> bool:
        for page in () if pages is None else pages():
            shutil.copyfile(page, files / page.name)
        return pages is not None and (run_dir / "report_files").is_dir()

    reported = _try("the report", report)
    for what, part in (("files", copies), ("the table of clients", table), ("figures", pictures)):
        _try(what, part)
    sizes = [int(c["records"]) for c in client_rows(partition) if isinstance(c.get("records"), int)]
    datasets = _try("the data set", lambda: describe_data(partition, sizes, state.params)) or []
    sent = [str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()]
    tags["mlflow.note.content"] = run_note(quality, rows, summary, tags, state.params, partition, starts, sent)
    model = _saved_model(state, builder, rows, summary, statement, tags, quality, evaluated_on(datasets), _job(run_dir))
    return Staged(files, tags, datasets, model, _end_time(run_dir, rows))


def send(client: Any, state: State, staged: Staged, keep: Callable[[], None]) -> None:
    """Send everything; a repeated call replaces each part by the same, and logs and registers the model once.

    Args:
        client: an ``MlflowClient``.
        state: the run's state, which records the logged model.
        staged: from :func:`stage`.
        keep: saves ``state``.
    """
    from mlflow.entities import RunTag

    with patience(UPLOAD_PATIENCE):
        client.log_artifacts(state.run_id, str(staged.files))
        if staged.datasets:
            client.log_inputs(state.run_id, datasets=list(staged.datasets))
        client.log_batch(state.run_id, tags=[RunTag(k, v[:5000]) for k, v in staged.tags.items()])
    if staged.model is not None:
        log_final_model(client, state, staged.model, keep)


def clients_table(
    partition: Mapping[str, Any], statement: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a table with one row per client, the largest epsilon first: its records, epsilon, remaining budget and
    rounds, then what else is known of it, such as what the aggregation rule has of it, and its cluster; plain values only.
    """
    merged: dict[str, dict[str, Any]] = {}
    units = list(dict.fromkeys(row.get("unit") for row in client_rows(statement)))
    for document in (partition, statement, *others):
        for i, row in enumerate(client_rows(document)):
            name = str(row.get("client", row.get("name", i)))
            if document is statement:  # of a second guarantee, the columns bear its unit
                row = {(f"{row['unit']} {k}" if row.get("unit") in units[1:] else k): v for k, v in _spent(row).items()}
            plain = {k: v for k, v in row.items() if k not in ("name", "client") and isinstance(v, str | int | float | bool)}
            merged.setdefault(name, {"client": name}).update(plain)
    there = dict.fromkeys(c for row in merged.values() for c in row)
    columns = [*(c for c in _COLUMNS if c in there), *(c for c in there if c not in _COLUMNS)]
    rows = sorted(merged.values(), key=lambda row: -float(row.get("epsilon", 0.0)))
    return columns, [[row.get(c) for c in columns] for row in rows]


def _spent(row: Mapping[str, Any]) -> dict[str, Any]:
    """A client's row of the statement as columns of the table."""
    epsilon, budget, figures = number(row.get("epsilon")), row.get("budget"), dict[str, Any]()
    if epsilon is not None:
        figures["epsilon"] = float(rounded_up(epsilon))
        figures |= {} if budget is None else {"budget left": float(rounded_down(max(0.0, budget - epsilon)))}
    elif row.get("epsilon") is not None:
        figures["epsilon"] = math.inf
    mine, every = row.get("of_this_run"), row.get("participations_charged")
    figures |= {"rounds": mine, "rounds left": row.get("rounds_left")} | ({} if every == mine else {"rounds of all runs": every})
    return {name: value for name, value in figures.items() if value is not None}


def _write_clients(files: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write the table of clients; of very many only those with the largest epsilons, and all as CSV."""
    (files / _TABLE).parent.mkdir()
    shown = [["infinity" if value == math.inf else value for value in row] for row in rows[:_MOST_CLIENTS]]
    (files / _TABLE).write_text(json.dumps({"columns": list(columns), "data": shown}), encoding="utf-8")
    if len(rows) > _MOST_CLIENTS:
        with (files / _TABLE).with_name("all_clients.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])


def _without_clients(statement: Mapping[str, Any]) -> dict[str, Any]:
    """Return a privacy statement without the rows of single clients."""
    return {**statement, "clients": [], "joint": [{**line, "clients": []} for line in statement.get("joint", [])]}


def _tags(
    state: State, rows: Sequence[dict[str, Any]], summary: Mapping[str, Any], statement: Mapping[str, Any], starts: Sequence[StartNote]
) -> dict[str, str]:
    tags = dict(state.tags)
    if summary.get("status"):
        tags["fedray.stop_reason"] = str(summary["status"])
        tags["fedray.ending"] = ending(summary, starts)
    elif tags.get("fedray.ending", UNDER_WAY).startswith(UNDER_WAY):
        tags["fedray.ending"] = f"ended without a summary after {len(rows)} rounds, for its driver was lost"
    claimed = statement.get("summary") or {}
    if "claim" in claimed:
        tags["privacy/claim"] = claim_text(claimed)
    odd = not_finite(rows)
    if odd:
        tags["fedray.not_finite"] = ", ".join(f"{k} from round {r}" for k, r in odd.items())
    return tags


def _job(run_dir: Path) -> str:
    """The id under which the privacy books know the run; empty where the file is damaged."""
    try:
        found = last_start(run_dir / "run.json")
    except FedrayError:
        return ""
    return "" if found is None else found.id


def _saved_model(
    state: State,
    builder: ModelBuilder | None,
    rows: Sequence[dict[str, Any]],
    summary: Mapping[str, Any],
    statement: Mapping[str, Any],
    tags: Mapping[str, str],
    quality: str | None,
    measured_on: tuple[str, str] | None,
    job: str,
) -> SavedModel | None:
    sha256 = str(summary.get("model_sha256") or "")
    finished = state.model.get("sha256") == sha256 and "id" in state.model and ("version" in state.model or not state.register_as)
    if builder is None or not sha256 or finished or summary.get("status") not in _TRAINED:
        return None
    result = result_text(quality, summary.get("final") or {})
    about = {"ending": tags.get("fedray.ending"), "created by": tags.get("mlflow.user"), "run": state.run_name, "result": result}
    shown = {k: v for k, v in about.items() if v} | _model_tags(summary, statement, state.run_id) | {"model_sha256": sha256}
    shown |= {"ledger_run": job} if job and statement else {}
    if "privacy/claim" in tags:
        shown["claim"] = tags["privacy/claim"]
    final = [p for p in points(rows[-1]) if p.key.startswith(("eval/", *FRONTS, "privacy/epsilon"))] if rows else []
    params = {k: v for k, v in state.params.items() if k.startswith(_MODEL_PARAMS)}
    description = version_note(summary, result, state.run_name, shown)
    return save_model(builder, state.run_id, params, shown, final, sha256, description, summary["status"] == "completed", measured_on)


def _model_tags(summary: Mapping[str, Any], statement: Mapping[str, Any], run_id: str) -> dict[str, str]:
    """Return the model's privacy figures as tags, so that they can be read in the registry without the run."""
    private = summary.get("privacy") or {}
    tags = {k: _shown(k, private[k]) for k in _MODEL_TAGS if private.get(k) is not None}
    joint = private.get("joint")
    if isinstance(joint, Mapping):
        tags |= {f"joint.{k}": _shown(k, joint[k]) for k in _MODEL_TAGS if joint.get(k) is not None}
    heads = (statement.get("ledger") or {}).get("head_sha256")
    if "ledger_sha256" not in tags and heads:
        text = json.dumps(heads, sort_keys=True)
        tags["ledger_sha256"] = text if len(text) <= LONGEST_TAG else hashlib.sha256(text.encode()).hexdigest()
    if summary.get("initial"):
        tags["initial_model"] = str(summary["initial"])
    if summary.get("attack"):
        tags["attack"] = str(summary["attack"])
    if statement:
        tags["privacy_statement"] = f"runs:/{run_id}/privacy_statement.md"
    return {k: v[:LONGEST_TAG] for k, v in tags.items()}


def _shown(name: str, value: Any) -> str:
    return rounded_up(value) if name.startswith("epsilon") else str(value)


def _end_time(run_dir: Path, rows: Sequence[dict[str, Any]]) -> int | None:
    """Return the time at which the run ended (not at which it was sent), in Unix milliseconds; None if it is not known."""
    try:
        return int((run_dir / "summary.json").stat().st_mtime * 1000)
    except OSError:
        return int(float(rows[-1].get("time", 0)) * 1000) if rows else None


def _try(what: str, part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:
        log.warning("MLflow does not get %s of this run in full (%s).", what, reason(error))
        return None
