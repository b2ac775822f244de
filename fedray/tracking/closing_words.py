"""How a run ended, for people: its figures in a box on a terminal, as lines in a log, and where its files are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedray.rounding import claim_text, rounded_up
from fedray.storage import read_json
from fedray.tracking.journal import number
from fedray.tracking.terminal import console_on, draws

_STYLES = {"completed": "green", "budget_reached": "yellow", "interrupted": "yellow", "failed": "red"}


def print_summary(
    summary: Mapping[str, Any],
    output: str | Path | None = None,
    command: str = "",
    stream: TextIO | None = None,
    console: Console | None = None,
) -> None:
    """Print how a run ended, its final figures, and where its files are.

    Args:
        summary: the content of ``summary.json``.
        output: the run's directory, whose files are listed.
        command: the suggested next command, e.g. ``fedray ui RUN_DIR``.
        stream: where to print; by default standard output.
        console: a rich console to print on instead of ``stream``.
    """
    console = console or console_on(stream or sys.stdout)
    status = str(summary.get("status", "unknown"))
    figures, places = _summary_rows(summary) + _unmeasured(summary, output), _places(summary, output)
    commands = [command] if command else []
    title = f"{summary.get('name') or 'run'} {status.replace('_', ' ')}"
    width = max((len(label) for label, _ in figures + places), default=0)
    plain = [f"  {label:<{width}}  {place}" for label, place in places]
    if draws(console):
        style = _STYLES.get(status, "white")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True, min_width=width)
        grid.add_column(overflow="fold")
        for label, value in figures:
            grid.add_row(label, Text(value, style="bold" if label in ("epsilon", "accuracy") else ""))
        console.print(
            Panel(grid, title=f"[bold {style}]{title}[/]", title_align="left", border_style=style, box=box.ROUNDED, padding=(0, 1))
        )
    else:
        plain = [title, *(f"  {label:<{width}}  {value}" for label, value in figures), *plain]
    # Outside the box, and wrapped by the terminal alone, so that paths and addresses can be copied whole.
    for line in plain:
        console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
    for command in commands:
        console.print(Text.assemble(("  $ ", "dim"), (command, "cyan")), soft_wrap=True)


def _places(summary: Mapping[str, Any], output: str | Path | None) -> list[tuple[str, str]]:
    places = []
    if output is not None:
        for label, name in (
            ("model", "model.safetensors"),
            ("ledger", "ledger"),
            ("statement", "privacy_statement.md"),
            ("trace", "profile.json"),
        ):
            if (path := Path(output) / name).exists():
                places.append((label, _books(path) if label == "ledger" else str(path)))
        if not places:  # on another node, or in an object store
            places.append(("output", str(output)))
    mlflow = summary.get("mlflow") or {}
    if mlflow.get("run_id"):
        late = "" if mlflow.get("complete", True) else f" (incomplete; fedray sync {output} sends the rest)"
        places.append(("MLflow run", f"{mlflow['run_id']} at {mlflow.get('tracking_uri')}{late}"))
    if model := mlflow.get("registered"):
        name, _, version = str(model).removeprefix("models:/").rpartition("/")
        places.append(("registered", f"{name} version {version} ({model})"))
    return places


def _unmeasured(summary: Mapping[str, Any], output: str | Path | None) -> list[tuple[str, str]]:
    """How the accuracy of a classifier that nobody evaluated is to be had; nothing where it was, where there is no model, or of another task."""
    there = Path(output or "")
    if summary.get("status") not in ("completed", "budget_reached") or any(key.startswith("eval/") for key in summary.get("final") or {}):
        return []
    if output is None or len((read_json(there / "partition.json") or {}).get("class_labels") or ()) < 2:
        return []
    run = there.relative_to(Path.cwd()) if there.is_relative_to(Path.cwd()) else there
    return [("accuracy", f"not measured; a query asks the clients for it: fedray query QUERY.yaml judged={run}")]


def _books(own: Path) -> str:
    """Where a run's books lie: in its own directory, or, where that holds each client's part of the figures alone, as the config says."""
    if any(own.glob("*.jsonl")):
        return str(own)
    config = yaml.safe_load((own.parent / "config.yaml").read_text())
    return str(config["privacy"]["ledger"])


def _summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary.get("error"):
        rows.append(("why", str(summary["error"])))
    performance, faults = summary.get("performance") or {}, summary.get("faults") or {}
    rounds = f"{summary.get('rounds', 0)}"
    if number(performance.get("seconds_per_round")) is not None:
        rounds += f", {performance['seconds_per_round']:.2f} s each"
    if number(performance.get("clients_per_second")) is not None:
        rounds += f", {performance['clients_per_second']:.1f} clients/s"
    rows.append(("rounds", rounds))
    final, best = summary.get("final") or {}, summary.get("best") or {}
    for key in sorted((k for k in final if k.startswith("eval/")), key=lambda k: k not in best):
        if (value := number(final[key])) is not None:
            top = number(best.get(key))
            about = f" (best {top:.4f} in round {best.get('round')})" if top is not None else ""
            noise = number(final.get(key.replace("eval/", "noise/", 1)))
            about += "" if noise is None else f", with noise of standard deviation {noise:.2g}"
            rows.append((key.removeprefix("eval/"), f"{value:.4f}{about}"))
    private = summary.get("privacy") or {}
    if (spent := private.get("epsilon")) is not None:
        budget, delta = number(private.get("budget")), number(private.get("delta"))
        text = (
            rounded_up(spent, fixed=True)
            + (f" of {budget:g}" if budget is not None else "")
            + (f" at delta {delta:g}" if delta is not None else "")
        )
        if private.get("unit"):
            text += f", for one {private.get('protects') or private['unit']}"
        if private.get("accountant"):
            text += f" (accountant {private['accountant']})"
        if private.get("epsilon_unamplified") not in (None, spent):
            text += f"; rests on secret cohorts, {rounded_up(private['epsilon_unamplified'])} without"
        if private.get("claim") not in (None, "valid"):
            rows.append(("claim", claim_text(private)))
        rows.append(("epsilon", text))
        if private.get("clients_exhausted"):
            rows.append(("exhausted", f"{private['clients_exhausted']} clients were left out of rounds: their budget is used up"))
    told = [f"{name.replace('_', ' ')} {count}" for name, count in faults.items() if count]
    if told:
        rows.append(("faults", ", ".join(told)))
    return rows
