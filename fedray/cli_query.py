"""``fedray query``: statistics of the clients' records, charged to the ledgers that training charges."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from fedray import credentials, logs
from fedray.rounding import as_given, rounded_up


@click.command("query")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--output", help="Output directory; default runs/NAME (runs/NAME-2, ... where that exists).")
@click.option(
    "--resume", is_flag=True, help="Ask, and charge, the clients that are missing in --output (default: the newest of this name)."
)
@click.option("--json", "as_json", is_flag=True, help="Print answers.json.")
def ask_query(config: Path, overrides: tuple[str, ...], output: str | None, resume: bool, as_json: bool) -> None:
    """Ask the clients for statistics: fedray query CONFIG [KEY=VALUE ...]. Exit code 3 where a budget would be exceeded.

    Every answer is noised at the clients and charged to the same ledgers as training; `fedray plan CONFIG` prices it beforehand.
    """
    from fedray.queryconfig import load_query

    credentials.load()
    resolved = load_query(config, overrides)
    logs.setup(resolved.name)
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    from fedray.experiment.origin import Origin
    from fedray.queries.queryrun import query
    from fedray.queries.querytracking import send_query

    def note(text: str) -> None:
        click.echo(logs.shown(f"{resolved.name}: {text}", sys.stderr), err=True)

    result = query(resolved, output=output, resume=resume, note=note)
    click.echo(json.dumps(result.answers, indent=2) if as_json else "\n".join(answer_lines(result.answers, result.summary["privacy"])))
    if resolved.tracking.enabled:
        note(send_query(resolved, result, Origin.here(overrides)))
    note(f"answers.json is in {result.output}")


def resolved_text(config: Path, overrides: tuple[str, ...]) -> str:
    """A query's config with all defaults filled in, as YAML."""
    from fedray.queryconfig import dump_query, load_query

    return dump_query(load_query(config, overrides))


def price(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print what a query would cost; raises BudgetReached if a budget does not allow it."""
    from fedray.errors import BudgetReached
    from fedray.queryconfig import load_query

    resolved = load_query(config, overrides)
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    from fedray.queries.preparedquery import prepare_query
    from fedray.queries.queryprice import price_query, price_text

    found = price_query(prepare_query(resolved))
    click.echo(json.dumps(found, indent=2) if as_json else price_text(found))
    if found["refusal"]:
        raise BudgetReached(found["refusal"])


def answer_lines(answers: Mapping[str, Any], private: Mapping[str, Any]) -> Iterator[str]:
    """The answers as text: a line for each number with its interval, and what they cost."""
    for name, one in answers["answers"].items():
        yield f"{name}  ({one['kind']} of {one['records']} {one['of'].replace('_', '-')} records)"
        yield from (f"  {line}" for line in _lines(one))
    if answers["noise_multiplier"] is None:
        yield "NOT PRIVATE: exact answers, charged to nobody."
        return
    yield (
        f"epsilon {rounded_up(answers['epsilon'])} for this query, {rounded_up(private['epsilon'])} with all charges of the ledgers, "
        f"at delta {as_given(answers['delta'])}" + ("" if answers["claim"] == "valid" else f"; claim {answers['claim']}")
    )


def _lines(one: Mapping[str, Any]) -> Iterator[str]:
    columns = one.get("columns")
    if isinstance(columns, Mapping):
        for column, found in columns.items():
            for entry in found if isinstance(found, list) else [found]:
                yield f"{column}: {', '.join(_numbers(entry))}"
    elif "counts" in one and "labels" in one and "intervals" in one:
        yield ", ".join(f"{label} {count:.1f}" for label, count in zip(one["labels"], one["counts"], strict=True))
    elif "counts" in one and "edges" in one:
        edges = one["edges"]
        yield ", ".join(f"[{a:g}, {b:g}) {count:.1f}" for a, b, count in zip(edges, edges[1:], one["counts"], strict=False))
    elif "covariance" in one:
        yield from (f"{name}: {', '.join(f'{v:.4g}' for v in row)}" for name, row in zip(one["columns"], one["covariance"], strict=True))
    elif "counts" in one:
        yield from (f"{label}: {', '.join(f'{v:.1f}' for v in row)}" for label, row in zip(one["labels"], one["counts"], strict=True))
    rest = {key: value for key, value in one.items() if key not in ("records", "noise_std", "margin", "count_margin")}
    text = ", ".join(_numbers(rest))
    if text:
        yield text


def _numbers(entry: Mapping[str, Any]) -> Iterator[str]:
    """The single numbers of an answer, each with its interval."""
    for key, value in entry.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = entry.get(f"{key}_interval") or (entry.get("interval") if key == "value" else None) or (None, None)
            yield f"{key.replace('_', ' ')} {value:.5g}" + ("" if low is None else f" [{low:.5g}, {high:.5g}]")
