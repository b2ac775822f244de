"""The head of a run's report: its result, epsilon and claim first, then what stands beside them, and where the run comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from fedray.clientfigures import FRONTS
from fedray.credentials import cleaned
from fedray.reporting.report_text import figure, metric, table, time_text
from fedray.rounding import claim_text, rounded_up
from fedray.rounds.agreed import said_of
from fedray.tracking.journal import number
from fedray.tracking.note import beyond_rows, known_result, privacy_parts
from fedray.tracking.rundata import RunData, unit_of, unit_text
from fedray.tracking.starts import StartNote, earlier, ending


def head(run: Path, config: Mapping[str, Any], data: RunData) -> Iterator[str]:
    """Yield the Markdown lines of the head.

    Args:
        run: the run's output directory.
        config: the resolved config as plain data.
        data: of the run.
    """
    summary = data.summary
    yield from (f"# {run_name(run, data)}", "")
    status = ending(summary, data.starts) if summary else "unfinished: there is no summary.json, so the run is going on or its driver died"
    status = f"{status[0].upper()}{status[1:]}."
    clause, mark, rest = status.partition(";")
    result = known_result(data.quality, data.rows, summary)
    first = " · ".join([f"**{result or 'no final result'}**", *privacy_parts(summary, data.rows)])
    for line in (first, status) if summary.get("status") == "completed" else (f"**{clause}**{mark}{rest}", first):
        yield from (line, "")
    yield from (f"Epsilon {said}.", "") if (said := beyond_rows(data.rows, summary)) else ()
    rows = _final(summary.get("final") or {})
    rows += _beside(data)
    rows += _guaranteed(data)
    rows += [("attack", str(summary["attack"]))] if summary.get("attack") else []
    rows += [("initial model", cleaned(str(summary["initial"])))] if summary.get("initial") else []
    rows += [("agreed data", said_of(summary["agreed"]))] if summary.get("agreed") else []
    rows += _origin(run, data)
    rows += [("model sha256", f"`{summary['model_sha256']}`")] if summary.get("model_sha256") else []
    yield from table(("", ""), rows)


def _final(final: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The final figures but those over clients; those of charged evaluations with the noise that they carry."""

    def said(key: str) -> str:
        noise = number(final.get(key.replace("eval/", "noise/", 1))) if key.startswith("eval/") else None
        return figure(final[key]) + ("" if noise is None else f", with noise of standard deviation {noise:.2g}")

    return [(f"{metric(key)} at the end", said(key)) for key in final if not key.startswith(("noise/", *FRONTS))]


def run_name(run: Path, data: RunData) -> str:
    """Return the name of a run: that of its directory, as it was when the run was started."""
    return next((PurePath(start.output).name for start in reversed(data.starts) if start.output), "") or run.name


def guarantees(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the privacy figures of a summary: of the first guarantee and, empty where there is none, of the second."""
    private = summary.get("privacy") or {}
    return [private, private.get("joint") or {}]


def _beside(data: RunData) -> list[tuple[str, str]]:
    """The non-private twin and the result of guessing, beside the final figure."""
    quality = data.quality
    final = number((data.summary.get("final") or {}).get(quality))
    if quality is None or final is None:
        return []
    rows, twin = [], data.twin
    value = None if twin is None else number(twin.final.get(quality))
    if twin is not None and value is not None:
        rows.append(
            (
                "same config without privacy",
                f"{metric(quality)} {value:.4f} ({twin.name}), {abs(value - final):.4f} {'more' if value > final else 'less'}; "
                "the guarantee does not cover that run",
            )
        )
    counts = [sum(row) for row in data.classes.get("confusion") or []]
    if quality == "eval/accuracy" and sum(counts):
        rows.append(("always the most frequent class", f"accuracy {max(counts) / sum(counts):.4f}"))
    return rows


def _guaranteed(data: RunData) -> list[tuple[str, str]]:
    summary = data.summary
    rows = [
        (
            f"epsilon for {unit_text(unit_of(line))}",
            "; ".join(
                [f"{rounded_up(line['epsilon'])} at delta {line['delta']!r}, regime {line.get('regime')}", *earlier(line, data.starts)]
            ),
        )
        for line in guarantees(summary)
        if line.get("epsilon") is not None
    ]
    private = summary.get("privacy") or {}
    if private.get("epsilon") is not None:
        evaluated = private.get("evaluation")
        return [("claim", claim_text(private)), *rows, *([("evaluation", evaluated["said"])] if evaluated else [])]
    return [("privacy", "none: no guarantee of differential privacy is claimed")] if summary else []


def _origin(run: Path, data: RunData) -> list[tuple[str, str]]:
    """When, for how long, by whom, with which command, commit and versions the run was made."""
    first = data.starts[0] if data.starts else StartNote()
    began = first.time or (number(data.rows[0].get("time")) if data.rows else None)
    rows = []
    if began is not None:
        rows.append(("started", f"{time_text(began)} UTC{_lasted(run, data, began)}"))
    if data.starts[1:]:
        rows.append(("started again", ", ".join(f"{time_text(s.time)} UTC after round {s.after}" for s in data.starts[1:])))
    if first.origin:
        rows.append(
            ("operator", f"{first.origin.get('operator') or 'withheld, or not known'}, on {first.origin.get('host', 'an unknown host')}")
        )
    rows += [("command", f"`{command}`") for command in dict.fromkeys(s.origin.get("command") for s in data.starts) if command]
    if first.origin.get("commit"):
        clean = "no tracked file changed" if first.origin.get("clean") else "with changes that are not committed"
        rows.append(("commit", f"`{first.origin['commit']}`, {clean}"))
    versions = dict(first.versions or data.statement.get("versions") or {})
    versions = {
        "fedray": data.summary.get("fedray") or first.fedray or versions.get("fedray"),
        **{k: versions[k] for k in versions if k != "fedray"},
    }
    rows.append(("versions", ", ".join(f"{name} {text}" for name, text in versions.items() if text)))
    return rows if data.starts or data.summary else []


def _lasted(run: Path, data: RunData, began: float) -> str:
    if not data.summary:
        return ""
    ended = (number(data.rows[-1].get("time")) if data.rows else None) or (run / "summary.json").stat().st_mtime
    lasted = duration(ended - began)
    if len(data.starts) > 1:
        return f", {lasted} from the first start to the end"
    setup = number((data.summary.get("performance") or {}).get("setup_seconds"))
    return f", {lasted}" if setup is None else f", {lasted}, after {duration(setup)} of setting up"


def duration(seconds: float) -> str:
    """Return a duration as text: ``41 s``, ``2 min 5 s``, ``3 h 20 min``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
