"""Writes a run's report for a reviewer as one page, in Markdown and as self-contained HTML.

Uses only the files that exist in the run's directory, so that it also works for a run that has not ended.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from fedray.configfile import load_config, parse_yaml
from fedray.credentials import cleaned
from fedray.errors import ConfigError, FedrayError
from fedray.privacy.ledger.inspect import verify_all
from fedray.reporting.report_clients import at_clients, clusters
from fedray.reporting.report_faults import faults
from fedray.reporting.report_head import guarantees, head, run_name
from fedray.reporting.report_html import page
from fedray.reporting.report_text import bound, figure, metric, part, table, used, value
from fedray.rounding import rounded_up
from fedray.runfiles import CLUSTERS, RULE_CLIENTS, RunFiles
from fedray.storage import read_json, reading, write_atomic
from fedray.tracking.charts import charts
from fedray.tracking.chartstyle import Chart, Drawing, save_charts
from fedray.tracking.journal import number
from fedray.tracking.rundata import RunData, client_rows
from fedray.whole import check

log = logging.getLogger(__name__)

#: Name of the report in a run's directory.
PAGE = "report.html"

#: Most clients that the table of their scores shows.
_LOWEST = 20


def write_report(run: Path, output: Path | None = None, verify: bool = True) -> tuple[Path, Path]:
    """Write the report of a run.

    Args:
        run: the run's output directory.
        output: the HTML file; default ``report.html`` in ``run``. The Markdown and its pictures are written beside it.
        verify: whether to check the run's files and its ledgers, and say so. A run that writes its own report does not.

    Returns:
        The HTML file and the Markdown file.

    Raises:
        ConfigError: ``run`` is no run's directory, or the report cannot be written.
        FedrayError: a file of the run is damaged.
    """
    if not (run / "config.yaml").exists() and not (run / "summary.json").exists():
        raise ConfigError(f"{run}: holds neither config.yaml nor summary.json, so it is no run's directory; name one below runs/.")
    html = (output or run / PAGE).absolute()
    if html.suffix not in (".html", ".htm"):
        raise ConfigError(f"--output {html}: the report is a page; name a file that ends in .html.")
    folder, markdown = html.with_name(f"{html.stem}_files"), html.with_suffix(".md")
    lacking = check(RunFiles(run)) if verify else []
    for sentence in lacking:
        log.warning("%s", sentence)
    try:
        with reading(*(run / f"{name}.json" for name in ("summary", "partition", "privacy_statement", "class_results", "audit/audit"))):
            data = RunData.of(run)
            shown = {f"{folder.name}/{chart.name}.svg": chart for chart in charts(data)}
            text = "\n".join(_report(run, data, shown, lacking, verify))
        if shown:
            folder.mkdir(parents=True, exist_ok=True)
        drawings = dict(zip(shown, save_charts(folder, list(shown.values())), strict=True))
        write_atomic(markdown, text.encode())
        write_atomic(html, page(f"fedray: {run_name(run, data)}", text, lambda _, path: _inline(shown[path], drawings[path])).encode())
    except OSError as error:
        raise ConfigError(f"--output {html}: cannot be written ({error.strerror}); choose another file.") from None
    return html, markdown


def report_pages(run: Path, verify: bool = True) -> list[Path]:
    """Write the report of a run into its directory, see :func:`write_report`; returns the page that MLflow shows."""
    return [write_report(run, verify=verify)[0]]


def _inline(chart: Chart, drawing: Drawing) -> str:
    caption = f"<strong>{escape(chart.title)}</strong> {escape(chart.caption, quote=False)}"
    return f"<figure>{drawing.inline}<figcaption>{caption}</figcaption></figure>"


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON file; an empty dictionary if it does not exist."""
    return read_json(path) or {}


def _report(run: Path, data: RunData, shown: Mapping[str, Chart], lacking: Sequence[str], verify: bool) -> Iterator[str]:
    summary, statement, config = data.summary, data.statement, _config(run)
    yield from head(run, config, data)
    yield from _results(run, data, shown, lacking)
    yield from _what_was_run(config, _json(run / "partition.json"))
    yield from _judged(run)
    yield from privacy_part(run, statement, summary, verify)
    yield from _audit(run, bool(statement), any(line.get("unit") == "client" for line in guarantees(summary)))
    yield from faults(run, bool(guarantees(summary)[0].get("unit")))
    yield from _course(summary)
    yield from _whole_config(run, config)


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
        ("data", f"{data.get('source')}, normalised by {part(data.get('normalize'))}"),
        ("partition", f"{part(data.get('partition'))}: {partition.get('clients', '?')} clients{held}"),
        ("model", part(model) + (f", {shape['parameters']} parameters" if "parameters" in shape else "") + frozen),
        ("clients", f"{clients.get('placement')}{_groups(clients.get('groups') or [])}"),
        ("cohort", part(config.get("cohort"))),
        ("training", ", ".join(f"{k} {value(v)}" for k, v in used(training).items())),
        (
            "algorithm",
            f"{part(config.get('algorithm'))}; server {part(config.get('server'))}; aggregation {part(config.get('aggregation'))}",
        ),
        ("seed", str(config.get("seed"))),
    ]
    yield from table(("", ""), rows)


def _groups(groups: Sequence[Any]) -> str:
    return (
        f", {len(groups)} group{'s' if len(groups) > 1 else ''} with settings of {'their' if len(groups) > 1 else 'its'} own"
        if groups
        else ""
    )


def _results(run: Path, data: RunData, shown: Mapping[str, Chart], lacking: Sequence[str]) -> Iterator[str]:
    """The charts, and what is lacking. The best round is chosen by the test records, so its figure is no result and stands in a sentence."""
    yield from ("## Results", "")
    for sentence in lacking:
        yield from (f"**{sentence}**", "")
    quality, best = data.quality, data.summary.get("best") or {}
    if not data.summary.get("final"):
        yield from (f"No final evaluation; metrics.jsonl has {len(data.rows)} rounds.", "")
    elif quality in best and best.get("round") != data.summary.get("rounds"):
        yield from (
            f"The best {metric(str(quality))} of a round was {figure(best[quality])}, in round {best.get('round', '?')}. The evaluation's records chose "
            "that round, so the figure flatters; the result is the figure at the end.",
            "",
        )
    yield from at_clients(data.summary.get("final") or {})
    yield from clusters(_json(run / CLUSTERS))
    for path, chart in shown.items():
        yield from (f"![{chart.title}]({path})", "")


def _judged(run: Path) -> Iterator[str]:
    """What the aggregation rule has of single clients: those with the lowest scores."""
    rows = client_rows(_json(run / RULE_CLIENTS))
    if not rows:
        return
    muted = sum(row.get("muted") is True for row in rows)
    yield from ("## Clients as the aggregation rule judges them", "", f"{muted} of {len(rows)} clients are muted at the end.", "")
    lowest = sorted(rows, key=lambda row: number(row.get("score")) or 0.0)[:_LOWEST]
    columns = list(lowest[0])
    yield from table(columns, [[value(row.get(column)) for column in columns] for row in lowest])
    if len(rows) > len(lowest):
        yield from (f"The {len(lowest)} with the lowest scores; all are in {RULE_CLIENTS}.", "")


def privacy_part(run: Path, statement: Mapping[str, Any], summary: Mapping[str, Any], verify: bool) -> Iterator[str]:
    """Yield the Markdown lines of the part on privacy: the statement, and the ledgers, which are checked if ``verify``."""
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
    yield from ("", f"### Ledger{', checked for this report' if verify else ''}", "")
    heads = (statement.get("ledger") or {}).get("head_sha256")
    shown = {"": heads} if isinstance(heads, str) else heads or {}
    yield from (f"- head{' of ' + name if name else ''} as the statement names it: `{head}`" for name, head in shown.items())
    if not verify:
        yield from (f"- not checked by the run, which wrote this page itself; `fedray ledger verify {run.name}` checks it", "")
        return
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
            bound(a.get("lower")),
            bound(a.get("estimate")),
            rounded_up(a["epsilon"]) if a.get("epsilon") is not None else "",
            str(a.get("verdict")),
        )
        for a in told
    ]
    yield from table(("what", "lower bound (95 %)", "estimate", "proven epsilon", "verdict"), rows)
    if len(told) < len(attacks):
        names = ", ".join(str(a["what"]) for a in attacks if a not in told)
        yield from (f"Left out, because their figures may come from private records: {names}.", "")


def _course(summary: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Faults and performance", "")
    if not summary:
        yield from ("Nothing is known: there is no summary.json.", "")
        return
    counted = {k: v for k, v in (summary.get("faults") or {}).items() if v}
    rows = [(k.replace("_", " "), value(v)) for k, v in counted.items()] or [("faults", "none")]
    rows += [(k.replace("_", " "), value(v)) for k, v in (summary.get("performance") or {}).items() if v is not None]
    mlflow = summary.get("mlflow") or {}
    if mlflow.get("run_id"):
        rows.append(("MLflow run", f"{mlflow['run_id']} at {cleaned(str(mlflow.get('tracking_uri')))}"))
    yield from table(("", ""), rows)


def _whole_config(run: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """The resolved config without what is not set and what the optimiser does not use."""
    path = RunFiles(run).config
    if not path.exists():
        return
    if config:
        training = {"training": used(config["training"])} if isinstance(config.get("training"), dict) else {}
        text = yaml.safe_dump(_set(dict(config) | training), sort_keys=False, allow_unicode=True, width=90)
    else:
        text = path.read_text(encoding="utf-8", errors="replace")
    yield from ("## Config", "", "What is not set, and what the optimiser does not use, is left out; config.yaml has all.", "")
    yield from ("```yaml", cleaned(text).rstrip(), "```", "")


def _set(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section of a config without keys that are null or empty."""
    kept = {k: _set(v) if isinstance(v, dict) else v for k, v in section.items()}
    return {k: v for k, v in kept.items() if v not in (None, {}, [])}
