"""A sealed sweep: a secret number of trials, of which only the best one is released, for one charge.

The trials lie in a folder that only its user can enter, with ledgers of their own, and nothing of them is shown, logged to MLflow or kept:
the folder is removed at the end. The number of trials is written only there, so that a sweep whose process was killed can go on.

Source: Papernot & Steinke 2022, Hyperparameter Tuning with Renyi Differential Privacy
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray import __version__
from fedray.config import Config
from fedray.configfile import dump_config, load_config, resolve_config
from fedray.errors import ClaimVoid, FedrayError, first_line
from fedray.experiment.origin import Origin
from fedray.experiment.request import PartOf
from fedray.planning.preparation import Prepared
from fedray.privacy.accounting.repetition import Repetitions
from fedray.privacy.csprng import Csprng
from fedray.privacy.figures import listed
from fedray.privacy.sealedtext import sealed_statement
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown
from fedray.runfiles import RunFiles
from fedray.storage import read_json, write_atomic, write_json
from fedray.sweeps.onetrial import RESULT, Trial
from fedray.sweeps.outcome import best_of
from fedray.sweeps.parent import ParentRun
from fedray.sweeps.pricing import Unit, units
from fedray.sweeps.reservation import Reserved, check_trial, reserve
from fedray.sweeps.space import Point, at, combinations, draw, named
from fedray.sweeps.sweeprules import largest_is_best, metric_of
from fedray.tracking.mlflow_store import masked

#: The folder of the trials, below the sweep's directory; mode 0700.
PRIVATE = ".private"
#: What a sealed sweep says while it is at work, and at its end.
AT_WORK = "The trials are at work. Nothing of them is shown, not even how many there are, until the best one is released."
REMOVED = "The other trials were removed, and how many there were is not kept."
_PLAN = "plan.json"


@dataclass
class SealedWork:
    """A sealed sweep at work; made by :func:`begin_sealed`."""

    config: Config
    where: Path
    space: list[Unit]
    repetitions: Repetitions
    reserved: list[Reserved]
    prepared: Prepared
    trials: list[Trial]
    parent: ParentRun | None
    tell: Callable[[str], None]

    @property
    def private(self) -> Path:
        """The folder of the trials."""
        return self.where / PRIVATE

    @property
    def waiting(self) -> list[Trial]:
        """The trials that are still to be run."""
        return [t for t in self.trials if t.result is None]

    @property
    def scratch(self) -> Path:
        """Where Ray Tune's own files go."""
        return self.private / "tune"

    def leave(self) -> None:
        """End the MLflow run of a sweep that was stopped."""
        if self.parent is not None:
            with suppress(FedrayError):
                self.parent.close("KILLED", "This sealed sweep was stopped; `fedray sweep --resume` continues it.", {}, {}, [])

    def ended(self, stop: Sequence[int], number: int, last: float | None) -> None:
        """Take note that a trial's process has ended; one that died counts as the worst."""
        trial = self.trials[number - 1]
        if trial.result is None and not stop:
            trial.write("failed", None, error="the trial's process died")

    def conclude(self) -> dict[str, Any]:
        """Release the best trial, and end the sweep's MLflow run with it; see :meth:`release`."""
        try:
            summary = self.release()
        except FedrayError:
            if self.parent is not None:
                with suppress(FedrayError):
                    self.parent.close("FAILED", "This sealed sweep released nothing; its charge stays.", {}, {}, [])
            raise
        if self.parent is not None:
            try:
                self._send(self.parent, summary)
            except FedrayError as error:
                self.tell(f"MLflow does not have what was released ({first_line(error)}); fedray sync {self.where} sends it.")
        self.tell(REMOVED)
        return summary

    def _send(self, parent: ParentRun, summary: Mapping[str, Any]) -> None:
        parent.adopt(self.where, load_config(RunFiles(self.where).config))
        metric, epsilon = summary["metric"], summary["privacy"][0]["epsilon"]
        metrics = {metric: float(summary["score"])} | ({"privacy/epsilon": float(epsilon)} if isinstance(epsilon, float) else {})
        description = f"{metric} {summary['score']:.4f} with {named(summary['point'])}. {summary['statement']} {summary['tuning']}\n"
        parent.close("FINISHED", description, metrics, {"fedray.sweep_price": "sealed"}, [self.where / "sweep.json"])

    def release(self) -> dict[str, Any]:
        """Write the best trial's model, settings and score, the statement and ``sweep.json``; then remove the trials.

        Returns:
            the content of ``sweep.json``.

        Raises:
            ClaimVoid: a trial ran something that was not charged; nothing is released.
            FedrayError: no trial came to its end; nothing but this is released.
        """
        metric, largest = metric_of(self.config), largest_is_best(self.config)
        rows = [row for trial in self.trials if (row := trial.result) is not None]
        if len(rows) < len(self.trials):
            raise FedrayError("not every trial of the sealed sweep came to its end; --resume continues it, for the same charge.")
        try:
            self._check()
            best = best_of(rows, largest)
            if best is None:  # the output of the best trial is its failure
                raise FedrayError(
                    f"no trial of the sealed sweep came to its end ({rows[0].get('error')}); the charge stays, and the model is none."
                )
            summary = self._write(self.trials[best["trial"] - 1], best, metric)
        except FedrayError:
            remove_trials(self.where)
            raise
        remove_trials(self.where)
        return summary

    def _check(self) -> None:
        """Compare every trial's charges with the sweep's one; what is wrong is told without the path of a trial, which has its number."""
        try:
            for trial in self.trials:
                check_trial(trial.output, units(self.prepared, [trial.point]), self.space)
        except ClaimVoid:
            raise
        except FedrayError as error:
            raise ClaimVoid(
                f"the ledger of a trial cannot be read ({type(error).__name__}), so nothing of this sweep is released."
            ) from None

    def _write(self, trial: Trial, best: dict[str, Any], metric: str) -> dict[str, Any]:
        """Write everything that is released. Files are written anew, because their times would tell when the trial ran."""
        files, trained = RunFiles(self.where), RunFiles(trial.output)
        config = at(self.config, trial.point)
        model = trained.model.read_bytes()
        told = trained.read_summary() or {}
        frozen = str((read_json(trained.statement) or {}).get("frozen_sha256") or "")
        statement = self._statement(config, frozen)
        write_atomic(files.config, masked(dump_config(config)).encode())
        write_json(files.partition, read_json(trained.partition))
        write_atomic(files.model, model)
        write_json(files.statement, statement)
        write_atomic(self.where / "privacy_statement.md", statement_markdown(statement).encode())
        for reserved in self.reserved:
            if reserved.part:
                files.ledger.mkdir(exist_ok=True)
                write_json(files.ledger / f"{reserved.book}.part.json", reserved.part)
        run = {
            "status": "completed",
            "error": None,
            "name": config.name,
            "rounds": told["rounds"],
            "planned_rounds": config.rounds,
            "model_sha256": told["model_sha256"],
            "final": best["final"],
            "best": None,
            "attack": told.get("attack"),
            "agreed": None,
            "privacy": statement["summary"],
            "performance": {},
            "faults": {},
            "engine": told.get("engine"),
            "profile": {},
            "mlflow": {"tracking_uri": None, "run_id": None},
            "fedray": __version__,
        }
        write_json(files.summary, run)
        summary = {
            "name": config.name,
            "price": "sealed",
            "metric": metric,
            "largest_is_best": largest_is_best(self.config),
            "point": trial.point,
            "score": best["score"],
            "privacy": [_figure(statement["summary"])] + [_figure(line["summary"]) for line in statement["joint"]],
            "statement": statement["summary"]["statement"],
            "tuning": statement["tuning"],
        }
        write_json(self.where / "sweep.json", summary)
        return summary

    def _statement(self, config: Config, frozen: str) -> dict[str, Any]:
        guarantees = []
        for reserved in self.reserved:
            plans = list(dict.fromkeys(share.plan for point in reserved.unit.shares for share in point))
            names = [name for share in reserved.unit.shares[0] for name in share.names]
            guarantees.append(Guarantee(reserved.unit.plan.unit, plans, reserved.groups, listed(reserved.groups, names)))
        heads = {reserved.book: reserved.head for reserved in self.reserved}
        head: Any = next(iter(heads.values())) if len(heads) == 1 else heads
        return sealed_statement(privacy_statement(config, guarantees, head, config.rounds, frozen=frozen), self.repetitions)


def _figure(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in ("unit", "delta", "epsilon")}


def remove_trials(where: Path) -> None:
    """Remove everything that tells of the trials of a sealed sweep."""
    shutil.rmtree(where / PRIVATE, ignore_errors=True)


def begin_sealed(
    config: Config, prepared: Prepared, where: Path, origin: Origin, parent: ParentRun | None, tell: Callable[[str], None]
) -> SealedWork:
    """Charge the sweep, draw its trials in secret, or read those of an earlier start.

    Raises:
        BudgetReached: the one charge does not fit.
        LedgerError: a ledger cannot be charged.
    """
    section = config.sweep
    assert section is not None
    repetitions = Repetitions(section.mean or 1.0, section.number_shape)
    space = units(prepared, list(combinations(section)))
    private = where / PRIVATE
    private.mkdir(mode=0o700, exist_ok=True)
    private.chmod(0o700)
    started, drawn = RunFiles(where).begin(), (private / _PLAN).exists()
    reserved = reserve(prepared, space, repetitions, where, f"{started.id}/{started.starts}", anew=not drawn)
    points = _points(config, private, repetitions)
    part = PartOf({}, origin, quiet=True)
    trials = []
    for number, point in enumerate(points, start=1):
        output = private / f"trial-{number:06d}"
        if not (output / RESULT).exists():  # one that was interrupted is begun anew, with new noise
            shutil.rmtree(output, ignore_errors=True)
        alone = resolve_config(at(config, point), _apart(at(config, point)))
        trials.append(Trial(number, point, alone, output, metric_of(config), part, os.getcwd()))
    return SealedWork(config, where, space, repetitions, reserved, prepared, trials, parent, tell)


def _points(config: Config, private: Path, repetitions: Repetitions) -> list[Point]:
    """The points of all trials, drawn once; they and their number are known only to the private folder."""
    known = read_json(private / _PLAN)
    if known is not None:
        return list(known["points"])
    assert config.sweep is not None
    source = Csprng()

    def uniform() -> float:
        return float(source.uniform(1)[0])

    number = repetitions.number(uniform() + 2.0**-54)
    points = [draw(config.sweep, uniform) for _ in range(number)]
    write_json(private / _PLAN, {"points": points})
    return points


def _apart(config: Config) -> list[str]:
    """Overrides that keep a trial to itself: ledgers of its own, no MLflow, and never more charges than the one charge covers."""
    found = ["tracking={enabled: false}", "privacy.ledger=run"]
    found += [f"clients.groups.{i}.ledger=null" for i, _ in enumerate(config.clients.groups)]
    if config.privacy.joint is not None:
        found.append("privacy.joint.ledger=run")
    if config.privacy.record:
        found.append(f"privacy.max_participations={config.privacy.max_participations or config.rounds}")
    return found
