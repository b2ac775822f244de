"""Writes the report of a query: what was asked, what was answered, what it cost and what is claimed, on one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from fedray.credentials import cleaned
from fedray.errors import ConfigError
from fedray.queries.answertext import answer_lines
from fedray.reporting.report_head import duration
from fedray.reporting.report_html import page
from fedray.reporting.report_page import PAGE, privacy_part
from fedray.reporting.report_text import table, time_text
from fedray.rounding import as_given, claim_text, rounded_up
from fedray.storage import read_json, reading, write_atomic
from fedray.tracking.note import privacy_parts


def answered(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read ``answers.json`` and ``summary.json`` of a query.

    Raises:
        ConfigError: the query is not finished.
        FedrayError: a file is damaged.
    """
    answers, summary = (read_json(folder / f"{name}.json") for name in ("answers", "summary"))
    if answers is None or summary is None:
        raise ConfigError(f"{folder}: this query has no answers yet; `fedray query CONFIG --output {folder} --resume` finishes it.")
    return answers, summary


def write_query_report(folder: Path, output: Path | None = None, verify: bool = True) -> tuple[Path, Path]:
    """Write the report of a query.

    Args:
        folder: the query's directory.
        output: the HTML file; default ``report.html`` in ``folder``. The Markdown is written beside it.
        verify: whether to check the ledgers, and say so. A query that writes its own report does not.

    Returns:
        The HTML file and the Markdown file.

    Raises:
        ConfigError: the query is not finished, or the report cannot be written.
        FedrayError: a file of the query is damaged.
    """
    answers, summary = answered(folder)
    html = (output or folder / PAGE).absolute()
    if html.suffix not in (".html", ".htm"):
        raise ConfigError(f"--output {html}: the report is a page; name a file that ends in .html.")
    with reading(folder / "answers.json", folder / "summary.json", folder / "privacy_statement.json"):
        text = "\n".join(_lines(folder, answers, summary, verify))
    try:
        write_atomic(html.with_suffix(".md"), text.encode())
        write_atomic(html, page(f"fedray: {folder.name}", text, lambda words, _: escape(words)).encode())
    except OSError as error:
        raise ConfigError(f"--output {html}: cannot be written ({error.strerror}); choose another file.") from None
    return html, html.with_suffix(".md")


def _lines(folder: Path, answers: Mapping[str, Any], summary: Mapping[str, Any], verify: bool) -> Iterator[str]:
    private, asked = summary["privacy"], answers["answers"]
    yield from (f"# {answers['query']}", "")
    count = f"{len(asked)} statistic{'' if len(asked) == 1 else 's'} of the records of {answers['clients']} clients"
    yield from (" · ".join([f"**{count}**", *privacy_parts(summary)]), "")
    rows = [("asked", ", ".join(f"{name} ({one['kind']} of {one['records']} records)" for name, one in asked.items()))]
    if answers["noise_multiplier"] is not None:
        rows.append(("claim", claim_text(private)))
        rows.append(("epsilon of this query alone", f"{rounded_up(answers['epsilon'])} at delta {as_given(answers['delta'])}"))
        rows.append(("epsilon with all charges of the ledgers", f"{rounded_up(private['epsilon'])} at delta {as_given(private['delta'])}"))
    ended = time_text((folder / "summary.json").stat().st_mtime)
    rows += [("data", cleaned(str(answers["source"]))), ("ended", f"{ended} UTC, after {duration(summary['duration_s'])}")]
    yield from table(("", ""), rows)
    yield from ("## Answers", "", "```", *answer_lines(answers, private), "```", "")
    yield from privacy_part(folder, read_json(folder / "privacy_statement.json") or {}, summary, verify)
    config = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    yield from ("## Config", "", "```yaml", cleaned(config).rstrip(), "```", "")
