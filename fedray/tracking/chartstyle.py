"""The look of a run's charts, and the files and SVG texts that are made of them."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

BLUE, RED, GREEN, AMBER, GREY = "#2f74b5", "#c2502f", "#3d8f5f", "#b98a1d", "#8a8f98"

#: Text and axes in a file; within a page they take the colour of the page's text, so that they are read on a dark page, too.
INK = "#1d2430"

_GRID = "#8a8f9840"
_WIDTH = 6.4  # inches
_LINE = 0.17  # inches that a line of a caption takes
_CAPTION_WIDTH = 98  # characters
_MOST_POINTS = 400


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn.

    Attributes:
        name: name of its files, without suffix.
        title: what is shown.
        caption: plain sentences about what is seen and what it rests on.
        draw: draws into an empty matplotlib figure.
        height: inches.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any], None]
    height: float = 3.6


def save_charts(folder: Path, charts: Sequence[Chart], formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write each chart with its title and caption into ``folder`` in each of the formats; returns the paths."""
    made = []
    for chart in charts:
        caption = textwrap.wrap(chart.caption, _CAPTION_WIDTH)
        with _style():
            figure = _drawn(chart, chart.height + 0.3 + _LINE * len(caption))
            figure.suptitle(chart.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
            figure.supxlabel("\n".join(caption), x=0.01, ha="left", fontsize=8)
            for form in formats:
                path = folder / f"{chart.name}.{form}"
                figure.savefig(path, dpi=120, metadata={"Date": None} if form == "svg" else None)
                figure.set_layout_engine("none")  # the first file has settled where everything lies
                made.append(path)
    return made


def inline_svg(chart: Chart) -> str:
    """Return a chart without title and caption as an ``<svg>`` element for an HTML page, in the colour of the page's text."""
    text = io.StringIO()
    with _style(**{"svg.fonttype": "none", "svg.hashsalt": chart.name}):
        hidden = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        _drawn(chart, chart.height).savefig(text, format="svg", transparent=True, metadata=hidden)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{chart.name}-', svg)  # ids are of the whole page
    svg = re.sub(r'(url\(#|href="#)', rf"\1{chart.name}-", svg)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" xmlns:xlink="http://www.w3.org/1999/xlink" role="img">', svg)
    return svg.replace(INK, "currentColor")


def axes_of(figure: Any, x: str, y: str) -> Any:
    """Return axes that fill the figure, with labels."""
    axes = figure.add_subplot()
    label(axes, x, y)
    return axes


def label(axes: Any, x: str, y: str) -> None:
    """Label axes; rounds are counted in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=x, ylabel=y)
    if x == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend(axes: Any) -> None:
    """Put a legend above the axes, if anything in them has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(3, len(labels)), borderaxespad=0.2)


def curve(axes: Any, rounds: Sequence[int], values: Sequence[float], colour: str, name: str | None = None) -> None:
    """Draw a metric over rounds: each round, or of very many the mean of neighbouring rounds with the range of their values."""
    if len(rounds) <= _MOST_POINTS:
        marker = "o" if len(rounds) <= 60 else None
        axes.plot(rounds, values, color=colour, marker=marker, markersize=3, linewidth=1.5, label=name)
        return
    at, low, middle, high = thinned(rounds, values)
    axes.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(at, middle, color=colour, linewidth=1.2, label=name)


def thinned(
    rounds: Sequence[int], values: Sequence[float], most: int = _MOST_POINTS
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Join neighbouring rounds into at most ``most`` groups; returns the mean round, and least, mean and largest value of each group."""
    import numpy as np

    groups = min(most, len(rounds))
    parts = [
        (np.mean(r), v.min(), v.mean(), v.max())
        for r, v in zip(np.array_split(rounds, groups), np.array_split(values, groups), strict=True)
    ]
    at, low, middle, high = (list(map(float, column)) for column in zip(*parts, strict=True))
    return at, low, middle, high


def spaced(values: Sequence[T], most: int = _MOST_POINTS) -> Sequence[T]:
    """Return at most about ``most`` of the values at equal distances, the last one among them."""
    step = -(-len(values) // most)
    return values[(len(values) - 1) % step :: step] if step > 1 else values


def _drawn(chart: Chart, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    chart.draw(figure)
    return figure


def _style(**more: Any) -> Any:
    import matplotlib as mpl

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    look = {
        "font.size": 10,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "svg.hashsalt": "fedray",
    }
    return mpl.rc_context({**ink, **look, **more})
