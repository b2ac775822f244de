"""``fedray compare``: runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a picture: scores over epsilons, a panel for each unit and data set.",
)
def compare(runs: tuple[str, ...], as_json: bool, plot: Path | None) -> None:
    """Compare finished runs: score, epsilon with its unit and claim, rounds, time, faults, and the config keys that differ.

    RUN: a run's directory, its address in an object store, or a sweep's directory, which stands for its trials.
    """
    from fedray.reporting.comparison import compare_runs, comparison_text, draw_comparison

    found = compare_runs(runs)
    click.echo(json.dumps(found, indent=2) if as_json else comparison_text(found))
    if plot is not None:
        draw_comparison(plot, found)
