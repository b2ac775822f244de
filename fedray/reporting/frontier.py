"""A picture of scores over epsilons: which accuracy is bought at which price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError

_MOST_LABELS = 24


@dataclass(frozen=True)
class Dot:
    """A run or a trial in the picture: its name, epsilon and score, and the panel in which it stands (one a unit and data set)."""

    name: str
    epsilon: float
    score: float
    panel: str = ""
    void: bool = False


def pareto(dots: Sequence[Dot], largest: bool = True) -> list[Dot]:
    """The dots for which no other has a better score at no larger epsilon, by growing epsilon."""
    sign, best = (1 if largest else -1), float("-inf")
    found = []
    for dot in sorted(dots, key=lambda d: (d.epsilon, -sign * d.score)):
        if sign * dot.score > best:
            best = sign * dot.score
            found.append(dot)
    return found


def draw_frontier(path: Path, dots: Sequence[Dot], metric: str, x: str = "epsilon", largest: bool = True, title: str = "") -> None:
    """Draw the dots, and the line through the best of them in each panel; a void claim is an empty circle and not on the line.

    Args:
        path: a .png, .svg or .pdf file.
        dots: at least one. Each panel has its own axes, because figures of different units or data sets cannot be compared.
        metric: label of the scores.
        x: label of the epsilons.
        largest: whether more of the metric is better.
        title: above the panels.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(dot.panel for dot in dots))
    figure = Figure(figsize=(max(7.0, 5.2 * len(panels)), 4.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, [dot for dot in dots if dot.panel == panel], metric, x, largest)
        axes.set_title(panel, fontsize=9, loc="left")
    if title:
        figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=140)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the picture cannot be written ({error}); name a .png, .svg or .pdf file in a directory that exists."
        ) from None


def _panel(axes: Any, dots: Sequence[Dot], metric: str, x: str, largest: bool) -> None:
    line = pareto([dot for dot in dots if not dot.void], largest)
    axes.step([d.epsilon for d in line], [d.score for d in line], where="post", color="#9aa5b1", linewidth=1.2, zorder=1)
    for void, fill in ((False, "#1f5fa8"), (True, "none")):
        some = [d for d in dots if d.void == void]
        axes.scatter([d.epsilon for d in some], [d.score for d in some], s=30, facecolors=fill, edgecolors="#1f5fa8", zorder=2)
    for dot in dots if len(dots) <= _MOST_LABELS else line:
        name = f"{dot.name} (void)" if dot.void else dot.name
        axes.annotate(name, (dot.epsilon, dot.score), xytext=(5, 3), textcoords="offset points", fontsize=7, color="#444444")
    axes.set_xlabel(x)
    axes.set_ylabel(metric)
    axes.grid(True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
