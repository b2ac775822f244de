"""The plots of an audit: score histograms, ROC curves on logarithmic axes, and reconstructed records."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedray.audit.findings import Attack
from fedray.audit.inversion import SETTINGS, Floats
from fedray.audit.membership import roc

_BLUE, _RED, _GREY = "#1f5f99", "#b3432b", "#8a8f98"
_MOST_SHOWN = 6
_FLOOR = 1e-4


def draw(folder: Path, attacks: Sequence[Attack]) -> dict[str, list[Path]]:
    """Write PNG files for every attack with curves into the existing ``folder``; returns each attack's files."""
    made: dict[str, list[Path]] = {}
    for attack in attacks:
        stem = re.sub(r"[^a-z0-9]+", "_", attack.name.lower()).strip("_")
        if "original" in attack.curves:
            made[attack.name] = [_records(folder / f"{stem}.png", attack)]
        elif "inside" in attack.curves and len(attack.curves["inside"]) and len(attack.curves["outside"]):
            made[attack.name] = [_scores(folder / f"{stem}_scores.png", attack), _roc(folder / f"{stem}_roc.png", attack)]
    return made


def _scores(path: Path, attack: Attack) -> Path:
    figure, axes = _axes("score", "density", attack.name)
    inside, outside = attack.curves["inside"], attack.curves["outside"]
    both = np.concatenate([inside, outside])
    low, high = np.quantile(both[np.isfinite(both)], [0.002, 0.998]) if np.isfinite(both).any() else (0.0, 1.0)
    bins = np.linspace(low, max(high, low + 1e-9), 41)
    for values, colour, label in ((outside, _GREY, "not trained on"), (inside, _BLUE, "trained on")):
        axes.hist(np.clip(values, bins[0], bins[-1]), bins=bins, density=True, alpha=0.55, color=colour, label=label)
    axes.legend(frameon=False, loc="upper left")
    return _save(figure, path)


def _roc(path: Path, attack: Attack) -> Path:
    figure, axes = _axes("false positive rate", "true positive rate", attack.name, (4.8, 4.6))
    fpr, tpr = roc(attack.curves["inside"], attack.curves["outside"])
    line = np.geomspace(_FLOOR, 1.0, 50)
    axes.plot(line, line, color=_GREY, linestyle="--", linewidth=1, label="guessing")
    if attack.epsilon is not None and math.isfinite(attack.epsilon):
        delta = float(attack.facts.get("delta", 0.0))
        # Every test of an (epsilon, delta)-DP mechanism lies below the smaller line (Kairouz, Oh & Viswanath 2015).
        most = np.minimum(np.exp(min(attack.epsilon, 60.0)) * line + delta, 1 - np.exp(-attack.epsilon) * (1 - delta - line))
        axes.plot(line, np.clip(most, _FLOOR, 1.0), color=_RED, linewidth=1.2, label=f"allowed by epsilon {attack.epsilon:.3g}")
    axes.step(np.maximum(fpr, _FLOOR), np.maximum(tpr, _FLOOR), where="post", color=_BLUE, linewidth=1.6, label="attack")
    axes.set(xscale="log", yscale="log", xlim=(_FLOOR, 1), ylim=(_FLOOR, 1.05))
    axes.legend(frameon=False, loc="lower right")
    return _save(figure, path)


def _records(path: Path, attack: Attack) -> Path:
    from matplotlib.figure import Figure

    names = ("original", *SETTINGS)
    shown = min(_MOST_SHOWN, len(attack.curves["original"]))
    figure = Figure(figsize=(1.3 * shown + 1.6, 1.35 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), shown, squeeze=False)
    for row, name in enumerate(names):
        for column in range(shown):
            original = attack.curves["original"][column]
            axes = grid[row][column]
            axes.imshow(
                _picture(attack.curves[name][column]), cmap="gray", vmin=original.min(), vmax=max(original.max(), original.min() + 1e-9)
            )
            axes.set_xticks([])
            axes.set_yticks([])
        grid[row][0].set_ylabel(name.replace(" ", "\n"), fontsize=8)
    return _save(figure, path)


def _picture(record: Floats) -> Floats:
    """A record as a picture: a square if its length allows one (the first channel of three), else a single row."""
    for channels in (1, 3):
        side = math.isqrt(len(record) // channels)
        if len(record) == channels * side * side and side > 2:
            return record[: side * side].reshape(side, side)
    return record.reshape(1, -1)


def _axes(x: str, y: str, title: str, size: tuple[float, float] = (6.4, 3.8)) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path
