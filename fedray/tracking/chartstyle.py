"""The look of a run's charts, and the files and SVG texts that are made of them."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

BLUE, RED, GREEN, AMBER, GREY = "#2f74b5", "#c2502f", "#3d8f5f", "#b98a1d", "#8a8f98"

#: Text and axes in a file; within a page they take the colour of the page's text, so that they are read on a dark page, too.
INK = "#1d2430"

_GRID = "#8a8f9840"
#: In inches: the width of a chart, the height of its title, of a line of its caption, and the distance of both from the edge.
_WIDTH, _TITLE, _LINE, _MARGIN = 6.4, 0.3, 0.17, 0.06
_POINTS = 72  # of an inch
_TITLE_SIZE, _CAPTION_SIZE = 11, 8  # points
_DPI = 120
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


class Drawing(NamedTuple):
    """A chart as a picture and as a vector graphic, both with title and caption; and without them as an ``<svg>`` element for an HTML page, in
    the colour of the page's text.
    """

    png: bytes
    svg: str
    inline: str


def save_charts(folder: Path, charts: Sequence[Chart]) -> list[Drawing]:
    """Write each chart into ``folder`` as ``NAME.png`` and ``NAME.svg``; returns what was drawn."""
    drawings = []
    for chart in charts:
        drawings.append(drawing := draw(chart))
        (folder / f"{chart.name}.png").write_bytes(drawing.png)
        (folder / f"{chart.name}.svg").write_text(drawing.svg, encoding="utf-8")
    return drawings


def draw(chart: Chart) -> Drawing:
    """Draw a chart. Its parts are laid out once for all three forms, which takes most of the time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    caption = textwrap.wrap(chart.caption, _CAPTION_WIDTH)
    below = _LINE * len(caption)
    height = _TITLE + chart.height + below
    vector, picture = io.StringIO(), io.BytesIO()
    with _style():
        between = ConstrainedLayoutEngine(rect=(0, below / height, 1, chart.height / height))
        figure = Figure(figsize=(_WIDTH, height), layout=between)
        chart.draw(figure)
        FigureCanvasSVG(figure).print_svg(vector, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        figure.set_layout_engine("none")
        figure.text(_MARGIN / _WIDTH, 1 - _MARGIN / height, chart.title, va="top", fontsize=_TITLE_SIZE, fontweight="bold")
        figure.text(_MARGIN / _WIDTH, _MARGIN / height, "\n".join(caption), va="bottom", fontsize=_CAPTION_SIZE)
        figure.patch.set_facecolor("white")
        figure.set_dpi(_DPI)
        FigureCanvasAgg(figure).print_png(picture)
    words = [_words(chart.title, _MARGIN + 0.8 * _TITLE_SIZE / _POINTS, _TITLE_SIZE, "bold")]
    words += [_words(line, height - below + _LINE * (i + 0.6), _CAPTION_SIZE) for i, line in enumerate(caption)]
    svg = re.sub(r"<metadata>.*?</metadata>", "", vector.getvalue(), flags=re.S)
    front, mark, back = svg.rpartition("</svg>")
    whole = (
        re.sub(r"(<svg [^>]*>)", r'\1\n<rect width="100%" height="100%" fill="white"/>', front, count=1)
        + "\n".join(words)
        + f"\n{mark}{back}"
    )
    return Drawing(picture.getvalue(), whole, _inline(svg, chart))


def _words(text: str, down: float, size: float, weight: str = "normal") -> str:
    """A line of text in a vector graphic, with its base ``down`` inches below the upper edge."""
    place = f'x="{_MARGIN * _POINTS:g}" y="{down * _POINTS:.1f}"'
    return f"<text {place} style=\"font: {weight} {size}px 'DejaVu Sans', sans-serif; fill: {INK}\">{escape(text, quote=False)}</text>"


def _inline(svg: str, chart: Chart) -> str:
    """The part of a vector graphic between title and caption as an element of a page, whose other elements have ids, too."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{chart.name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{chart.name}-", svg)
    box = f"0 {_TITLE * _POINTS:g} {_WIDTH * _POINTS:g} {chart.height * _POINTS:g}"
    svg = re.sub(r"^<svg [^>]*>", f'<svg viewBox="{box}" xmlns:xlink="http://www.w3.org/1999/xlink" role="img">', svg)
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


def _style() -> Any:
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
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "fedray",
    }
    return mpl.rc_context({**ink, **look})
