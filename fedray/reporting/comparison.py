"""Compares finished runs: their results and privacy side by side, and only those config keys in which they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedray.configfile import flat, parse_yaml
from fedray.errors import ConfigError, FedrayError
from fedray.reporting.frontier import Dot, draw_frontier
from fedray.rounding import as_given, rounded_up
from fedray.runfiles import RunFiles
from fedray.storage import read_json
from fedray.stores.mirror import local_copy
from fedray.stores.object_path import location
from fedray.tracking.journal import latest_rows

Found = dict[str, Any]

#: Keys that say where a run stands and not what it does.
_WHERE = ("tracking.", "ray.", "experiment", "name")


def compare_runs(runs: Sequence[str]) -> Found:
    """What is told of each run, as JSON data.

    Args:
        runs: directories or addresses of runs; the directory of a sweep stands for its trials.

    Returns:
        ``runs`` (a row each), ``differences`` (config key to each run's value, in the order of the runs), ``notes`` (what cannot be
        compared, and why), ``metric`` (the score, where all runs have the same).

    Raises:
        ConfigError: one of them is no run.
        FedrayError: a file is damaged.
    """
    rows, configs = list[Found](), list[dict[str, Any]]()
    with ExitStack() as held:
        for given in runs:
            place = held.enter_context(local_copy(location(given, "RUN")))
            for name, folder in _folders(given, place):
                config = dict(flat(_config(folder)))
                rows.append(_row(name, folder, config))
                configs.append(config)
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if not key.startswith(_WHERE)]
    differing = {key: [config.get(key) for config in configs] for key in keys if len({repr(config.get(key)) for config in configs}) > 1}
    metrics = {row["metric"] for row in rows}
    return {"runs": rows, "differences": differing, "notes": _notes(rows), "metric": metrics.pop() if len(metrics) == 1 else None}


def _folders(given: str, place: Path) -> Iterator[tuple[str, Path]]:
    if (place / "sweep_state.json").exists() and not RunFiles(place).summary.exists():  # a sealed sweep has left one run
        trials = [folder for folder in sorted((place / "trials").glob("trial-*")) if RunFiles(folder).config.exists()]
        if not trials:
            raise ConfigError(f"{given}: no trial of this sweep has begun, so there is nothing to compare yet.")
        yield from ((f"{Path(given).name}/{folder.name}", folder) for folder in trials)
        return
    if not RunFiles(place).config.exists():
        raise ConfigError(f"{given}: holds no run (config.yaml is missing); name a run's directory.")
    yield given.rstrip("/").rpartition("/")[2] or given, place


def _config(folder: Path) -> dict[str, Any]:
    path = RunFiles(folder).config
    raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(raw, dict):
        raise FedrayError(f"{path}: is no config; bring the run's own file back.")
    return raw


def _row(name: str, folder: Path, config: Mapping[str, Any]) -> Found:
    summary = RunFiles(folder).read_summary() or {}
    private = summary.get("privacy") or {}
    rows = latest_rows(folder)
    metrics = config.get("evaluation.metrics") or []
    metric = f"eval/{str(metrics[0]).rpartition(':')[2]}" if metrics else "eval/loss"
    epsilon = private.get("epsilon")
    return {
        "run": name,
        "status": summary.get("status", "not ended"),
        "metric": metric,
        "score": (summary.get("final") or {}).get(metric),
        "epsilon": epsilon,
        "unit": private.get("unit"),
        "delta": private.get("delta"),
        "claim": private.get("claim"),
        "ledger": config.get("privacy.ledger"),
        "rounds": summary.get("rounds", len(rows)),
        "planned_rounds": summary.get("planned_rounds", config.get("rounds")),
        "seconds": _seconds(rows, summary),
        "faults": sum(v for v in (summary.get("faults") or {}).values() if isinstance(v, int)),
        "data": config.get("data.source"),
        "digest": (read_json(RunFiles(folder).partition) or {}).get("digest") if RunFiles(folder).partition.exists() else None,
    }


def _seconds(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> float | None:
    """The time that the rounds took, with the preparation of the last start."""
    performance = summary.get("performance") or {}
    pace = performance.get("seconds_per_round")
    return None if pace is None else float(performance.get("setup_seconds", 0.0)) + float(pace) * len(rows)


def _notes(rows: Sequence[Found]) -> list[str]:
    notes = []
    told = {"unit": "protected units", "data": "data sets", "metric": "scores", "delta": "deltas"}
    for key, words in told.items():
        values = list(dict.fromkeys(str(row[key]) for row in rows if row[key] is not None))
        if len(values) > 1:
            what = "their epsilons" if key in ("unit", "delta") else "their scores"
            notes.append(f"These runs have different {words} ({', '.join(values)}), so {what} cannot be compared with each other.")
    if any(row["epsilon"] is not None for row in rows) and any(row["unit"] is None for row in rows):
        notes.append("Runs without privacy have no epsilon, so they stand beside the frontier and not on it.")
    void = [row["run"] for row in rows if row["claim"] == "void"]
    if void:
        notes.append(f"The claim is void for {', '.join(void)}: their epsilon promises nothing.")
    lasting = {row["ledger"] for row in rows if row["epsilon"] is not None and row["ledger"] not in (None, "run")}
    if lasting:
        notes.append(
            "Epsilons of runs on a lasting ledger contain what earlier runs spent, in the order in which they ran; `fedray ledger show` has the total."
        )
    elif sum(row["epsilon"] is not None for row in rows) > 1:
        notes.append(
            "Each epsilon is that of its run alone. Who sees several of these runs, or a choice among them, learns more than each says."
        )
    return notes


def comparison_text(found: Mapping[str, Any]) -> str:
    """The comparison as text."""
    head = ["run", "score", "epsilon", "rounds", "time", "faults", "ended"]
    cells = [head]
    for row in found["runs"]:
        score = "-" if row["score"] is None else f"{row['score']:.4f} {row['metric']}"
        cells.append(
            [
                row["run"],
                score,
                _epsilon(row),
                f"{row['rounds']}/{row['planned_rounds']}",
                _time(row["seconds"]),
                str(row["faults"] or "-"),
                row["status"],
            ]
        )
    lines = [*_aligned(cells), ""]
    if found["differences"]:
        lines += [
            "config keys that differ",
            *_aligned([["", *(r["run"] for r in found["runs"])], *([k, *map(_shown, v)] for k, v in found["differences"].items())]),
        ]
    else:
        lines.append("no config key differs")
    return "\n".join([*lines, "", *(f"note: {note}" for note in found["notes"])]).rstrip()


def _epsilon(row: Mapping[str, Any]) -> str:
    if row["epsilon"] is None:
        return "no privacy" if row["unit"] is None and row["status"] != "not ended" else "-"
    void = "VOID, " if row["claim"] != "valid" else ""
    return f"{void}{rounded_up(row['epsilon'], 3, fixed=True)} a {row['unit']} at {as_given(row['delta'])}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _shown(value: Any) -> str:
    return "-" if value is None else format(value, "g") if isinstance(value, float) else str(value)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def draw_comparison(path: Path, found: Mapping[str, Any]) -> None:
    """Draw scores over epsilons, with a panel for each unit, delta, data set and metric.

    Raises:
        ConfigError: no run has both, or the file cannot be written.
    """
    from fedray.training.metrics import lower_is_better

    dots = []
    for row in found["runs"]:
        if row["score"] is not None and isinstance(row["epsilon"], int | float) and math.isfinite(row["score"]):
            panel = f"{row['metric']} on {row['data']}, one {row['unit']}, delta {as_given(row['delta'])}"
            dots.append(Dot(row["run"], float(row["epsilon"]), row["score"], panel, row["claim"] != "valid"))
    if not dots:
        raise ConfigError(
            "--plot: none of these runs has both a score and a finite epsilon, so there is nothing to draw; leave --plot out."
        )
    names = {row["metric"].removeprefix("eval/") for row in found["runs"]}
    from fedray.components import METRICS, find

    lower = {name for name in names if name in METRICS.parts() and lower_is_better(find(METRICS, name))}
    draw_frontier(path, dots, "score", "epsilon", largest=not (names and names <= lower))
