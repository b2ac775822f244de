"""The command that says what a client's data went into, and whose data went into a model: ``fedray lineage``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("places", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--client", help="What this client's data went into: runs, rounds, checkpoints, versions, queries, and the bound that remains."
)
@click.option("--model", help="Whose data went into it: a run's directory, a model's SHA-256, or models:/NAME/VERSION or @ALIAS.")
@click.option("--uri", "stores", multiple=True, help="Tracking URI of a further MLflow store; those of the runs are read anyway.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lineage(places: tuple[Path, ...], client: str | None, model: str | None, stores: tuple[str, ...], as_json: bool) -> None:
    """Follow data through the runs, sweeps and queries in PLACES (default: runs) and what began with their models."""
    from fedray.reporting.lineage import of_client, of_model, read_lineage
    from fedray.reporting.lineage_text import client_text, model_text

    if (client is None) == (model is None):
        raise click.UsageError("give --client NAME or --model WHAT")
    where = list(places) or [Path("runs")]
    if model is not None and Path(model).is_dir() and not places:
        where = [Path(model).absolute().parent]
    found = read_lineage(where, stores)
    if client is not None:
        report = of_client(client, found)
        click.echo(json.dumps(report, indent=2) if as_json else client_text(report))
    elif model is not None:
        report = of_model(model, found)
        click.echo(json.dumps(report, indent=2) if as_json else model_text(report))
