"""The report of an audit: as a table, as ``audit.json``, and in MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray import __version__
from fedray.audit.findings import Attack, Check
from fedray.audit.plots import draw
from fedray.config import Config
from fedray.errors import FedrayError
from fedray.rounding import rounded_down, rounded_up
from fedray.storage import write_json
from fedray.tracking.journal import State
from fedray.tracking.mlflow_store import UPLOAD_PATIENCE, connect, experiment_name, patience, resolve_uri, unmasked

_SECTION = "audit"


@dataclass(frozen=True)
class Report:
    """The findings of an audit.

    Attributes:
        config: the audited run.
        target: config file or run directory.
        output: directory for the audit's files.
        checks: checks of the mechanisms; each name begins with the group or unit.
        attacks: attacks on the mechanisms and on the model.
        seed: seed of the audit.
        notes: omitted parts, with the reason.
    """

    config: Config
    target: Path
    output: Path
    checks: Sequence[Check]
    attacks: Sequence[Attack]
    seed: int
    notes: Sequence[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """The findings that contradict the privacy claim, one clause each."""
        failed = [f"the check '{c.name}' failed ({c.found.rstrip('.')})" for c in self.checks if not c.passed]
        above = [
            f"'{a.name}' proves epsilon >= {a.lower:.4g}, above the {rounded_up(a.epsilon)} that is claimed"
            for a in self.attacks
            if a.violated
        ]
        return failed + above

    def data(self, publish: bool = False) -> dict[str, Any]:
        """The report as JSON data; with ``publish`` without the attacks that must stay in the silo."""
        attacks = [a for a in self.attacks if not (publish and self.withheld(a))]
        return {
            "target": str(self.target),
            "name": self.config.name,
            "seed": self.seed,
            "checks": [c.row() for c in self.checks],
            "attacks": [a.row() for a in attacks],
            "faults": self.faults,
            "notes": list(self.notes),
            "fedray": __version__,
        }

    def withheld(self, attack: Attack) -> bool:
        """Whether an attack must stay in the silo, because its figures come from records for which the run claims privacy."""
        return attack.private and self.config.privacy.regime != "none"

    @property
    def verdict(self) -> str:
        """The audit in one clause: ``passed: 11 checks, lower bound 1.88 of 8.00``, or what contradicts the claim."""
        if self.faults:
            return f"contradicts the claim: {'; '.join(self.faults)}"
        shown = [a for a in self.attacks if not self.withheld(a) and a.lower is not None and math.isfinite(a.lower)]
        parts = [f"{len(self.checks)} check{'' if len(self.checks) == 1 else 's'}"] if self.checks else []
        if shown:
            most = max(shown, key=lambda a: a.lower or 0.0)
            proven = "" if most.epsilon is None else f" of {rounded_up(most.epsilon, 2, fixed=True)}"
            parts.append(f"lower bound {rounded_down(most.lower, 2, fixed=True)}{proven}")
        parts += ["an estimate is suspicious"] if any(a.verdict == "estimate suspicious" for a in shown) else []
        return f"passed: {', '.join(parts)}" if parts else "nothing was audited that may be published"

    def table(self) -> str:
        """The report as a table for a terminal."""
        rows = [("what", "lower 95 %", "estimate", "proven epsilon", "verdict")]
        rows += [(c.name, "", "", "", c.verdict) for c in self.checks]
        rows += [
            (a.name, _text(a.lower), _text(a.estimate), "-" if a.epsilon is None else rounded_up(a.epsilon, 3, fixed=True), a.verdict)
            for a in self.attacks
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(w) if i in (0, 4) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        ]
        lines += [f"{a.name}: {_facts(a)}" for a in self.attacks]
        return "\n".join([*lines, *self.notes])


def write(report: Report) -> list[Path]:
    """Write ``audit.json`` and the plots; returns the plots that may be published."""
    report.output.mkdir(parents=True, exist_ok=True)
    path = report.output / "audit.json"
    write_json(path, report.data())
    pictures = draw(report.output, report.attacks)
    return [p for a in report.attacks if not report.withheld(a) for p in pictures.get(a.name, [])]


def send(report: Report, pictures: Sequence[Path], pages: Sequence[Path] = ()) -> str:
    """Log an audit to MLflow: to the audited run or, for a config, to a new run with the tag ``fedray.kind=audit``.

    Args:
        report: the report, already written.
        pictures: plots that may be published.
        pages: of the audited run, which are sent again because they tell of the audit.

    Returns:
        A sentence that names the MLflow run.

    Raises:
        TrackingError: the store cannot be used.
    """
    config, state = report.config, State.load(report.target) if report.target.is_dir() else None
    uri = resolve_uri(config.tracking, report.output.parent) if state is None else unmasked(state.tracking_uri)

    own: list[str] = []  # the run that was made for this audit

    def end(client: Any, status: str = "FAILED") -> None:
        for run_id in own:
            client.set_terminated(run_id, status)

    def log(client: Any) -> str:
        from mlflow.entities import Metric, RunTag

        run_id = _new_run(client, report, own) if state is None else state.run_id
        now = int(time.time() * 1000)
        metrics = [Metric(k, v, now, config.rounds) for k, v in figures(report).items()]
        client.log_batch(run_id, metrics=metrics, tags=[RunTag("fedray.audit", report.verdict[:5000])])
        return run_id

    client, run_id = connect(uri, log, end)
    with patience(UPLOAD_PATIENCE):
        try:
            client.log_dict(run_id, report.data(publish=True), f"{_SECTION}/audit.json")
            for picture in pictures:
                client.log_artifact(run_id, str(picture), _SECTION)
            for page in pages:
                client.log_artifact(run_id, str(page))
        except BaseException:
            with suppress(Exception):
                end(client)
            raise
        end(client, "FINISHED")
    return f"logged to MLflow run {run_id}"


def figures(report: Report) -> dict[str, float]:
    """The metrics: the largest lower bound, the largest estimate and the number of failed checks, without withheld and infinite figures."""
    shown = [a for a in report.attacks if not report.withheld(a)]
    found = {
        "privacy/audit_lower95": max((a.lower for a in shown if a.lower is not None), default=None),
        "privacy/audit_estimate": max((a.estimate for a in shown if a.estimate is not None), default=None),
        "privacy/audit_checks_failed": float(sum(not c.passed for c in report.checks)) if report.checks else None,
    }
    return {k: float(rounded_down(v)) for k, v in found.items() if v is not None and math.isfinite(v)}


def conclude(report: Report) -> None:
    """Raise if the audit contradicts the privacy claim.

    Raises:
        FedrayError: a check failed, or a lower bound is above the proven epsilon.
    """
    if report.faults:
        raise FedrayError(f"{report.target}: the audit contradicts the privacy claim: {'; '.join(report.faults)}.")


def _new_run(client: Any, report: Report, own: list[str]) -> str:
    from mlflow.entities import RunTag

    config = report.config
    name = experiment_name(config)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known is not None else client.create_experiment(name)
    run = client.create_run(experiment, run_name=f"{config.name}-audit")
    own.append(str(run.info.run_id))
    client.log_batch(run.info.run_id, tags=[RunTag("fedray.kind", "audit"), RunTag("fedray.version", __version__)])
    return str(run.info.run_id)


def _facts(attack: Attack) -> str:
    return ", ".join(
        f"{k.replace('_', ' ')} {v:.4g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}" for k, v in attack.facts.items()
    )


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if math.isfinite(value) else "infinity"
