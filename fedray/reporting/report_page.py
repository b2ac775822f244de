"""Writes a run's report for a reviewer as one page, in Markdown and as self-contained HTML.

Uses only the files that exist in the run's directory, so that it also works for a run that has not ended.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedray.configfile import load_config, parse_yaml
from fedray.errors import ConfigError, FedrayError
from fedray.experiment.whole import check
from fedray.privacy.ledger.inspect import verify_all
from fedray.reporting.report_html import page
from fedray.rounding import claim_text, rounded_up
from fedray.rounds.agreed import said_of
from fedray.runfiles import RULE_CLIENTS, RunFiles
from fedray.storage import read_json, reading, write_atomic
from fedray.tracking.artifacts import client_rows
from fedray.tracking.charts import draw
from fedray.tracking.journal import latest_rows, number
from fedray.tracking.mlflow_store import masked

log = logging.getLogger(__name__)

#: Most clients that the table of their scores shows.
_LOWEST = 20


def write_report(run: Path, output: Path | None = None) -> tuple[Path, Path]:
    """Write the report of a run.

    Args:
        run: the run's output directory.
        output: the HTML file; default ``report.html`` in ``run``. The Markdown and its pictures are written beside it.

    Returns:
        The HTML file and the Markdown file.

    Raises:
        ConfigError: ``run`` is no run's directory, or the report cannot be written.
        FedrayError: a file of the run is damaged.
    """
    if not (run / "config.yaml").exists() and not (run / "summary.json").exists():
        raise ConfigError(f"{run}: holds neither config.yaml nor summary.json, so it is no run's directory; name one below runs/.")
    html = (output or run / "report.html").absolute()
    if html.suffix not in (".html", ".htm"):
        raise ConfigError(f"--output {html}: the report is a page; name a file that ends in .html.")
    folder, markdown = html.with_name(f"{html.stem}_files"), html.with_suffix(".md")
    lacking = check(RunFiles(run))
    for sentence in lacking:
        log.warning("%s", sentence)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with reading(*(run / f"{name}.json" for name in ("summary", "partition", "privacy_statement", "audit/audit"))):
            pictures = draw(folder, latest_rows(run), client_rows(_json(run / "partition.json")))
            text = "\n".join(_report(run, [p.relative_to(html.parent) for p in pictures], lacking))
        if not pictures:
            folder.rmdir()
        write_atomic(markdown, text.encode())
        name = str(_json(run / "summary.json").get("name") or run.name)
        write_atomic(html, page(f"fedray: {name}", text, lambda path: _inline(html.parent / path)).encode())
    except OSError as error:
        raise ConfigError(f"--output {html}: cannot be written ({error.strerror}); choose another file.") from None
    return html, markdown


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON file; an empty dictionary if it does not exist."""
    return read_json(path) or {}


def _report(run: Path, pictures: Sequence[Path], lacking: Sequence[str]) -> Iterator[str]:
    summary, partition, statement = (_json(run / f"{name}.json") for name in ("summary", "partition", "privacy_statement"))
    config = _config(run)
    yield from _head(run, config, summary)
    yield from _what_was_run(config, partition)
    yield from _results(run, summary, pictures, lacking)
    yield from _judged(run)
    yield from _privacy(run, statement, summary)
    yield from _audit(run, bool(statement), any(line.get("unit") == "client" for line in _guarantees(summary)))
    yield from _faults(run)
    yield from _course(summary)
    yield from _whole_config(run)


def _config(run: Path) -> dict[str, Any]:
    """Return the resolved config as plain data; empty if it cannot be read."""
    path = RunFiles(run).config
    try:
        return json.loads(load_config(path).model_dump_json())  # type: ignore[no-any-return]
    except FedrayError:  # the config is of another version or damaged: show its keys as they are
        try:
            raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, FedrayError):
            return {}
        return raw if isinstance(raw, dict) else {}


def _head(run: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    private = summary.get("privacy") or {}
    yield f"# {summary.get('name') or config.get('name') or run.name}"
    yield ""
    status = str(summary.get("status", "unfinished: there is no summary.json, so the run is going on or its driver died")).replace("_", " ")
    yield f"**{status}**" + (f" after {summary['rounds']} of {summary.get('planned_rounds', '?')} rounds" if "rounds" in summary else "")
    yield ""
    if summary.get("error"):
        yield f"It failed: {summary['error']}"
        yield ""
    rows = [(_metric(k), _number(v)) for k, v in (summary.get("final") or {}).items()]
    for line in _guarantees(summary):
        if line.get("epsilon") is not None:
            rows.append(
                (
                    f"epsilon for one {line['unit']}",
                    f"{rounded_up(line['epsilon'])} at delta {line['delta']!r}, regime {line.get('regime')}",
                )
            )
    if private.get("epsilon") is not None:
        rows.append(("claim", claim_text(private)))
    elif summary:
        rows.append(("privacy", "none: no guarantee of differential privacy is claimed"))
    rows += [("attack", str(summary["attack"]))] if summary.get("attack") else []
    rows += [("agreed data", said_of(summary["agreed"]))] if summary.get("agreed") else []
    rows += [("model sha256", f"`{summary['model_sha256']}`")] if summary.get("model_sha256") else []
    rows += [("fedray", str(summary["fedray"]))] if summary.get("fedray") else []
    yield from _table(("", ""), rows)


def _guarantees(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    private = summary.get("privacy") or {}
    return [private, private.get("joint") or {}]


def _opened(one: Mapping[str, Any], clients: bool) -> str:
    """What an opening said of a client; without numbers where whole clients are protected."""
    return f"{one['name']}: {'not ' if one['faults'] else ''}as registered" if clients else str(one["said"])


def _what_was_run(config: Mapping[str, Any], partition: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## What was run", "")
    data, model, shape = config.get("data") or {}, config.get("model") or {}, partition.get("model") or {}
    training, clients = config.get("training") or {}, config.get("clients") or {}
    sizes = [r["records"] for r in client_rows(partition) if isinstance(r.get("records"), int)]
    held = f", {sum(sizes)} training records, {min(sizes)} to {max(sizes)} a client" if sizes else ""
    frozen = f", beside a frozen base (sha256 {shape['frozen_sha256']})" if shape.get("frozen_sha256") else ""
    rows = [
        ("data", f"{data.get('source')}, normalised by {_part(data.get('normalize'))}"),
        ("partition", f"{_part(data.get('partition'))}: {partition.get('clients', '?')} clients{held}"),
        ("model", _part(model) + (f", {shape['parameters']} parameters" if "parameters" in shape else "") + frozen),
        ("clients", f"{clients.get('placement')}, {len(clients.get('groups') or [])} group(s) with settings of their own"),
        ("cohort", _part(config.get("cohort"))),
        ("training", ", ".join(f"{k} {_value(v)}" for k, v in training.items() if v not in (None, {}, []))),
        (
            "algorithm",
            f"{_part(config.get('algorithm'))}; server {_part(config.get('server'))}; aggregation {_part(config.get('aggregation'))}",
        ),
        ("seed", str(config.get("seed"))),
    ]
    yield from _table(("", ""), rows)


def _results(run: Path, summary: Mapping[str, Any], pictures: Sequence[Path], lacking: Sequence[str]) -> Iterator[str]:
    yield from ("## Results", "")
    for sentence in lacking:
        yield from (f"**{sentence}**", "")
    final, best = summary.get("final") or {}, summary.get("best") or {}
    rows = [(_metric(k), _number(v), _number(best.get(k)) if k in best else "") for k, v in final.items()]
    if rows:
        yield from _table(("metric", "final", f"best (round {best.get('round', '?')})"), rows)
    else:
        rounds = latest_rows(run)
        yield from (f"No final evaluation; {len(rounds)} round(s) are in metrics.jsonl.", "")
    for picture in pictures:
        yield from (f"![{picture.stem.replace('_', ' ')}]({picture.as_posix()})", "")


def _judged(run: Path) -> Iterator[str]:
    """What the aggregation rule has of single clients: those with the lowest scores."""
    rows = client_rows(_json(run / RULE_CLIENTS))
    if not rows:
        return
    muted = sum(row.get("muted") is True for row in rows)
    yield from ("## Clients as the aggregation rule judges them", "", f"{muted} of {len(rows)} clients are muted at the end.", "")
    lowest = sorted(rows, key=lambda row: number(row.get("score")) or 0.0)[:_LOWEST]
    columns = list(lowest[0])
    yield from _table(columns, [[_value(row.get(column)) for column in columns] for row in lowest])
    if len(rows) > len(lowest):
        yield from (f"The {len(lowest)} with the lowest scores; all are in {RULE_CLIENTS}.", "")


def _privacy(run: Path, statement: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Privacy", "")
    written = run / "privacy_statement.md"
    if written.exists():
        for line in written.read_text(encoding="utf-8", errors="replace").splitlines():
            yield f"##{line}" if line.startswith("#") else line
    elif summary and not (summary.get("privacy") or {}).get("epsilon"):
        yield from ("No guarantee of differential privacy is claimed for this run.", "")
        return
    else:
        yield from ("There is no privacy statement: the run did not come to its end. Its ledger says what was charged.", "")
    yield from ("", "### Ledger, checked for this report", "")
    heads = (statement.get("ledger") or {}).get("head_sha256")
    shown = {"": heads} if isinstance(heads, str) else heads or {}
    yield from (f"- head{' of ' + name if name else ''} as the statement names it: `{head}`" for name, head in shown.items())
    try:
        lines = list(verify_all(run))
        secret = statement.get("reveals_cohorts")
        yield from (
            [f"- {len(lines)} checks passed; how often who was charged is left out, for it would tell secret cohorts"]
            if secret
            else (f"- {line}" for line in lines)
        )
    except FedrayError as error:
        yield f"- **Not verified:** {error}"
    yield ""


def _audit(run: Path, private: bool, clients: bool) -> Iterator[str]:
    """``clients``: whole clients are protected, so that even how many records they have is left out."""
    opening = _json(run / "audit" / "opening.json")
    if opening:
        yield from ("## Opened records", "", *(f"- {_opened(one, clients)}" for one in opening["clients"]), "")
    found = next((d for p in (run / "audit" / "audit.json", run / "audit.json") if (d := _json(p))), None)
    yield from ("## Audit", "")
    if found is None:
        yield from (f"Not audited; `fedray audit {run.name}` attacks the run and gives lower bounds beside epsilon.", "")
        return
    yield from ("Lower bounds and estimates stand beside the proven epsilon, never instead of it.", "")
    if found.get("faults"):
        yield from ("**The audit contradicts the claim:**", "", *(f"- {fault}" for fault in found["faults"]), "")
    rows = [(str(c.get("what")), "", "", "", str(c.get("verdict"))) for c in found.get("checks", [])]
    attacks = found.get("attacks", [])
    told = [a for a in attacks if not private or a.get("private") is False]
    rows += [
        (
            str(a["what"]),
            _bound(a.get("lower")),
            _bound(a.get("estimate")),
            rounded_up(a["epsilon"]) if a.get("epsilon") is not None else "",
            str(a.get("verdict")),
        )
        for a in told
    ]
    yield from _table(("what", "lower bound (95 %)", "estimate", "proven epsilon", "verdict"), rows)
    if len(told) < len(attacks):
        names = ", ".join(str(a["what"]) for a in attacks if a not in told)
        yield from (f"Left out, because their figures may come from private records: {names}.", "")


def _faults(run: Path) -> Iterator[str]:
    faults = RunFiles(run).faults()
    if not faults:
        return
    yield from ("## Faults of the run", "")
    yield from _table(("round", "when (UTC)", "what", ""), [(str(f["round"]), _time(f["time"]), f["kind"], f["what"]) for f in faults])


def _course(summary: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Faults and performance", "")
    rows = [(k.replace("_", " "), _value(v)) for k, v in (summary.get("faults") or {}).items()]
    rows += [(k.replace("_", " "), _value(v)) for k, v in (summary.get("performance") or {}).items() if v is not None]
    mlflow = summary.get("mlflow") or {}
    if mlflow.get("run_id"):
        rows.append(("MLflow run", f"{mlflow['run_id']} at {masked(str(mlflow.get('tracking_uri')))}"))
    if rows:
        yield from _table(("", ""), rows)
    else:
        yield from ("Nothing is known: there is no summary.json.", "")


def _whole_config(run: Path) -> Iterator[str]:
    path = RunFiles(run).config
    if path.exists():
        yield from ("## Config", "", "```yaml", masked(path.read_text(encoding="utf-8", errors="replace")).rstrip(), "```", "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def _part(part: Any) -> str:
    """Return ``kind`` with its arguments as text."""
    if not isinstance(part, Mapping):
        return str(part)
    rest = ", ".join(f"{k} {_value(v)}" for k, v in part.items() if k != "kind" and v is not None)
    return f"{part.get('kind')}" + (f" ({rest})" if rest else "")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return _part(value) if "kind" in value else ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    return ", ".join(map(_value, value)) if isinstance(value, list) else str(value)


def _metric(name: str) -> str:
    return name.removeprefix("eval/")


def _number(value: Any) -> str:
    found = number(value)
    return str(value) if found is None else f"{found:.4f}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _bound(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, int | float) and math.isfinite(value) else str(value)
