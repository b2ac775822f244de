"""The timeline of a run: how long rounds took, who took part, who was late or failed, and what happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedray.tracking.chartstyle import AMBER, BLUE, GREY, RED, Chart, curve, label, legend
from fedray.tracking.rundata import RunData

_MOST_BARS = 150
_MOST_GAPS = 60  # bars up to which there is room between them

#: How a client's turn may end, by the metric that counts it, and the colour.
_ENDS = {
    "clients_completed": ("counted", BLUE),
    "clients_surplus": ("not needed", GREY),
    "clients_late": ("late", AMBER),
    "clients_failed": ("failed", RED),
    "clients_refused": ("without budget", "#7a4fa3"),
}


def timeline(run: RunData) -> Iterator[Chart]:
    """Seconds and clients of each round, with the faults beneath."""
    seconds = next((key for key in ("time/virtual_s", "time/round_s") if len(run.series(key)[0]) > 1), None)
    rounds, ends = turns(run)
    events = happened(run)
    panels = [bool(seconds), len(rounds) > 1, bool(events)]
    if not any(panels):
        return
    said = ["Seconds of each round"] if seconds == "time/round_s" else ["Simulated seconds of each round"] if seconds else []
    if len(rounds) > 1:
        late, failed = (int(sum(dict(run_series(run, key)).values())) for key in ("round/clients_late", "round/clients_failed"))
        said.append(f"the clients of each round by how their turn ended; {late} turn{'' if late == 1 else 's'} late, {failed} failed")
    count = sum(map(len, events.values()))
    said.append(f"{count} event{'s' if count > 1 else ''} beneath" if events else "no faults happened")
    caption = "; ".join(said) + "."
    if len(rounds) > _MOST_BARS:
        caption += f" Bars are means of {-(-len(rounds) // _MOST_BARS)} neighbouring rounds or fewer."
    if run.rows and not rounds and run.summary.get("privacy", {}).get("epsilon") is not None:
        caption += " Who and how many took part, and how long it took, is withheld where the guarantee counts on secret cohorts."
    height = 1.0 + 1.5 * sum(panels[:2]) + (0.3 + 0.25 * len(events) if events else 0.0)
    yield Chart("timeline", "timeline of rounds", caption, partial(_timeline, run, seconds, rounds, ends, events), height)


def run_series(run: RunData, key: str) -> list[tuple[int, float]]:
    """Return (round, value) of a metric."""
    return list(zip(*run.series(key), strict=True))


def turns(run: RunData) -> tuple[list[int], dict[str, list[float]]]:
    """Return the rounds in which the number of clients is known, and for each way in which turns ended their number in each round.

    Ways in which no turn ended are left out, apart from those that count.
    """
    rounds, _ = run.series("round/clients_completed")
    found = {}
    for key in _ENDS:
        values = dict(run_series(run, f"round/{key}"))
        if key == "clients_completed" or any(values.values()):
            found[key] = [values.get(r, 0.0) for r in rounds]
    return rounds, found


def happened(run: RunData) -> dict[str, list[int]]:
    """Return the rounds of the faults by kind, and those after which the run was resumed."""
    found: dict[str, list[int]] = {}
    for fault in run.faults:
        found.setdefault(str(fault.get("kind")), []).append(int(fault.get("round", 0)))
    if run.resumed:
        found["resumed"] = [done + 1 for done in run.resumed]
    return found


def _timeline(
    run: RunData, seconds: str | None, rounds: Sequence[int], ends: dict[str, list[float]], events: dict[str, list[int]], figure: Any
) -> None:
    heights = ([1.5] if seconds else []) + ([1.5] if len(rounds) > 1 else []) + ([0.3 + 0.25 * len(events)] if events else [])
    panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    left = panels.copy()
    if seconds:
        axes = left.pop(0)
        curve(axes, *run.series(seconds), colour=BLUE)
        label(axes, "", "virtual seconds" if "virtual" in seconds else "seconds")
        axes.set_ylim(bottom=0)
    if len(rounds) > 1:
        axes = left.pop(0)
        _bars(axes, rounds, ends)
        label(axes, "", "clients")
        axes.yaxis.get_major_locator().set_params(integer=True)
        if len(ends) > 1:
            legend(axes)
    if events:
        axes = left.pop(0)
        for i, (kind, at) in enumerate(events.items()):
            axes.plot(at, [i] * len(at), color=AMBER if kind == "resumed" else RED, marker="x", markersize=5, linestyle="none")
        axes.set_yticks(range(len(events)), list(events))
        axes.set_ylim(-0.6, len(events) - 0.4)
    label(panels[-1], "round", panels[-1].get_ylabel())


def _bars(axes: Any, rounds: Sequence[int], ends: dict[str, list[float]]) -> None:
    groups = min(_MOST_BARS, len(rounds))
    at = np.array([part.mean() for part in np.array_split(np.asarray(rounds, dtype=np.float64), groups)])
    width, below = (rounds[-1] - rounds[0] + 1) / groups, np.zeros(groups)
    for key, values in ends.items():
        name, colour = _ENDS[key]
        means = np.array([part.mean() for part in np.array_split(np.asarray(values), groups)])
        axes.bar(at, means, width * (0.9 if groups <= _MOST_GAPS else 1.0), bottom=below, color=colour, label=name)
        below += means
