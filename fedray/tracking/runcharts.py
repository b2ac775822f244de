"""Charts of a run's results: metrics and epsilon over rounds, accuracy against epsilon, results and records by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedray.rounding import rounded_up
from fedray.tracking.chartstyle import AMBER, BLUE, GREEN, GREY, INK, RED, Chart, axes_of, curve, legend, spaced
from fedray.tracking.journal import number
from fedray.tracking.note import beyond_rows
from fedray.tracking.rundata import Relative, RunData, unit_of, unit_text
from fedray.tracking.starts import earlier

_MOST_METRICS = 6
_MOST_NAMED = 8  # runs that are named in the frontier
_MOST_ROWS = 40  # rows of a heat map that are named
_MOST_CLIENTS = 200  # clients with a row of their own
_GROUPS = 100  # rows of more clients
_WRITTEN = 12  # classes up to which each cell is written

_SECRET = " It counts on cohorts that stay secret; against an observer who knows them it is larger."


def curves(run: RunData) -> Iterator[Chart]:
    """Each evaluated metric over rounds, the one that the run is judged by first."""
    names = [name for name in run.metrics if name.startswith("eval/")]
    names.sort(key=lambda name: name != run.quality)
    for name in names[:_MOST_METRICS]:
        rounds, values = run.series(name)
        if len(values) < 2:
            continue
        short, twin = name.removeprefix("eval/"), run.twin
        caption = f"On the evaluation's records, after each evaluated round; {values[-1]:.4f} at the end."
        if twin is not None and number(twin.final.get(name)) is not None:
            caption += f" The dashed line is the final value of {twin.name}, the same config without privacy."
        if run.resumed:
            caption += " Dotted lines are rounds after which the run was resumed."
        yield Chart(short.replace("/", "_"), f"{short} by round", caption, partial(_curve, run, name, rounds, values))


def _curve(run: RunData, name: str, rounds: Sequence[int], values: Sequence[float], figure: Any) -> None:
    axes = axes_of(figure, "round", name.removeprefix("eval/"))
    trained = run.series("train/loss_mean") if name == "eval/loss" else ([], [])
    both = len(trained[0]) > 1
    curve(axes, rounds, values, BLUE, "evaluation" if both or run.twin else None)
    if both:
        curve(axes, *trained, GREEN, "training at the clients")
    _twin_line(axes, run.twin, name)
    for done in run.resumed:
        axes.axvline(done + 0.5, color=AMBER, linestyle=":", linewidth=1.2)
    legend(axes)


def _twin_line(axes: Any, twin: Relative | None, name: str) -> None:
    value = None if twin is None else number(twin.final.get(name))
    if twin is not None and value is not None:
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1.2, label=f"{twin.name}, without privacy")


def spending(run: RunData) -> Iterator[Chart]:
    """Epsilon over rounds with the budget, for each guarantee."""
    private = run.summary.get("privacy") or {}
    lines = [("privacy", private), ("privacy/joint", private.get("joint") or {})]
    for prefix, guarantee in lines:
        rounds, spent = run.series(f"{prefix}/epsilon")
        if len(spent) < 2:
            continue
        unit = unit_of(guarantee)
        caption = f"What the largest client has spent, epsilon {rounded_up(spent[-1])} after round {rounds[-1]}"
        caption += f" at delta {guarantee['delta']!r}" if guarantee.get("delta") else ""
        caption += f"; the unit is {unit_text(unit)}." if unit else "."
        caption += "".join(f" {said}." for said in earlier(guarantee, run.starts))
        for start in run.starts:
            if start.given_up:
                caption += f" The step behind round {start.after} holds what was charged, given up and done again when the run was resumed."
        if prefix == "privacy" and beyond_rows(run.rows, run.summary):
            caption += f" What was charged later and not finished brings it to {rounded_up(guarantee['epsilon'])}."
        if run.secret and unit == "client":
            caption += _SECRET
        name = "epsilon" if prefix == "privacy" else "epsilon_joint"
        yield Chart(name, f"epsilon by round{f', {unit_text(unit)}' if unit else ''}", caption, partial(_spending, run, prefix))


def _spending(run: RunData, prefix: str, figure: Any) -> None:
    axes = axes_of(figure, "round", "epsilon")
    shown = [("epsilon", RED, "-", "largest client"), ("epsilon_client_median", GREEN, "-.", "median client")]
    if run.secret:
        shown.append(("epsilon_unamplified", AMBER, ":", "against one who knows the cohorts"))
    most = run.series(f"{prefix}/epsilon")[1]
    for key, colour, style, name in shown:
        rounds, values = run.series(f"{prefix}/{key}")
        if values and (key == "epsilon" or values != most):
            axes.plot(spaced(rounds), spaced(values), color=colour, linestyle=style, drawstyle="steps-post", linewidth=1.5, label=name)
    _, budgets = run.series(f"{prefix}/budget")
    if budgets:
        axes.axhline(budgets[-1], color=GREY, linestyle="--", linewidth=1.2, label="budget")
    axes.set_ylim(bottom=0)
    legend(axes)


def frontier(run: RunData) -> Iterator[Chart]:
    """The model's quality against the epsilon that was spent for it, with other runs of the same config."""
    quality, private = run.quality, run.summary.get("privacy") or {}
    if quality is None:
        return
    path, unit = spent_for(run, quality), unit_of(private)
    others = comparable(run, quality)
    if len(path) + len(others) < 2:
        return
    short, twin = quality.removeprefix("eval/"), run.twin
    delta = private.get("delta")
    caption = f"Each point is {'a round of this run' if path else 'the end of a run'}"
    caption += f", epsilon for {unit_text(unit)} at delta {delta!r}." if unit else "."
    if others and path:
        ends = "The diamond is the end of another run" if len(others) == 1 else f"Diamonds are the ends of {len(others)} other runs"
        caption += f" {ends} of this config with other privacy, of the same unit and delta."
    if twin is not None and number(twin.final.get(quality)) is not None:
        caption += f" The dashed line is {twin.name}, the same config without privacy, which the guarantee does not cover."
    if run.secret and unit == "client":
        caption += _SECRET
    yield Chart(
        f"{short.replace('/', '_')}_vs_epsilon", f"{short} against epsilon", caption, partial(_frontier, run, quality, path, others)
    )


def spent_for(run: RunData, metric: str) -> list[tuple[float, float]]:
    """Return (epsilon, value) for each round in which the metric was taken, in order."""
    spent = dict(zip(*run.series("privacy/epsilon"), strict=True))
    return [(spent[r], v) for r, v in zip(*run.series(metric), strict=True) if r in spent]


def comparable(run: RunData, metric: str) -> list[tuple[str, float, float]]:
    """Return (name, epsilon, final value) of the relatives that may share an axis with the run: those of the same unit and delta.

    For a run without privacy these are the relatives of the newest one's unit and delta.
    """
    private = [one for one in run.relatives if one.epsilon is not None and number(one.final.get(metric)) is not None]
    mine = run.summary.get("privacy") or {}
    unit, delta = unit_of(mine), mine.get("delta")
    if mine.get("epsilon") is None and private:
        unit, delta = private[0].unit or "", private[0].delta
    return [(o.name, o.epsilon, float(o.final[metric])) for o in private if (o.unit, o.delta) == (unit, delta) and o.epsilon is not None]


def _frontier(
    run: RunData, quality: str, path: Sequence[tuple[float, float]], others: Sequence[tuple[str, float, float]], figure: Any
) -> None:
    axes = axes_of(figure, "epsilon spent", quality.removeprefix("eval/"))
    path = spaced(path)
    if path:
        axes.plot(
            *zip(*path, strict=True), color=BLUE, marker="o" if len(path) <= 60 else None, markersize=3, linewidth=1.5, label="this run"
        )
        axes.plot(*path[-1], color=BLUE, marker="o", markersize=7)
    if others:
        _, epsilons, values = zip(*others, strict=True)
        axes.plot(epsilons, values, color=RED, marker="D", markersize=5, linestyle="none", label="other runs")
        for i, (name, epsilon, value) in enumerate(sorted(others[:_MOST_NAMED], key=lambda other: other[1])):  # neighbours above and below
            axes.annotate(name, (epsilon, value), xytext=(0, -14 if i % 2 else 7), textcoords="offset points", fontsize=8, ha="center")
    if path:
        _twin_line(axes, run.twin, quality)
    elif (mine := number((run.summary.get("final") or {}).get(quality))) is not None:
        axes.axhline(mine, color=GREY, linestyle="--", linewidth=1.2, label="this run, without privacy")
    axes.set_xlim(left=0)
    legend(axes)


def by_class(run: RunData) -> Iterator[Chart]:
    """The final model's results by class on the driver's test set, which is public."""
    counts = np.array(run.classes.get("confusion") or [], dtype=np.float64)
    if counts.ndim != 2 or not counts.sum() or run.classes.get("round") != run.summary.get("rounds"):
        return
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    seen = counts.sum(1) > 0
    worst = int(np.argmin(np.where(seen, shares.diagonal(), np.inf)))
    labels = [str(name) for name in run.classes.get("labels") or range(len(counts))]
    caption = (
        f"{int(counts.sum())} test records: for each class, the share that the final model takes for each class; the diagonal is right. "
        f"The worst class is {labels[worst]}: {100 * shares[worst, worst]:.0f} % of {int(counts[worst].sum())} records are right."
    )
    yield Chart("classes", "results by class", caption, partial(_confusion, shares, labels), 4.6)


def _confusion(shares: np.ndarray[Any, Any], labels: Sequence[str], figure: Any) -> None:
    axes = _heat_map(figure, shares * 100, labels if len(labels) <= _MOST_ROWS else [], "class", "% of the class", most=100)
    axes.set_xlabel("predicted as")
    if len(labels) <= 20:
        axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 60)
    if len(labels) <= _WRITTEN:
        for i, row in enumerate(shares):
            for k, share in enumerate(row):
                if share >= 0.005:
                    axes.text(k, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "#17202b")


def records_by_class(run: RunData) -> Iterator[Chart]:
    """The records of each class at each client, or at groups of very many clients."""
    rows = [row for row in run.partition if isinstance(row.get("classes"), list)]
    if not rows:
        return
    counts = np.array([row["classes"] for row in rows], dtype=np.float64)
    names = [str(row.get("client", i)) for i, row in enumerate(rows)]
    caption = f"Training records of each class at each of {len(rows)} clients."
    if len(rows) > _MOST_CLIENTS:
        counts, names = grouped_counts(counts, _GROUPS), []
        caption = (
            f"{len(rows)} clients, ordered by their most frequent class, in {_GROUPS} groups; each row is the mean of a group's clients."
        )
    height = min(7.0, max(2.6, 1.2 + 0.26 * len(counts)))
    yield Chart("partition", "records by class and client", caption, partial(_partition, counts, names), height)


def grouped_counts(counts: np.ndarray[Any, Any], groups: int) -> np.ndarray[Any, Any]:
    """Return the mean counts ``[groups, classes]`` of neighbouring clients, which are ordered by their most frequent class and its count."""
    main = counts.argmax(1)
    order = np.lexsort((-counts.max(1), main))
    return np.array([part.mean(0) for part in np.array_split(counts[order], groups)])


def _partition(counts: np.ndarray[Any, Any], names: Sequence[str], figure: Any) -> None:
    axes = _heat_map(figure, counts, names if len(names) <= _MOST_ROWS else [], "client" if names else "groups of clients", "records")
    axes.set_xlabel("class")
    axes.set_xticks(range(counts.shape[1]) if counts.shape[1] <= 20 else [])


def _heat_map(figure: Any, values: np.ndarray[Any, Any], names: Sequence[str], rows: str, what: str, most: float | None = None) -> Any:
    axes = axes_of(figure, "", rows)
    axes.grid(False)
    image = axes.imshow(values, aspect="auto", cmap="Blues", interpolation="nearest", vmin=0, vmax=most)
    axes.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes, label=what).outline.set_edgecolor(INK)
    return axes


def rule_scores(run: RunData) -> Iterator[Chart]:
    """The scores that an aggregation rule gives clients, and how many it mutes."""
    scores = [key for key in run.metrics if key.startswith("aggregation/score")]
    if scores and min(len(run.series(key)[0]) for key in (*scores, "aggregation/muted")) > 1:
        yield Chart(
            "scores",
            "scores of clients",
            "Quantiles of the scores that the aggregation rule gives to clients.",
            partial(_scores, run, scores),
        )
        yield Chart("muted", "muted clients", "Clients whose updates the aggregation rule leaves out, by round.", partial(_muted, run))


def _scores(run: RunData, keys: Sequence[str], figure: Any) -> None:
    axes = axes_of(figure, "round", "score")
    for i, key in enumerate(keys):
        curve(axes, *run.series(key), colour=f"C{i}", name=key.removeprefix("aggregation/score_"))
    legend(axes)


def _muted(run: RunData, figure: Any) -> None:
    axes = axes_of(figure, "round", "clients muted")
    rounds, values = run.series("aggregation/muted")
    axes.plot(rounds, values, color=RED, drawstyle="steps-post", linewidth=1.5)
    axes.set_ylim(bottom=0)
