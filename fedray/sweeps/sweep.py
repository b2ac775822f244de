"""Runs a sweep: decides what is tried, follows the trials, and writes what came out of them.

The directory of a sweep holds the sweep's plan (``sweep_state.json``), a directory for each trial, and at the end ``sweep.json`` and the
frontier. A trial that has ended has a file that says how; so a sweep whose process was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from fedray.config import Config
from fedray.configfile import dump_config, load_config, resolve_config
from fedray.errors import BudgetReached, ConfigError, FedrayError, Stopped, first_line
from fedray.experiment.cluster import find_place, joined
from fedray.experiment.identity import differences
from fedray.experiment.occupied import PATIENCE, occupied
from fedray.experiment.origin import Origin
from fedray.experiment.request import PartOf
from fedray.experiment.signals import caught, kept_from_children
from fedray.planning.preparation import Prepared, prepare
from fedray.reporting.frontier import Dot, draw_frontier
from fedray.runfiles import RunFiles, choose_output
from fedray.storage import read_json, write_atomic, write_json
from fedray.sweeps import outcome
from fedray.sweeps.fleet import bundles, run_fleet
from fedray.sweeps.onetrial import Trial
from fedray.sweeps.outcome import Row
from fedray.sweeps.parent import ParentRun
from fedray.sweeps.pricing import Unit, compared, histories_of, price, price_text, trials_that_fit, units
from fedray.sweeps.sealedsweep import AT_WORK, SealedWork, begin_sealed, remove_trials
from fedray.sweeps.space import Point, at, combinations, named, planned_points
from fedray.sweeps.sweeprules import check_points, check_sweep, largest_is_best, metric_of
from fedray.tracking.mlflow_store import masked, resolve_uri
from fedray.tracking.opening import end_left

STATE, SUMMARY, FRONTIER = "sweep_state.json", "sweep.json", "frontier"
_TRIALS = "trials"

#: Receives each line that a sweep has to say while it is at work.
Tell = Callable[[str], None]


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended: the content of ``sweep.json``, and the sweep's directory."""

    summary: dict[str, Any]
    output: Path


def sweep(config: Config, output: str | None = None, resume: bool = False, tell: Tell = lambda line: None) -> SweepResult:
    """Run a sweep, or continue one.

    Args:
        config: with a sweep section.
        output: the sweep's directory; default ``runs/NAME``, as for a run.
        resume: whether to continue the sweep in ``output``.
        tell: receives what there is to say.

    Raises:
        ConfigError: the config or the cluster is not usable; nothing was trained.
        PrivacyRefusal: the sweep would void a claim.
        BudgetReached: not even one trial fits the privacy budget.
        Stopped: a signal ended the sweep; it can be resumed.
    """
    section = check_sweep(config)
    where = choose_output(config.name, output, resume)
    if not isinstance(where, Path):
        raise ConfigError("--output: a sweep works in a directory that all nodes see; name one, not the address of an object store.")
    check_points(config, list(combinations(section)))
    RunFiles(where).create()
    place, stop, origin = find_place(config.ray), list[int](), Origin.here()
    begin = _begin_sealed if section.price == "sealed" else _begin
    with caught(stop, signal.SIGHUP), occupied(RunFiles(where), PATIENCE if resume else 0.0), ExitStack() as held:
        work = begin(config, where, resume, origin, tell)
        if work is None:
            return SweepResult(read_json(where / SUMMARY) or {}, where)
        if work.waiting:
            with kept_from_children(signal.SIGHUP):
                held.enter_context(joined(place, config.ray))
            groups = bundles(work.prepared, ray.cluster_resources(), section.concurrent)
            with caught(stop, signal.SIGTERM, signal.SIGINT):
                run_fleet(work.waiting, config, groups, work.scratch, partial(work.ended, stop), stop)
        if stop:
            work.leave()
            raise Stopped(f"the sweep was stopped; fedray sweep ... --resume --output {where} continues it.")
        return SweepResult(work.conclude(), where)


@dataclass
class _Work:
    """A sweep at work."""

    config: Config
    prepared: Prepared
    where: Path
    trials: list[Trial]
    refused: dict[int, str]
    units: list[Unit]
    parent: ParentRun | None
    tell: Tell

    @property
    def waiting(self) -> list[Trial]:
        """The trials that are still to be run."""
        return [t for t in self.trials if t.number not in self.refused and t.result is None]

    @property
    def scratch(self) -> Path:
        """Where Ray Tune's own files go."""
        return self.where / ".tune"

    def ended(self, stop: Sequence[int], number: int, last: float | None) -> None:
        """Take note that a trial's process has ended."""
        trial = self.trials[number - 1]
        row = trial.result
        if row is None and stop:
            return
        if row is None:  # the trial's process did not come to its own end
            early = last is not None and self.config.sweep is not None and self.config.sweep.scheduler == "asha"
            rows = len(RunFiles(trial.output).rows()) if trial.output.exists() else 0
            why = None if early else "the trial's process died"
            row = trial.write("stopped" if early else "failed", last, rounds=rows, error=why)
            with suppress(FedrayError):
                end_left(trial.output, "KILLED" if early else "FAILED")
        score = "no score" if row["score"] is None else f"{trial.metric} {row['score']:.4f}"
        error = f": {first_line(FedrayError(row['error']))}" if row.get("error") else ""
        self.tell(f"trial {number} of {len(self.trials)} ({named(trial.point)}): {row['status']}, {score}{error}")

    def leave(self) -> None:
        """End the MLflow run of a sweep that was stopped."""
        if self.parent is not None:
            with suppress(FedrayError):
                self.parent.close("KILLED", "This sweep was stopped; `fedray sweep --resume` continues it.", {}, {}, [])

    def rows(self) -> list[Row]:
        """All trials with their own epsilons, in order."""
        found = []
        for trial in self.trials:
            row = trial.result
            if row is None:
                why = self.refused.get(trial.number, "")
                row = {"trial": trial.number, "point": trial.point, "status": "refused", "score": None, "error": why}
            if row.get("privacy", {}).get("delta"):
                row["epsilon"] = outcome.as_figure(outcome.own_epsilon(trial.output, row["privacy"]["delta"]))
            found.append(row)
        return found

    def conclude(self) -> dict[str, Any]:
        """Write the summary and the frontier, register the best model, and end the sweep's MLflow run; returns the summary."""
        rows, metric, largest = self.rows(), metric_of(self.config), largest_is_best(self.config)
        best = outcome.best_of(rows, largest)
        figures = [{"unit": u.plan.unit, "delta": u.plan.delta, "epsilon": self._composed(u, rows)} for u in self.units]
        summary = {
            "name": self.config.name,
            "price": "charged",
            "metric": metric,
            "largest_is_best": largest,
            "best": None if best is None else best["trial"],
            "privacy": figures,
            "statement": _statement(figures, len(rows)),
            "trials": rows,
        }
        pictures = self._picture(rows, metric, largest, figures)
        write_json(self.where / SUMMARY, summary)
        if self.parent is not None:
            self._tracked(self.parent, summary, pictures)
        return summary

    def _composed(self, unit: Unit, rows: Sequence[Row]) -> float | str | None:
        """The sweep's figure: by the ledgers where they can be read here, else the largest that a trial has stated."""
        found = outcome.composed_epsilon(self.prepared, unit)
        if found is not None:
            return outcome.as_figure(found)
        stated = [row["privacy"]["epsilon"] for row in rows if row.get("privacy", {}).get("unit") == unit.plan.unit]
        return max(stated, key=lambda e: float("inf") if isinstance(e, str) else e, default=None)

    def _picture(self, rows: Sequence[Row], metric: str, largest: bool, figures: Sequence[Mapping[str, Any]]) -> list[Path]:
        dots = [
            Dot(named(row["point"]), row["epsilon"], row["score"], void=row["privacy"]["claim"] != "valid")
            for row in rows
            if isinstance(row.get("epsilon"), float) and row["score"] is not None
        ]
        if not dots:
            return []
        unit, delta = figures[0]["unit"], figures[0]["delta"]
        paths = [self.where / f"{FRONTIER}.{kind}" for kind in ("png", "svg")]
        for path in paths:
            draw_frontier(
                path,
                dots,
                metric,
                f"epsilon of the trial alone (one {unit}, delta {delta:g})",
                largest,
                f"{self.config.name}: {_composed_words(figures)}",
            )
        return paths

    def _tracked(self, parent: ParentRun, summary: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        rows, metric, best = summary["trials"], summary["metric"], summary["best"]
        chosen = next((row for row in rows if row["trial"] == best), None)
        first = (
            "No trial came to its end."
            if chosen is None
            else f"Best {metric} {chosen['score']:.4f} in trial {best} ({named(chosen['point'])})."
        )
        description = f"{first} {summary['statement']}\n\n{outcome.markdown(rows, metric, best)}\n"
        metrics = {} if chosen is None else {metric: float(chosen["score"])}
        epsilon = next((f["epsilon"] for f in summary["privacy"]), None)
        if isinstance(epsilon, float):
            metrics["privacy/epsilon"] = epsilon
        tags = {"fedray.sweep_price": "charged", "fedray.sweep_trials": str(len(rows))}
        tags |= {} if chosen is None else {"fedray.sweep_best": chosen["directory"]}
        try:
            if chosen is not None:
                parent.register(self.where / _TRIALS / chosen["directory"])
            parent.close("FINISHED", description, metrics, tags, [self.where / SUMMARY, *pictures])
        except FedrayError as error:
            self.tell(f"MLflow does not have the sweep's summary ({first_line(error)}); it is in {self.where / SUMMARY}")


def _begin_sealed(config: Config, where: Path, resume: bool, origin: Origin, tell: Tell) -> SealedWork | None:
    """Charge a sealed sweep and draw its trials, or read those of an earlier start; None if it has ended already."""
    if resume:
        _read_state(config, where)
        if (where / SUMMARY).exists():
            remove_trials(where)
            return None
    prepared = prepare(config)
    known = (read_json(where / STATE) or {}).get("mlflow")
    parent = ParentRun.open(config, where, known, origin)
    if not (where / STATE).exists():
        points, repetitions = compared(config)
        for line in price_text(price(prepared, points, repetitions), points, "sealed"):
            tell(line)
        write_atomic(where / "config.yaml", masked(dump_config(config)).encode())
        write_json(where / STATE, {"config": _digest(config), "mlflow": None if parent is None else parent.run_id})
    work = begin_sealed(config, prepared, where, origin, parent, tell)
    tell(AT_WORK)
    return work


def _begin(config: Config, where: Path, resume: bool, origin: Origin, tell: Tell) -> _Work | None:
    """Plan a sweep, or read the plan of one that is resumed; decides which trials fit the budget."""
    shared = _sharing(config, where)
    state = _read_state(config, where) if resume else None
    prepared = prepare(shared)
    points: list[Point] = planned_points(check_sweep(config), config.seed) if state is None else state["points"]
    found = units(prepared, points)
    parent = ParentRun.open(config, where, None if state is None else state.get("mlflow"), origin)
    if state is None:
        for line in price_text(price(prepared, *compared(shared)), points, "charged"):
            if not line.startswith(f"note: {where}"):  # its own ledgers do not exist yet
                tell(line)
        write_atomic(where / "config.yaml", masked(dump_config(config)).encode())
        state = {"id": f"{config.name}-{secrets.token_hex(4)}", "config": _digest(config), "points": points}
        state["mlflow"] = None if parent is None else parent.run_id
        write_json(where / STATE, state)
    part = PartOf({} if parent is None else parent.tags(), origin)
    width = len(str(len(points)))
    directories = [where / _TRIALS / f"trial-{number:0{width}}" for number in range(1, len(points) + 1)]
    before = directories if config.privacy.regimes else []
    trials = [
        Trial(number, point, at(shared, point), output, metric_of(config), part, os.getcwd(), [d for d in before if d != output])
        for number, (point, output) in enumerate(zip(points, directories, strict=True), start=1)
    ]
    refused = _refused(prepared, found, [t for t in trials if t.result is None])
    if refused and len(refused) == len(trials):
        raise BudgetReached(f"no trial of this sweep fits: {next(iter(refused.values()))}")
    for number, why in list(refused.items())[:1]:
        tell(f"{len(refused)} of {len(trials)} trials are refused, from trial {number} on: {why}")
    return _Work(config, prepared, where, trials, refused, found, parent, tell)


def _refused(prepared: Prepared, found: Sequence[Unit], waiting: Sequence[Trial]) -> dict[int, str]:
    """The trials that the budget does not allow after those before them, with a sentence each."""
    fits = len(waiting)
    why = ""
    for whole in found:
        unit = Unit(whole.path, [whole.shares[trial.number - 1] for trial in waiting])
        if not waiting:
            break
        notes: list[str] = []
        pasts = [(group, past) for group in range(len(unit.shares[0])) for past in histories_of(prepared, unit, group, notes)]
        number = trials_that_fit(unit, pasts)
        if number < fits:
            fits = number
            why = (
                f"with it, all trials would cost more than {unit.path}.budget={unit.budget:g} for one {unit.plan.unit} (the budget is for the whole "
                f"sweep); raise it, or sweep fewer or noisier settings."
            )
    return {trial.number: why for trial in waiting[fits:]}


def _sharing(config: Config, where: Path) -> Config:
    """The config with one store and one folder of ledgers for all trials."""
    changes = []
    if config.tracking.enabled:
        changes.append(f"tracking.uri={json.dumps(resolve_uri(config.tracking, where.parent))}")
    if config.privacy.regimes:
        own = json.dumps(str(where / "ledger"))
        changes += [f"privacy.ledger={own}"] if config.privacy.ledger == "run" else []
        changes += [f"privacy.joint.ledger={own}"] if config.privacy.joint is not None and config.privacy.joint.ledger == "run" else []
        changes += [f"clients.groups.{i}.ledger={own}" for i, group in enumerate(config.clients.groups) if group.ledger == "run"]
    return resolve_config(config, changes)


def _digest(config: Config) -> str:
    free = resolve_config(config, ["ray={}", "tracking={}"])
    return hashlib.sha256(dump_config(free).encode()).hexdigest()


def _read_state(config: Config, where: Path) -> dict[str, Any] | None:
    state = read_json(where / STATE)
    if state is not None and state["config"] != _digest(config):
        then = load_config(where / "config.yaml")
        raise ConfigError(
            f"--resume: the config differs from that of the sweep in {where}: {differences(then, config)}. Undo the change, or give another "
            "sweep another --output."
        )
    return state


def _statement(figures: Sequence[Mapping[str, Any]], trials: int) -> str:
    if not figures:
        return "Nothing is protected, so the trials cost no privacy."
    return (
        f"All {trials} trials are charged to the same ledgers: {_composed_words(figures)}. This is the figure for everything that the trials "
        "released, and for the choice among them; a trial's own figure holds only where nothing of the other trials is seen."
    )


def _composed_words(figures: Sequence[Mapping[str, Any]]) -> str:
    from fedray.rounding import as_given, rounded_up

    return (
        "; ".join(f"together epsilon {rounded_up(f['epsilon'])} for one {f['unit']} at delta {as_given(f['delta'])}" for f in figures)
        or "without privacy"
    )
