"""``fedray query``: statistics of the clients' records, charged to the ledgers that training charges."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from fedray import credentials, logs


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
    from fedray.queries.answertext import answer_lines
    from fedray.queries.queryrun import query
    from fedray.queries.querytracking import send_query
    from fedray.tracking.mlflow_store import TrackingError

    def note(text: str) -> None:
        click.echo(logs.shown(f"{resolved.name}: {text}", sys.stderr), err=True)

    result = query(resolved, output=output, resume=resume, note=note)
    click.echo(json.dumps(result.answers, indent=2) if as_json else "\n".join(answer_lines(result.answers, result.summary["privacy"])))
    if resolved.tracking.enabled:
        try:
            note(send_query(resolved, result, Origin.here(overrides)))
        except TrackingError as error:  # the clients are charged, so the query is not asked again
            note(f"{error} MLflow lacks the answers; `fedray sync {result.output}` sends them later.")
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


def asked_in(place: Path) -> bool:
    """Whether a directory is that of a query."""
    from fedray.configfile import is_query
    from fedray.errors import FedrayError

    try:
        return is_query(place / "config.yaml")
    except FedrayError:  # a run's report does without its config
        return False


def report(place: Path, output: Path | None) -> tuple[Path, Path]:
    """Write the report of a query's directory."""
    from fedray.queries.queryreport import write_query_report

    return write_query_report(place, output)


def sync(place: Path, uri: str | None) -> str:
    """Send MLflow a query that it lacks; returns a sentence on it."""
    from fedray.queries.querytracking import sync_query

    return f"{place}: {sync_query(place, uri)}"
