"""Draws the charts of a run: records by class and client, accuracy, epsilon and clients' scores over rounds, accuracy against epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedray.tracking.journal import number

_BLUE, _RED, _GREY = "#1f5f99", "#b3432b", "#8a8f98"
_MOST_CLIENTS = 200


def series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return the rounds and the finite values of one metric, in the order of ``rows``."""
    pairs = [(int(r["round"]), v) for r in rows if (v := number(r["metrics"].get(key))) is not None]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def headline(rows: Sequence[dict[str, Any]], best: Mapping[str, Any] | None = None) -> str | None:
    """Return the metric that stands for the model's quality; None if there is none.

    Args:
        rows: one per round, with metrics in the config's order; without ``best`` the first metric below ``eval/`` is returned.
        best: part of the summary: the metric that the run was judged by, and the round.
    """
    named = [k for k in best or {} if k != "round"]
    return next(iter(named), None) or next((k for r in rows for k in r["metrics"] if k.startswith("eval/")), None)


def draw(
    folder: Path, rows: Sequence[dict[str, Any]], clients: Sequence[dict[str, Any]], best: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a PNG file into ``folder`` for each chart that the run has data for; returns their paths.

    Args:
        folder: an existing directory.
        rows: one per round, in order.
        clients: rows of the partition; those with ``classes`` (numbers of records of each class) make the heat map.
        best: see :func:`headline`.
    """
    made: list[Path] = []
    quality = headline(rows, best)
    rounds, values = series(rows, quality) if quality else ([], [])
    spent_rounds, spent = series(rows, "privacy/epsilon")
    label = (quality or "").removeprefix("eval/")
    if len(values) > 1:
        figure, axes = _axes("round", label)
        axes.plot(rounds, values, color=_BLUE, marker="o", markersize=3, linewidth=1.5)
        made.append(_save(figure, folder / f"{label.replace('/', '_')}.png"))
    if len(spent) > 1:
        figure, axes = _axes("round", "epsilon")
        axes.step(spent_rounds, spent, color=_RED, where="post", linewidth=1.5, label="largest client's")
        _, budgets = series(rows, "privacy/budget")
        if budgets:
            axes.axhline(budgets[-1], color=_GREY, linestyle="--", linewidth=1, label="budget")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        made.append(_save(figure, folder / "epsilon.png"))
    at = dict(zip(spent_rounds, spent, strict=True))
    both = [(at[r], v) for r, v in zip(rounds, values, strict=True) if r in at]
    if len(both) > 1:
        figure, axes = _axes("epsilon spent", label)
        axes.plot([b[0] for b in both], [b[1] for b in both], color=_BLUE, marker="o", markersize=3, linewidth=1.5)
        made.append(_save(figure, folder / f"{label.replace('/', '_')}_vs_epsilon.png"))
    scores = [key for key in dict.fromkeys(k for r in rows for k in r["metrics"]) if key.startswith("aggregation/score")]
    if scores and min(len(series(rows, key)[0]) for key in (*scores, "aggregation/muted")) > 1:
        figure, axes = _axes("round", "score of clients")
        for key in scores:
            axes.plot(*series(rows, key), linewidth=1.5, label=key.removeprefix("aggregation/score_"))
        axes.legend(frameon=False)
        made.append(_save(figure, folder / "scores.png"))
        figure, axes = _axes("round", "clients muted")
        axes.step(*series(rows, "aggregation/muted"), color=_RED, where="post", linewidth=1.5)
        axes.set_ylim(bottom=0)
        made.append(_save(figure, folder / "muted.png"))
    counted = [c for c in clients if isinstance(c.get("classes"), list)]
    if counted:
        made.append(_heat_map(folder / "partition.png", counted))
    return made


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
            left.axhline(line["budget"], color=_RED, linestyle="--", linewidth=1, label="budget")
        unit = "one record" if line["unit"] == "record" else "a whole client"
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set(xlabel="round", ylabel=f"epsilon, {unit}", ylim=(0, None))
        left.legend(frameon=False, fontsize=8)
        levers = [("as planned", number(line["epsilon"])), *((x["change"], number(x["epsilon"])) for x in line["levers"])]
        known = [(name, value) for name, value in levers if value is not None][::-1]
        right.barh([name for name, _ in known], [value for _, value in known], color=_BLUE)
        right.set_xlabel("epsilon of the largest client")
        if line["budget"] is not None:
            right.axvline(line["budget"], color=_RED, linestyle="--", linewidth=1)
    _save(figure, path)


def _heat_map(path: Path, clients: Sequence[dict[str, Any]]) -> Path:
    shown = clients[:_MOST_CLIENTS]
    counts = np.array([c["classes"] for c in shown], dtype=np.float64)
    height = min(12.0, max(2.5, 1.2 + 0.26 * len(shown)))
    figure, axes = _axes("class", "", size=(7.0, height))
    axes.grid(False)
    image = axes.imshow(counts, aspect="auto", cmap="Blues", interpolation="nearest", vmin=0)
    axes.set_xticks(range(counts.shape[1]) if counts.shape[1] <= 20 else [])
    axes.set_yticks(range(len(shown)) if len(shown) <= 40 else [])
    if len(shown) <= 40:
        axes.set_yticklabels([str(c.get("client", i)) for i, c in enumerate(shown)])
    if len(shown) < len(clients):
        axes.set_title(f"the first {len(shown)} of {len(clients)} clients", fontsize=9, loc="left")
    figure.colorbar(image, ax=axes, label="records")
    return _save(figure, path)


def _axes(x: str, y: str, size: tuple[float, float] = (7.0, 4.2)) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    if x == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(y)
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.grid(True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
