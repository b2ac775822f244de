"""What a run's figures are drawn from: its rows, summary, statement, faults and starts, and other runs of the same config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedray.configfile import parse_yaml
from fedray.errors import FedrayError
from fedray.storage import read_json, read_lines
from fedray.tracking.journal import latest_rows, number
from fedray.tracking.starts import StartNote, read_starts

#: The final model's results by class on the driver's test set: ``labels``, ``confusion`` (records of each class by the class that the model
#: predicts) and ``round``.
CLASS_RESULTS = "class_results.json"

#: Sections of a config that change nothing of what is learned, apart from the privacy by which relatives may differ.
_BESIDE = ("privacy", "tracking", "ray", "checkpoint", "experiment")

#: Largest number of other runs of the same name whose configs are compared, the newest ones.
_MOST_COMPARED = 50


@dataclass(frozen=True)
class Relative:
    """A completed run of the same name and config, which may differ in its privacy.

    Attributes:
        name: name of its directory.
        final: its final metrics.
        epsilon: of the largest client; None without privacy, and where it is infinite.
        unit: the protected unit; None without privacy.
        delta: of the guarantee; None without privacy.
    """

    name: str
    final: Mapping[str, Any]
    epsilon: float | None = None
    unit: str | None = None
    delta: float | None = None


@dataclass(frozen=True)
class RunData:
    """A run's data for its figures. Anything may be missing: then the figures that need it are not drawn.

    Attributes:
        rows: one for each round, in order, with metrics in the config's order.
        summary: content of ``summary.json``.
        statement: content of ``privacy_statement.json``.
        partition: rows of the partition, one for each client.
        faults: rows of ``faults.jsonl``.
        starts: of the run, oldest first.
        classes: content of ``class_results.json``.
        relatives: other completed runs of the same config; see :class:`Relative`.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    statement: Mapping[str, Any] = field(default_factory=dict)
    partition: Sequence[Mapping[str, Any]] = ()
    faults: Sequence[Mapping[str, Any]] = ()
    starts: Sequence[StartNote] = ()
    classes: Mapping[str, Any] = field(default_factory=dict)
    relatives: Sequence[Relative] = ()

    @classmethod
    def of(cls, run_dir: Path) -> RunData:
        """Read the data of a run.

        Raises:
            FedrayError: a file is damaged.
        """
        summary, statement, partition, classes = (
            read_json(run_dir / name) or {} for name in ("summary.json", "privacy_statement.json", "partition.json", CLASS_RESULTS)
        )
        faults = read_lines(run_dir / "faults.jsonl").whole
        rows, starts = latest_rows(run_dir), read_starts(run_dir)
        return cls(rows, summary, statement, client_rows(partition), faults, starts, classes, relatives(run_dir))

    @property
    def quality(self) -> str | None:
        """The metric that stands for the model's quality, with its prefix ``eval/``."""
        return headline(self.rows, self.summary.get("best"))

    @property
    def twin(self) -> Relative | None:
        """The newest run of the same config without privacy; None if there is none, or if this run is without privacy itself."""
        protected = (self.summary.get("privacy") or {}).get("epsilon") is not None
        return next((one for one in self.relatives if protected and one.unit is None), None)

    @property
    def secret(self) -> bool:
        """Whether the guarantee counts on cohorts that stay secret, so that nothing may be shown that tells them."""
        return bool(self.statement.get("reveals_cohorts"))

    @cached_property
    def resumed(self) -> list[int]:
        """The numbers of rounds after which the run was resumed."""
        return sorted({start.after for start in self.starts if start.number > 1 and start.after})

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the rounds and the finite values of one metric, in order."""
        pairs = [(int(r["round"]), v) for r in self.rows if (v := number(r["metrics"].get(key))) is not None]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all metrics, in order of their first row."""
        return list(dict.fromkeys(key for row in self.rows for key in row["metrics"]))


def headline(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None = None) -> str | None:
    """Return the metric that stands for the model's quality; None if there is none.

    Args:
        rows: one for each round, with metrics in the config's order; without ``best`` the first metric below ``eval/`` is returned.
        best: part of the summary: the metric that the run was judged by, and the round.
    """
    named = [k for k in best or {} if k != "round"]
    return next(iter(named), None) or next((k for r in rows for k in r["metrics"] if k.startswith("eval/")), None)


def unit_of(guarantee: Mapping[str, Any]) -> str:
    """Return the protected unit of a guarantee in a run's summary, of a person with the number of its records; empty if it names none."""
    return str(guarantee.get("protects") or guarantee.get("unit") or "")


def unit_text(unit: str | None) -> str:
    """Return a protected unit in words."""
    return "a whole client" if unit == "client" else f"one {unit}"


def client_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the clients' rows of ``partition.json`` (under ``rows``) or of a privacy statement (under ``clients``)."""
    rows = document.get("rows", document.get("clients"))
    return [dict(row) for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def relatives(run_dir: Path) -> list[Relative]:
    """Find the completed runs of the same name and config beside a run's directory, the newest first; damaged ones are left out."""
    mine = _described(run_dir)
    if mine is None:
        return []
    found = []
    for folder in sorted((p.parent for p in run_dir.parent.glob("*/summary.json") if p.parent.name != run_dir.name), key=_age):
        try:
            summary = read_json(folder / "summary.json") or {}
        except FedrayError:
            continue
        if summary.get("name") == mine["name"] and summary.get("status") == "completed":
            found.append((folder, summary))
    return [_relative(folder, summary) for folder, summary in found[:_MOST_COMPARED] if _described(folder) == mine]


def _described(run_dir: Path) -> dict[str, Any] | None:
    """Return what a run's config says apart from the sections beside; None if it cannot be read."""
    try:
        config = parse_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"), "config.yaml")
    except (OSError, UnicodeDecodeError, FedrayError):
        return None
    return {k: v for k, v in config.items() if k not in _BESIDE} if isinstance(config, dict) else None


def _relative(folder: Path, summary: Mapping[str, Any]) -> Relative:
    private = summary.get("privacy") or {}
    unit = unit_of(private) or None
    return Relative(folder.name, summary.get("final") or {}, number(private.get("epsilon")), unit, private.get("delta"))


def _age(folder: Path) -> float:
    try:
        return -(folder / "summary.json").stat().st_mtime
    except OSError:
        return 0.0
