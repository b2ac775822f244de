"""Charged sweeps without Ray: which trials there are, what they may change, what they cost, and how a sweep goes on after a break."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from pydantic import ValidationError

from fedray import experiment
from fedray.cli import cli
from fedray.clients.groups import make_groups
from fedray.configfile import load_config
from fedray.errors import BudgetReached, ConfigError, PrivacyRefusal, Stopped
from fedray.planning.preparation import Prepared, prepare
from fedray.privacy.account import Account
from fedray.privacy.accounting import accountant
from fedray.privacy.recordplan import plan_record
from fedray.reporting.frontier import Dot, pareto
from fedray.runfiles import RunFiles
from fedray.storage import write_json
from fedray.stores.object_path import location
from fedray.sweepconfig import Dimension, SweepSection
from fedray.sweeps import sweep
from fedray.sweeps.fleet import bundles
from fedray.sweeps.onetrial import Trial
from fedray.sweeps.outcome import best_of, table
from fedray.sweeps.space import combinations, draw, planned_points
from fedray.sweeps.sweeprules import check_sweep

CONFIG = ROOT / "configs" / "digits-sweep.yaml"
SMALL = ["rounds=2", "sweep.space={privacy.noise_multiplier: [2.0, 4.0, 8.0]}"]


@pytest.fixture(scope="module")
def base() -> Prepared:
    return prepare(load_config(CONFIG, SMALL))


@dataclass
class Fleet:
    """In place of Ray Tune: each trial charges the sweep's ledger as a run does, and its score is the noise multiplier's inverse."""

    base: Prepared
    most: int | None = None
    stop_with: int | None = None
    failing: tuple[int, ...] = ()
    ran: list[int] = field(default_factory=list)

    def __call__(self, trials: Sequence[Trial], config: Any, groups: Any, storage: Path, ended: Any, stop: list[int]) -> None:
        for trial in trials[: self.most]:
            self.ran.append(trial.number)
            if trial.number in self.failing:
                trial.write("failed", None, error="it diverged")
            else:
                self.train(trial)
            ended(trial.number, None)
        if self.stop_with is not None:
            stop.append(self.stop_with)

    def train(self, trial: Trial) -> None:
        plan = plan_record(trial.config)
        ledger = location(trial.config.privacy.ledger)
        with Account.open_run(ledger, dict.fromkeys(self.base.names, plan), f"t{trial.number}/1", lasting=True) as account:
            for number in range(trial.config.rounds):
                account.authorize(number, 0, self.base.names)
            RunFiles(trial.output).create()
            write_json(RunFiles(trial.output).ledger / "records.part.json", account.part())
        score = 1 / plan.noise_multiplier
        privacy = {"unit": "record", "delta": plan.delta, "claim": "valid", "epsilon": 1.0, "adjacency": "zero_out"}
        trial.write("completed", score, final={"eval/accuracy": score}, rounds=trial.config.rounds, privacy=privacy)


@pytest.fixture
def fleet(base: Prepared, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    standing = Fleet(base)
    monkeypatch.setattr(sweep, "run_fleet", standing)
    monkeypatch.setattr(sweep, "joined", lambda *_: nullcontext())
    monkeypatch.setattr(sweep, "bundles", lambda *_: [])
    monkeypatch.setattr(sweep.ray, "cluster_resources", dict)
    monkeypatch.setattr(sweep, "prepare", lambda config: replace(base, config=config, groups=make_groups(config, base.names)))
    return standing


def run(where: Path, *more: str, resume: bool = False, said: list[str] | None = None) -> dict[str, Any]:
    told = [] if said is None else said
    return sweep.sweep(load_config(CONFIG, [*SMALL, "tracking={enabled: false}", *more]), str(where), resume, told.append).summary


def test_all_trials_are_charged_to_one_ledger_and_the_figure_is_the_composed_one(fleet: Fleet, tmp_path: Path, base: Prepared) -> None:
    summary = run(tmp_path / "sweep")
    assert fleet.ran == [1, 2, 3] and summary["best"] == 1
    plans = [plan_record(load_config(CONFIG, [*SMALL, f"privacy.noise_multiplier={z}", "sweep=null"])) for z in (2.0, 4.0, 8.0)]
    together = accountant.bound({plan.event(): 2 for plan in plans}, 4e-4, accountant.FINAL_INTERVAL)
    assert summary["privacy"] == [{"unit": "record", "delta": 4e-4, "epsilon": pytest.approx(together)}]
    for row, plan in zip(summary["trials"], plans, strict=True):
        assert row["epsilon"] == pytest.approx(plan.planned_epsilon, rel=1e-9)
    assert (tmp_path / "sweep" / "frontier.png").exists() and (tmp_path / "sweep" / "frontier.svg").exists()
    assert "All 3 trials are charged to the same ledgers" in summary["statement"]


def test_a_sweep_goes_on_after_a_break_and_runs_nothing_twice(fleet: Fleet, tmp_path: Path) -> None:
    fleet.most, fleet.stop_with, where = 2, 15, tmp_path / "sweep"
    with pytest.raises(Stopped, match="--resume"):
        run(where)
    fleet.most = fleet.stop_with = None
    with pytest.raises(ConfigError, match="training.lr was 8.0 and is 4.0"):
        run(where, "training.lr=4.0", resume=True)
    summary = run(where, resume=True)
    assert fleet.ran == [1, 2, 3] and [row["status"] for row in summary["trials"]] == ["completed"] * 3
    with pytest.raises(ConfigError, match="holds a run already"):
        run(where)


def test_a_failing_trial_does_not_end_the_others(fleet: Fleet, tmp_path: Path) -> None:
    fleet.failing, said = (1,), list[str]()
    summary = run(tmp_path / "sweep", said=said)
    assert [row["status"] for row in summary["trials"]] == ["failed", "completed", "completed"] and summary["best"] == 2
    assert any("trial 1 of 3" in line and "it diverged" in line for line in said)
    assert any("failed: it diverged" in line for line in table(summary["trials"], summary["metric"], 2))


def test_trials_that_do_not_fit_the_budget_are_refused_beforehand(fleet: Fleet, tmp_path: Path) -> None:
    said = list[str]()
    summary = run(tmp_path / "sweep", "privacy.budget=1.4", said=said)
    assert fleet.ran == [1, 2] and [row["status"] for row in summary["trials"]] == ["completed", "completed", "refused"]
    assert summary["privacy"][0]["epsilon"] <= 1.4
    assert any("1 of 3 trials are refused, from trial 3 on" in line for line in said)
    with pytest.raises(BudgetReached, match="no trial of this sweep fits"):
        run(tmp_path / "none", "privacy.budget=0.5")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (["sweep.space={privacy.ledger: [run]}"], ConfigError, "charged to the same ledgers"),
        (["sweep.space={tracking.uri: [a]}"], ConfigError, "one store"),
        (["sweep.space={data.partition.alpha: [1.0, 2.0]}"], PrivacyRefusal, "other records in each trial"),
        (["sweep.space={seed: [0, 1]}"], PrivacyRefusal, "other records in each trial"),
        (["sweep.concurrent=2"], PrivacyRefusal, "one run at a time charges a ledger"),
        (["sweep.metric=fairness/accuracy_worst"], ConfigError, "is no metric of the driver's test records"),
        (["sweep.space={training.lrr: [0.1]}"], ConfigError, "training.lrr: unknown key"),
        (["sweep=null"], ConfigError, "no sweep section"),
    ],
)
def test_what_may_not_be_swept_is_refused(change: list[str], error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        run(tmp_path / "sweep", *change)
    assert not (tmp_path / "sweep").exists()


def test_seeds_may_be_swept_where_nothing_is_private() -> None:
    assert check_sweep(load_config(CONFIG, ["privacy={regime: none}", "sweep.space={seed: [0, 1, 2]}", "sweep.concurrent=2"]))


@pytest.mark.parametrize(
    "section",
    [
        {"space": {}},
        {"space": {"a": []}},
        {"space": {"a": {"uniform": [0.0, 1.0]}}},
        {"space": {"a": {"loguniform": [0.0, 1.0]}}, "search": "random", "trials": 2},
        {"space": {"a": {"uniform": [0.0, 1.0], "choice": [1]}}, "search": "random", "trials": 2},
        {"space": {"a": [1]}, "search": "random"},
        {"space": {"a": [1]}, "trials": 3},
        {"space": {"a": [1]}, "mean": 3.0},
        {"space": {"a": [1]}, "grace": 3},
        {"space": {"a": [1]}, "unknown": 1},
    ],
)
def test_a_section_that_contradicts_itself_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepSection.model_validate(section)


def test_fedray_run_refuses_a_sweep() -> None:
    with pytest.raises(ConfigError, match="run it with fedray sweep, or set sweep=null"):
        experiment.run(CONFIG)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(u=st.floats(0.0, 1.0, exclude_max=True), low=st.floats(1e-6, 1.0), width=st.floats(1e-3, 100.0))
def test_draws_stay_in_the_space(u: float, low: float, width: float) -> None:
    space = {"a": Dimension(uniform=[low, low + width]), "b": Dimension(loguniform=[low, low + width]), "c": Dimension(choice=[1, 2, 3])}
    point = draw(SweepSection(space=space, search="random", trials=1), lambda: u)
    assert low <= point["a"] <= low + width and low <= point["b"] <= low + width and point["c"] in (1, 2, 3)
    assert math.log(point["b"] / low) == pytest.approx(u * math.log((low + width) / low), abs=1e-4)


def test_points_follow_from_the_seed_and_grids_are_complete() -> None:
    grid = load_config(CONFIG).sweep
    assert grid is not None and len(list(combinations(grid))) == 12 == len({json.dumps(p) for p in planned_points(grid, 0)})
    space = {"training.lr": {"loguniform": [0.1, 10.0]}}
    random = SweepSection.model_validate({"space": space, "search": "random", "trials": 5})
    assert planned_points(random, 1) == planned_points(random, 1) != planned_points(random, 2)


def test_trials_share_a_cluster_without_asking_for_more_than_it_has(base: Prepared) -> None:
    assert bundles(base, {"CPU": 2.0}, 1) == [{}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert bundles(base, {"CPU": 9.0}, 2) == [{}, *[{"CPU": 1.0}] * 4]
    assert len(bundles(base, {"CPU": 64.0}, 2)) == 11  # ten clients, and no more actors than that
    with pytest.raises(ConfigError, match="3 trial.s. at a time need CPU 1 each, more than this cluster has"):
        bundles(base, {"CPU": 2.0}, 3)


def test_the_best_is_by_the_last_score_and_failures_do_not_count() -> None:
    rows = [
        {"trial": 1, "status": "completed", "score": math.nan},
        {"trial": 2, "status": "failed", "score": None},
        {"trial": 3, "status": "completed", "score": 0.5},
        {"trial": 4, "status": "budget_reached", "score": 0.7},
        {"trial": 5, "status": "stopped", "score": 0.9},
    ]
    assert best_of(rows, True) == rows[3] and best_of(rows, False) == rows[2]
    assert best_of(rows[:2], True) is None


def test_the_frontier_is_what_nothing_else_beats() -> None:
    dots = [Dot(n, e, s) for n, e, s in [("a", 1.0, 0.5), ("b", 2.0, 0.4), ("c", 3.0, 0.8), ("d", 3.0, 0.7), ("e", 0.5, 0.1)]]
    assert [d.name for d in pareto(dots)] == ["e", "a", "c"]
    assert [d.name for d in pareto(dots, largest=False)] == ["e"]


def test_runs_are_compared_without_mixing_units(tmp_path: Path) -> None:
    def finished(name: str, unit: str | None, source: str, score: float, **config: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        raw = {"name": name, "rounds": 3, "data": {"source": source}, "evaluation": {"metrics": ["accuracy"]}, **config}
        (folder / "config.yaml").write_text(json.dumps(raw))
        privacy = {"unit": unit, "epsilon": None if unit is None else 2.0, "delta": 1e-4, "claim": "valid" if name != "void" else "void"}
        summary = {"status": "completed", "rounds": 3, "planned_rounds": 3, "final": {"eval/accuracy": score}, "faults": {"late": 2}}
        write_json(
            folder / "summary.json", {**summary, "privacy": privacy, "performance": {"setup_seconds": 3.0, "seconds_per_round": 1.0}}
        )
        return str(folder)

    one = finished("one", "record", "sklearn:digits", 0.9, training={"lr": 0.1})
    other = finished("other", "client", "sklearn:digits", 0.8, training={"lr": 0.2})
    void = finished("void", "record", "sklearn:wine", 0.7, training={"lr": 0.1})
    plain = finished("plain", None, "sklearn:digits", 0.95, training={"lr": 0.1})
    picture = tmp_path / "frontier.svg"
    told = CliRunner().invoke(cli, ["compare", one, other, void, plain, "--plot", str(picture)])
    assert told.exit_code == 0, told.output
    assert "2.000 a record at 0.0001" in told.output and "VOID, 2.000 a record" in told.output and "no privacy" in told.output
    assert "training.lr" in told.output and "rounds  " not in told.output.partition("config keys that differ")[2]
    assert "different protected units (record, client), so their epsilons cannot be compared" in told.output
    assert "different data sets" in told.output and "The claim is void for void" in told.output
    drawn = picture.read_text()
    assert drawn.count('id="axes_') == 3  # a panel for each unit and data set
    found = json.loads(CliRunner().invoke(cli, ["compare", one, plain, "--json"]).output)
    assert found["differences"] == {} and [row["score"] for row in found["runs"]] == [0.9, 0.95]
    nothing = CliRunner().invoke(cli, ["compare", plain, "--plot", str(picture)])
    assert nothing.exit_code == 2 and "nothing to draw" in nothing.output
    nowhere = CliRunner().invoke(cli, ["compare", str(tmp_path)])
    assert nowhere.exit_code == 2 and "holds no run" in nowhere.output
