"""The charts of a run, and the picture of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray.tracking.chartstyle import BLUE, RED, Chart
from fedray.tracking.clientcharts import budgets, clusters, records_of_clients, results_at_clients
from fedray.tracking.journal import number
from fedray.tracking.roundcharts import timeline
from fedray.tracking.runcharts import by_class, curves, frontier, records_by_class, rule_scores, spending
from fedray.tracking.rundata import RunData

#: What makes a run's charts, in the order in which they are shown.
_CHARTS: tuple[Callable[[RunData], Iterator[Chart]], ...] = (
    curves,
    frontier,
    spending,
    budgets,
    by_class,
    results_at_clients,
    clusters,
    timeline,
    records_by_class,
    records_of_clients,
    rule_scores,
)


def charts(run: RunData) -> list[Chart]:
    """Return the charts that a run has data for.

    What its privacy regime withholds is not in the data, or is left out by the function that would show it.
    """
    return [chart for make in _CHARTS for chart in make(run)]


def draw_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Draw a plan: for each protected unit epsilon over rounds with the budget, and epsilon under other settings.

    Args:
        path: the file to write, in a format of matplotlib (.png, .svg, .pdf).
        plan: JSON data of ``fedray plan``, with at least one line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = plan["lines"]
    figure = Figure(figsize=(12.0, 4.2 * len(lines)), layout="constrained")
    panels = figure.subplots(len(lines), 2, squeeze=False)
    for (left, right), line in zip(panels, lines, strict=True):
        for axes in (left, right):
            _plain(axes)
        for i, curve in enumerate(line["curves"]):
            pairs = [(r, e) for r, v in zip(curve["rounds"], curve["epsilon"], strict=True) if (e := number(v)) is not None]
            left.plot(*zip(*pairs, strict=True), color=f"C{i}", linewidth=1.5, label=curve["label"])
            if curve["epsilon_expected"] is not None:
                left.plot(curve["rounds"], curve["epsilon_expected"], color=f"C{i}", linewidth=1, linestyle=":", label="as expected")
        if line["budget"] is not None:
            left.axhline(line["budget"], color=RED, linestyle="--", linewidth=1, label="budget")
        unit = line["protects"]
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set(xlabel="round", ylabel=f"epsilon, {unit}", ylim=(0, None))
        left.legend(frameon=False, fontsize=8)
        levers = [("as planned", number(line["epsilon"])), *((x["change"], number(x["epsilon"])) for x in line["levers"])]
        known = [(name, value) for name, value in levers if value is not None][::-1]
        right.barh([name for name, _ in known], [value for _, value in known], color=BLUE)
        right.set_xlabel("epsilon of the largest client")
        if line["budget"] is not None:
            right.axvline(line["budget"], color=RED, linestyle="--", linewidth=1)
    figure.savefig(path, dpi=120)


def _plain(axes: Any) -> None:
    axes.grid(True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
