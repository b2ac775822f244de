"""Charts over a run's clients: quantiles of their results and records, and what each has spent of its budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedray.clientfigures import MODELS, metrics_of, models_of
from fedray.rounding import rounded_up
from fedray.tracking.chartstyle import AMBER, BLUE, GREEN, GREY, INK, RED, Chart, axes_of, legend, thinned
from fedray.tracking.journal import number
from fedray.tracking.rundata import RunData, unit_of, unit_text

_MOST_BARS = 30  # clients with a bar of their own
_STEPS = 200  # points of a curve of quantiles


def results_at_clients(run: RunData) -> Iterator[Chart]:
    """The distribution of the clients' own results over rounds, for the metric that the run is judged by."""
    found = metrics_of(run.metrics)
    mine = (run.quality or "").removeprefix("eval/")
    metric = mine if mine in found else next(iter(found), None)
    if metric is None or len(run.series(f"fairness/{metric}_mean")[0]) < 2:
        return
    caption = (
        "Each client's result on its own held-out records, clients with equal weight: the mean, the half of the clients between the quartiles, "
        "the quantile that a tenth of the clients do not reach, and the worst client."
    )
    if others := models_of(run.metrics, metric)[1:]:
        caption += f" Dashed: the mean of {' and of '.join(MODELS[model] for model in others)}."
    yield Chart("clients_results", f"{metric} at the clients", caption, partial(_at_clients, run, metric))


def _at_clients(run: RunData, metric: str, figure: Any) -> None:
    axes = axes_of(figure, "round", metric)
    for key, colour, name in (("mean", BLUE, "mean"), ("p10", GREEN, "worst tenth"), ("worst", RED, "worst client")):
        rounds, values = run.series(f"fairness/{metric}_{key}")
        if rounds:
            at, _, middle, _ = thinned(rounds, values)
            axes.plot(at, middle, color=colour, linewidth=1.5, label=name)
    (rounds, low), (_, high) = (run.series(f"fairness/{metric}_{key}") for key in ("p25", "p75"))
    if rounds and len(low) == len(high):
        (at, _, low, _), (_, _, high, _) = thinned(rounds, low), thinned(rounds, high)
        axes.fill_between(at, low, high, color=BLUE, alpha=0.15, linewidth=0)
    for model, colour, name in (("global", GREY, "global model"), ("fine_tuned", AMBER, "fine-tuned")):
        rounds, values = run.series(f"{model}/{metric}_mean")
        if rounds:
            at, _, middle, _ = thinned(rounds, values)
            axes.plot(at, middle, color=colour, linestyle="--", linewidth=1.5, label=name)
    legend(axes)


def clusters(run: RunData) -> Iterator[Chart]:
    """How many clients are in each cluster, and how many have changed theirs, over rounds."""
    keys = [key for key in run.metrics if key.startswith("clusters/") and key.endswith("_clients")]
    if not keys or len(run.series("clusters/moved")[0]) < 2:
        return
    caption = "Clients in each cluster, one above the other, as they were evaluated; dashed is how many have changed theirs since the evaluation before."
    yield Chart("clusters", "clients by cluster", caption, partial(_clusters, run, keys))


def _clusters(run: RunData, keys: Sequence[str], figure: Any) -> None:
    axes = axes_of(figure, "round", "clients")
    rounds, moved = run.series("clusters/moved")
    sizes = [dict(zip(*run.series(key), strict=True)) for key in keys]
    names = [key.removeprefix("clusters/").removesuffix("_clients") for key in keys]
    parts = [thinned(rounds, [size.get(n, 0.0) for n in rounds]) for size in sizes]
    axes.stackplot(parts[0][0], [middle for _, _, middle, _ in parts], labels=names, alpha=0.6, linewidth=0)
    at, _, middle, _ = thinned(rounds, moved)
    axes.plot(at, middle, color=INK, linestyle="--", linewidth=1.2, label="moved")
    axes.set_ylim(bottom=0)
    legend(axes)


def records_of_clients(run: RunData) -> Iterator[Chart]:
    """The number of records of clients, as quantiles; only where the partition says it."""
    sizes = [float(row["records"]) for row in run.partition if number(row.get("records")) is not None]
    if len(sizes) <= _MOST_BARS:
        return
    low, middle, high = np.quantile(sizes, [0.0, 0.5, 1.0])
    caption = (
        f"{len(sizes)} clients, ordered by their number of training records: {low:.0f} to {high:.0f}, half of them at most {middle:.0f}."
    )
    yield Chart("records", "records by client", caption, partial(_quantiles, [("records", sizes, BLUE)], "training records"))


def budgets(run: RunData) -> Iterator[Chart]:
    """What each client has spent, and its budget, for each unit; not where that would tell who was in which cohort."""
    rows = [] if run.secret else [row for row in run.statement.get("clients") or [] if number(row.get("epsilon")) is not None]
    for unit in dict.fromkeys(str(row.get("unit")) for row in rows):
        mine = [row for row in rows if str(row.get("unit")) == unit]
        if len(mine) < 2:
            continue
        spent = [float(row["epsilon"]) for row in mine]
        whole = unit_text(unit_of(run.summary.get("privacy") or {}) if unit == "person" else unit)
        caption = f"Epsilon for {whole} that each of {len(mine)} clients has spent, {rounded_up(max(spent))} at most"
        caption += ", in the order of what was spent" if len(mine) > _MOST_BARS else ""
        caption += "; dashed is its budget." if any(number(row.get("budget")) is not None for row in mine) else "; there is no budget."
        if run.statement.get("clients_not_listed"):
            caption += f" {run.statement['clients_not_listed']} further clients have spent no more than these."
        few = len(mine) <= _MOST_BARS
        draw = partial(_bars, mine) if few else partial(_quantiles, _spent_lines(mine), "epsilon")
        name = "budget_by_client" if unit == str(rows[0].get("unit")) else f"budget_by_client_{unit}"
        yield Chart(name, "epsilon by client", caption, draw, max(2.4, 1.2 + 0.2 * len(mine)) if few else 3.6)


def _bars(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    axes = axes_of(figure, "epsilon", "")
    rows = sorted(rows, key=lambda row: float(row["epsilon"]))
    axes.barh([str(row.get("name")) for row in rows], [float(row["epsilon"]) for row in rows], color=BLUE, height=0.7, label="spent")
    bounds = [(i, bound) for i, row in enumerate(rows) if (bound := number(row.get("budget"))) is not None]
    if bounds:
        at, values = zip(*bounds, strict=True)
        axes.vlines(values, np.array(at) - 0.45, np.array(at) + 0.45, color=RED, linestyle="--", linewidth=1.5, label="budget")
    axes.grid(axis="y", visible=False)
    legend(axes)


def _spent_lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float], str]]:
    bounds = [bound for row in rows if (bound := number(row.get("budget"))) is not None]
    lines = [("spent", [float(row["epsilon"]) for row in rows], BLUE)]
    return [*lines, ("budget", bounds, GREY)] if bounds else lines


def _quantiles(lines: Sequence[tuple[str, Sequence[float], str]], what: str, figure: Any) -> None:
    axes = axes_of(figure, "% of clients, from the least to the most", what)
    at = np.linspace(0, 1, _STEPS)
    for name, values, colour in lines:
        style = "--" if name == "budget" else "-"
        axes.plot(100 * at, np.quantile(values, at, method="inverted_cdf"), color=colour, linestyle=style, linewidth=1.5, label=name)
    axes.set_ylim(bottom=0)
    if len(lines) > 1:
        legend(axes)
