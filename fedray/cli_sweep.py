"""``fedray sweep``: trials of one config with different settings."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedray import credentials, logs

if TYPE_CHECKING:
    from fedray.planning.preparation import Prepared


@dataclass(frozen=True)
class SweepPrices:
    """What ``fedray plan`` says of a sweep: JSON data, lines, and a sentence if nothing of it fits the budget."""

    figures: dict[str, Any]
    lines: list[str]
    refusal: str | None


def prices(prepared: Prepared) -> SweepPrices:
    """The price of a config's sweep, charged and sealed.

    Raises:
        ConfigError: the sweep is refused.
    """
    from fedray.sweeps.pricing import compared, price, price_text
    from fedray.sweeps.space import combinations
    from fedray.sweeps.sweeprules import check_points, check_sweep

    section = check_sweep(prepared.config)
    check_points(prepared.config, list(combinations(section)))
    points, repetitions = compared(prepared.config)
    found = price(prepared, points, repetitions)
    unfit = [p for p in found if not (p["fits"] if section.price == "charged" else p["sealed_fits"])]
    what = "not even its first trial fits" if section.price == "charged" else "its one charge does not fit"
    refusal = f"sweep: {what} the budget of {unfit[0]['budget']:g}; raise privacy.budget, or plan more noise." if unfit else None
    return SweepPrices({"price": section.price, "units": found}, price_text(found, points, section.price), refusal)


@click.command("sweep")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--output", help="The sweep's directory; default runs/NAME (runs/NAME-2, ... where that exists).")
@click.option("--resume", is_flag=True, help="Continue the sweep in --output (default: the newest of this name).")
def sweep_command(config: Path, overrides: tuple[str, ...], output: str | None, resume: bool) -> None:
    """Try the settings of a CONFIG's sweep section, side by side on Ray Tune: fedray sweep CONFIG [KEY=VALUE ...].

    `fedray plan CONFIG` says beforehand what that costs in privacy.
    """
    from fedray.configfile import load_config

    credentials.load()
    resolved = load_config(config, overrides)
    logs.setup(resolved.name)
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    from fedray.sweeps.outcome import table
    from fedray.sweeps.space import named
    from fedray.sweeps.sweep import FRONTIER, sweep

    out = sys.stdout

    def tell(line: str) -> None:
        click.echo(line, file=out)

    result = sweep(resolved, output, resume, tell)
    summary = result.summary
    tell("")
    if summary["price"] == "sealed":
        tell(f"best: {named(summary['point'])}, {summary['metric']} {summary['score']:.4f}")
    else:
        for line in table(summary["trials"], summary["metric"], summary["best"]):
            tell(line)
    tell(summary["statement"])
    picture = result.output / f"{FRONTIER}.png"
    tell(f"{result.output / 'sweep.json'}" + (f", {picture}" if picture.exists() else ""))
