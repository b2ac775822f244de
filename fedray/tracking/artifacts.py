"""Gathers a finished run's artifacts, tags and model from its output directory, and sends them to MLflow.

Gathering uses files only; sending may fail part-way and be repeated.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.credentials import cleaned
from fedray.rounding import claim_text, rounded_up
from fedray.storage import read_json
from fedray.tracking.charts import charts
from fedray.tracking.chartstyle import save_charts
from fedray.tracking.journal import State, latest_rows, not_finite, number, points
from fedray.tracking.mlflow_store import UPLOAD_PATIENCE, log, patience, reason
from fedray.tracking.modelfolder import LONGEST_TAG, ModelBuilder, SavedModel, save_model
from fedray.tracking.registry import log_final_model
from fedray.tracking.rundata import CLASS_RESULTS, RunData, client_rows, headline

_PLAIN = ("partition.json", "privacy_statement.json", "privacy_statement.md", "summary.json", "rule_clients.json", CLASS_RESULTS)
_TABLE = "clients/clients.json"
_MODEL_TAGS = (
    "epsilon",
    "epsilon_unamplified",
    "epsilon_observers",
    "delta",
    "unit",
    "adjacency",
    "regime",
    "accountant",
    "statement",
    "ledger_sha256",
)
_MODEL_PARAMS = ("model.", "training.", "algorithm.", "privacy.")


@dataclass(frozen=True)
class Staged:
    """Everything to send: the files below ``files``, tags, the data set's description, the saved model, the end in Unix milliseconds."""

    files: Path
    tags: Mapping[str, str]
    dataset: Any | None
    model: SavedModel | None
    end_time: int | None

    def remove(self) -> None:
        """Delete the temporary folders."""
        shutil.rmtree(self.files, ignore_errors=True)
        if self.model is not None:
            shutil.rmtree(self.model.folder, ignore_errors=True)


def stage(run_dir: Path, state: State, builder: ModelBuilder | None) -> Staged:
    """Gather what :func:`send` sends; a part that cannot be gathered is left out and named in the log.

    Raises:
        FedrayError: a file of the run is damaged.
    """
    names = ("summary", "privacy_statement", "partition", "rule_clients")
    summary, statement, partition, judged = (read_json(run_dir / f"{name}.json") or {} for name in names)
    rows = latest_rows(run_dir)
    files = Path(tempfile.mkdtemp(prefix="fedray-artifacts-"))
    tags = _tags(state, rows, summary, statement)
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
        for entry in [] if secret else sorted((run_dir / "ledger").glob("*.jsonl")):
            (files / "ledger").mkdir(exist_ok=True)
            shutil.copyfile(entry, files / "ledger" / entry.name)

    def table() -> None:
        columns, data = clients_table(partition, statement, judged)
        if data:
            (files / _TABLE).parent.mkdir()
            (files / _TABLE).write_text(json.dumps({"columns": columns, "data": data}), encoding="utf-8")
            tags["mlflow.loggedArtifacts"] = json.dumps([{"path": _TABLE, "type": "table"}])

    def pictures() -> None:
        (files / "figures").mkdir()
        if not save_charts(files / "figures", charts(RunData.of(run_dir))):
            (files / "figures").rmdir()

    for what, part in (("files", copies), ("the table of clients", table), ("figures", pictures)):
        _try(what, part)
    dataset = _try("the data set", lambda: _dataset(partition, state))
    return Staged(files, tags, dataset, _saved_model(state, builder, rows, summary, statement, tags), _end_time(run_dir, rows))


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
        if staged.dataset is not None:
            client.log_inputs(state.run_id, datasets=[staged.dataset])
        client.log_batch(state.run_id, tags=[RunTag(k, v[:5000]) for k, v in staged.tags.items()])
    if staged.model is not None:
        log_final_model(client, state, staged.model, keep)


def clients_table(
    partition: Mapping[str, Any], statement: Mapping[str, Any], judged: Mapping[str, Any] | None = None
) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a table with one row per client: its records, its privacy figures, then what the aggregation rule has of it;
    plain values only.
    """
    merged: dict[str, dict[str, Any]] = {}
    units = list(dict.fromkeys(row.get("unit") for row in client_rows(statement)))
    for document in (partition, statement, judged or {}):
        for i, row in enumerate(client_rows(document)):
            name = str(row.get("client", row.get("name", i)))
            if row.get("unit") in units[1:]:  # keeps the second guarantee's figures from replacing the first's
                row = {f"{row['unit']}_{k}": v for k, v in row.items() if k not in ("name", "unit")}
            plain = {k: v for k, v in row.items() if k not in ("name", "client") and isinstance(v, str | int | float | bool)}
            merged.setdefault(name, {"client": name}).update(plain)
    columns = list(dict.fromkeys(c for row in merged.values() for c in row))
    return columns, [[row.get(c) for c in columns] for row in merged.values()]


def _without_clients(statement: Mapping[str, Any]) -> dict[str, Any]:
    """Return a privacy statement without the rows of single clients."""
    return {**statement, "clients": [], "joint": [{**line, "clients": []} for line in statement.get("joint", [])]}


def _tags(state: State, rows: Sequence[dict[str, Any]], summary: Mapping[str, Any], statement: Mapping[str, Any]) -> dict[str, str]:
    tags = dict(state.tags)
    if summary.get("status"):
        tags["fedray.stop_reason"] = str(summary["status"])
    claimed = statement.get("summary") or {}
    if "claim" in claimed:
        tags["privacy/claim"] = claim_text(claimed)
    odd = not_finite(rows)
    if odd:
        tags["fedray.not_finite"] = ", ".join(f"{k} from round {r}" for k, r in odd.items())
    tags["mlflow.note.content"] = _note(rows, summary, tags.get("privacy/claim"))
    return tags


def _note(rows: Sequence[dict[str, Any]], summary: Mapping[str, Any], claim: str | None) -> str:
    """Return the run's description: a small table in Markdown."""
    best, private = summary.get("best") or {}, summary.get("privacy") or {}
    quality = headline(rows, best)
    final = (summary.get("final") or {}).get(quality)
    lines = [
        f"**{str(summary.get('status', 'not finished')).replace('_', ' ')}** after {summary.get('rounds', len(rows))} rounds",
        "",
        "| | |",
        "|---|---|",
    ]
    if isinstance(final, int | float):
        at_best = f" (best {best[quality]:.4f} in round {best.get('round')})" if isinstance(best.get(quality), int | float) else ""
        lines.append(f"| {str(quality).removeprefix('eval/')} | {final:.4f}{at_best} |")
    if private.get("epsilon") is not None:
        delta, unit, accountant = (private.get(k) for k in ("delta", "unit", "accountant"))
        lines.append(f"| epsilon | {rounded_up(private['epsilon'])} at delta {delta}, unit {unit}, {accountant} |")
        lines.append(f"| claim | {claim or 'not stated'} |")
    lines += [f"| attack | {summary['attack']} |"] if summary.get("attack") else []
    hashes = (("model sha256", summary.get("model_sha256")), ("ledger sha256", private.get("ledger_sha256")))
    lines += [f"| {label} | `{value}` |" for label, value in hashes if value]
    return "\n".join(lines)


def _saved_model(
    state: State,
    builder: ModelBuilder | None,
    rows: Sequence[dict[str, Any]],
    summary: Mapping[str, Any],
    statement: Mapping[str, Any],
    tags: Mapping[str, str],
) -> SavedModel | None:
    sha256 = str(summary.get("model_sha256") or "")
    finished = state.model.get("sha256") == sha256 and "id" in state.model and ("version" in state.model or not state.register_as)
    if builder is None or not sha256 or finished:
        return None
    shown = _model_tags(summary, statement, state.run_id) | {"model_sha256": sha256}
    if "privacy/claim" in tags:
        shown["claim"] = tags["privacy/claim"]
    final = [p for p in points(rows[-1]) if p.key.startswith(("eval/", "fairness/", "privacy/epsilon"))] if rows else []
    params = {k: v for k, v in state.params.items() if k.startswith(_MODEL_PARAMS)}
    return save_model(builder, state.run_id, params, shown, final, sha256, _describe(summary, shown))


def _model_tags(summary: Mapping[str, Any], statement: Mapping[str, Any], run_id: str) -> dict[str, str]:
    """Return the model's privacy figures as tags, so that they can be read in the registry without the run."""
    private = summary.get("privacy") or {}
    tags = {k: str(private[k]) for k in _MODEL_TAGS if private.get(k) is not None}
    joint = private.get("joint")
    if isinstance(joint, Mapping):
        tags |= {f"joint.{k}": str(joint[k]) for k in _MODEL_TAGS if joint.get(k) is not None}
    heads = (statement.get("ledger") or {}).get("head_sha256")
    if "ledger_sha256" not in tags and heads:
        text = json.dumps(heads, sort_keys=True)
        tags["ledger_sha256"] = text if len(text) <= LONGEST_TAG else hashlib.sha256(text.encode()).hexdigest()
    if summary.get("attack"):
        tags["attack"] = str(summary["attack"])
    if statement:
        tags["privacy_statement"] = f"runs:/{run_id}/privacy_statement.md"
    return {k: v[:LONGEST_TAG] for k, v in tags.items()}


def _describe(summary: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Return a model version's description in Markdown."""
    rounds = f"Trained by fedray in {summary.get('rounds', '?')} rounds ({str(summary.get('status', 'not finished')).replace('_', ' ')})."
    if "epsilon" not in tags:
        return f"{rounds} No privacy is claimed for it. {tags.get('attack', '')}".strip()
    lines = [
        rounds,
        tags.get("statement", ""),
        f"Claim: {tags.get('claim', 'not stated')}. Unit: one {tags.get('unit')}; regime {tags.get('regime')}; epsilon "
        f"{rounded_up(_figure(tags['epsilon']))} at delta {tags.get('delta')} ({tags.get('accountant')}); ledger sha256 {tags.get('ledger_sha256')}.",
        f"The whole statement: {tags['privacy_statement']}." if "privacy_statement" in tags else "",
    ]
    return "\n\n".join(line for line in lines if line)


def _dataset(partition: Mapping[str, Any], state: State) -> Any | None:
    """Return the name, digest and sizes of the federation as an MLflow data set, without any record."""
    clients = client_rows(partition)
    if not clients:
        return None
    from mlflow.entities import Dataset, DatasetInput, InputTag

    sizes = [int(c["records"]) for c in clients if isinstance(c.get("records"), int)]
    digest = str(partition.get("digest") or hashlib.sha256(json.dumps(sizes).encode()).hexdigest())
    profile = {
        "clients": len(clients),
        "records": sum(sizes),
        "smallest_client": min(sizes, default=0),
        "largest_client": max(sizes, default=0),
    }
    source = state.params.get("data.source", "unknown")
    description = Dataset(
        name=source[:500],
        digest=digest[:8],
        source_type="fedray",
        source=json.dumps({"source": source, "partition": state.params.get("data.partition.kind"), "sha256": digest}),
        profile=json.dumps(profile),
    )
    return DatasetInput(description, tags=[InputTag("mlflow.data.context", "training")])


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


def _figure(text: str) -> float | str:
    """Return a tag's figure as a number; the text itself if it is none."""
    found = number(text)
    return text if found is None else found
