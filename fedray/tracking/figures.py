"""The pictures of a run: who holds what, accuracy and epsilon over rounds, and one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedray.tracking.journal import number

_BLUE, _RED, _GREY = "#1f5f99", "#b3432b", "#8a8f98"
_MOST_CLIENTS = 200


def series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Rounds and values of one metric, in the order of ``rows``."""
    pairs = [(int(r["round"]), v) for r in rows if (v := number(r["metrics"].get(key))) is not None]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def headline(rows: Sequence[dict[str, Any]]) -> str | None:
    """The metric that stands for the model's quality: accuracy, else another of ``eval/``, else its loss."""
    keys = list(dict.fromkeys(k for r in rows for k in r["metrics"] if k.startswith("eval/")))
    return "eval/accuracy" if "eval/accuracy" in keys else next((k for k in keys if k != "eval/loss"), keys[0] if keys else None)


def draw(folder: Path, rows: Sequence[dict[str, Any]], clients: Sequence[dict[str, Any]]) -> list[Path]:
    """Write those PNG files into ``folder`` that the run has data for.

    Args:
        folder: exists.
        rows: one a round, in order.
        clients: rows of the partition; those with ``classes`` (records of each class) make the heat map.
    """
    made: list[Path] = []
    quality = headline(rows)
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
    counted = [c for c in clients if isinstance(c.get("classes"), list)]
    if counted:
        made.append(_heat_map(folder / "partition.png", counted))
    return made


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

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
