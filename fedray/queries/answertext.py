"""The answers of a query as text for a terminal: each number beside what its noise leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from fedray.rounding import as_given, rounded_up


def answer_lines(answers: Mapping[str, Any], private: Mapping[str, Any]) -> Iterator[str]:
    """The lines: each statistic, how its intervals are meant, and what the query cost.

    Args:
        answers: the content of ``answers.json``.
        private: ``privacy`` of ``summary.json``.
    """
    odd: dict[str, None] = {}
    for name, one in answers["answers"].items():
        odd |= dict.fromkeys(["a count negative"] if "counts" in one or one["kind"] == "count" else [])
        odd |= dict.fromkeys(["an accuracy larger than 1"] if isinstance(one.get("accuracy"), float) else [])
        yield f"{name}  ({one['kind']} of {one['records']} {one['of'].replace('_', '-')} records)"
        yield from (f"  {line}" for line in _lines(one))
    if answers["noise_multiplier"] is None:
        yield "NOT PRIVATE: exact answers, charged to nobody."
        return
    noise = f" Noise can make {' and '.join(odd)}." if odd else ""
    yield (
        f"[low, high] and +- hold the answer without noise with probability {answers['confidence']:.0%}, each by itself; the sampling error (what "
        f"other records would have given) is not in them.{noise}"
    )
    yield (
        f"epsilon {rounded_up(answers['epsilon'])} for this query, {rounded_up(private['epsilon'])} with all charges of the ledgers, "
        f"at delta {as_given(answers['delta'])}" + ("" if answers["claim"] == "valid" else f"; claim {answers['claim']}")
    )


def _lines(one: Mapping[str, Any]) -> Iterator[str]:
    if one["kind"] == "confusion_matrix":
        yield from _table(["", *(f"taken for {label}" for label in one["labels"])], one["labels"], one["counts"])
        if one["margin"]:
            yield f"each count +- {one['margin']:.1f} (noise)"
    elif one["kind"] == "covariance":
        cells = [[_with_margin(*both) for both in zip(*rows, strict=True)] for rows in zip(one["covariance"], one["margins"], strict=True)]
        yield from _table(["covariance", *one["columns"]], one["columns"], cells)
        yield ", ".join(f"mean of {column} {mean:.5g}" for column, mean in zip(one["columns"], one["means"], strict=True))
    elif one["kind"] == "calibration":
        rows = [
            [f"{count:.1f}", *("-" if v is None else f"{v:.3f}" for v in both)]
            for count, *both in zip(one["counts"], one["confidence"], one["accuracy"], strict=True)
        ]
        yield from _table(["confidence in", "records", "mean confidence", "accuracy"], _bins(one["edges"]), rows)
        if one["count_margin"]:
            yield f"each number of records +- {one['count_margin']:.1f} (noise)"
    elif "counts" in one and "intervals" in one:
        names = one["labels"] if "labels" in one else _bins(one["edges"])
        shown = [[f"{count:.1f}", _between(ends)] for count, ends in zip(one["counts"], one["intervals"], strict=True)]
        yield from _table(["class" if "labels" in one else "bin", "records", "interval"], names, shown)
    elif isinstance(columns := one.get("columns"), Mapping):
        for column, found in columns.items():
            for entry in found if isinstance(found, list) else [found]:
                yield f"{column}: {', '.join(_numbers(entry))}"
    left_out = ("records", "noise_std", "margin", "count_margin")
    if text := ", ".join(_numbers({key: value for key, value in one.items() if key not in left_out})):
        yield text


def _numbers(entry: Mapping[str, Any]) -> Iterator[str]:
    """The single numbers of an answer, each with its interval."""
    for key, value in entry.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            ends = entry.get(f"{key}_interval") or (entry.get("interval") if key == "value" else None)
            yield f"{key.replace('_', ' ')} {value:.5g}" + ("" if ends is None else f" {_between(ends)}")


def _bins(edges: Sequence[float]) -> list[str]:
    return [f"[{a:g}, {b:g})" for a, b in pairwise(edges)]


def _between(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.5g}, {ends[1]:.5g}]"


def _with_margin(value: float, margin: float) -> str:
    return f"{value:.4g} +- {margin:.2g}" if margin else f"{value:.4g}"


def _table(head: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """The rows behind their names, each column as wide as its widest cell."""
    shown = [
        list(head),
        *([name, *(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row)] for name, row in zip(names, rows, strict=True)),
    ]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for first, *rest in shown:
        yield "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]).rstrip()
