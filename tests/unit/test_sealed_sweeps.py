"""A sealed sweep leaves nothing of the trials that are not the best: neither in its directory, nor in MLflow, nor on the terminal.

The trials are stood in for by runs that only write what a run writes: scores, models, ledgers.
"""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from paths import ROOT

from fedray.cli import cli
from fedray.configfile import load_config, resolve_config
from fedray.errors import BudgetReached, ClaimVoid, FedrayError, PrivacyRefusal, Stopped
from fedray.planning.preparation import Prepared, prepare
from fedray.privacy.account import Account
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import RepeatAndSelect
from fedray.privacy.ledger.inspect import verify_all
from fedray.privacy.ledger.verification import verify
from fedray.privacy.recordplan import plan_record
from fedray.reporting.comparison import compare_runs
from fedray.runfiles import RunFiles
from fedray.storage import write_json
from fedray.sweeps import sealedsweep as sealed
from fedray.sweeps import sweep
from fedray.sweeps.onetrial import Trial

CONFIG = ROOT / "configs" / "digits-sweep.yaml"
SEALED = ["sweep.price=sealed", "sweep.search=random", "sweep.public=true", "sweep.mean=6.0", "rounds=3"]
SEALED += ["sweep.space={privacy.noise_multiplier: [2.0, 4.0], training.lr: {loguniform: [0.1, 10]}}"]


@pytest.fixture(scope="module")
def base() -> Prepared:
    return prepare(load_config(CONFIG, SEALED))


@dataclass
class Fleet:
    """In place of Ray Tune: trials that end at once, with scores and models that are found wherever they are."""

    base: Prepared
    scores: dict[int, float] = field(default_factory=dict)
    folders: list[tuple[int, int]] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    rounds: int = 3
    most: int | None = None
    failing: Callable[[int], bool] = lambda number: False
    stop_with: int | None = None

    def __call__(self, trials: Sequence[Trial], config: Any, groups: Any, storage: Path, ended: Any, stop: list[int]) -> None:
        self.trials = list(trials)
        self.folders.append((stat.S_IMODE(storage.parent.stat().st_mode), len(trials)))
        storage.mkdir(parents=True, exist_ok=True)
        (storage / "messages.txt").write_text(f"{len(trials)} trials")
        for trial in trials[: self.most]:
            if self.failing(trial.number):
                trial.write("failed", None, error="it diverged")
                continue
            score = float(np.random.default_rng().uniform(0.1, 0.9))
            self.scores[trial.number] = score
            pretend(self.base, trial, score, self.rounds)
            ended(trial.number, None)
        if self.stop_with is not None:
            stop.append(self.stop_with)


def pretend(base: Prepared, trial: Trial, score: float, rounds: int) -> None:
    """Write what a run of ``rounds`` rounds writes."""
    assert base.model is not None and trial.config.privacy.ledger == "run" and not trial.config.tracking.enabled
    files, plan = RunFiles(trial.output), plan_record(trial.config)
    files.create()
    with Account.open_run(trial.output / "ledger", dict.fromkeys(base.names, plan), f"t{trial.number}/1") as account:
        for number in range(rounds):
            account.authorize(number, 0, base.names)
    files.save_model(base.model.facts.layout, np.full(base.model.facts.layout.size, score, dtype=np.float32))
    write_json(files.partition, {**base.partition, "model": base.model.document(), "class_labels": list(base.class_labels)})
    final = {"eval/accuracy": score, "eval/loss": 1 - score}
    files.write_summary({"rounds": rounds, "final": final, "model_sha256": None, "engine": "book", "attack": None})
    trial.write("completed", score, final=final, rounds=rounds, seconds=1.0)


@pytest.fixture
def fleet(base: Prepared, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    standing = Fleet(base)
    monkeypatch.setattr(sweep, "run_fleet", standing)
    monkeypatch.setattr(sweep, "joined", lambda *_: nullcontext())
    monkeypatch.setattr(sweep, "bundles", lambda *_: [])
    monkeypatch.setattr(sweep.ray, "cluster_resources", dict)
    monkeypatch.setattr(sweep, "prepare", lambda config: replace(base, config=config))
    return standing


def run(where: Path, *more: str, resume: bool = False, tell: Callable[[str], None] = print, tracked: bool = False) -> dict[str, Any]:
    overrides = [*SEALED, f"tracking={{enabled: {str(tracked).lower()}, uri: 'sqlite:///{where.parent / 'mlflow.db'}'}}", *more]
    return sweep.sweep(load_config(CONFIG, overrides), str(where), resume, tell).summary


def numbers_of(score: float) -> list[bytes]:
    """Every form in which a score, or a model or a loss with it, could stand in a file or a text."""
    loss = 1 - score
    texts = [f(v).encode() for v in (score, loss) for f in (repr, "{:.4f}".format, "{:.5f}".format, "{:.6g}".format)]
    return [*texts, struct.pack("<d", score), struct.pack(">d", score), np.float32(score).tobytes()]


def traces(root: Path, told: str, fleet: Fleet, best: int) -> Iterator[str]:
    """What is left of trials other than the best: their scores, models, names, or how many there were."""
    told_files = {"terminal": told.encode()} | {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    names = {str(p.relative_to(root)) for p in root.rglob("*")}
    for number, score in fleet.scores.items():
        mine = [] if number == best else numbers_of(score)
        for where, content in told_files.items():
            if any(form in content for form in mine):
                yield f"the score or model of trial {number} in {where}"
            if f"trial-{number:06d}".encode() in content:
                yield f"the name of trial {number} in {where}"
    yield from (f"the directory {name}" for name in names if "trial-" in name or sealed.PRIVATE in name)
    total = len(fleet.trials)
    for where, content in told_files.items():
        for words in (f"{total} trials", f"of {total} ", f'"trials": {total}', f"trials={total}"):
            if words.encode() in content:
                yield f"how many trials there were, in {where}"


def after_the_draw(said: list[str]) -> str:
    """What was told after the number of trials had been drawn."""
    return "\n".join(said[said.index(sealed.AT_WORK) :])


def ended_with_traces(where: Path, fleet: Fleet, plant: Callable[[Path, Fleet], str] | None, **more: Any) -> list[str]:
    said: list[str] = []
    summary = run(where, tell=said.append, **more)
    best = next(n for n, s in fleet.scores.items() if s == summary["score"])
    if plant is not None:
        said.append(plant(where, fleet))
    return list(traces(where.parent, after_the_draw(said), fleet, best))


@pytest.fixture
def thirteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of trials that no other figure of a run is, such as its budget or its clients."""
    monkeypatch.setattr(sealed.Repetitions, "number", lambda *_: 13)


@pytest.mark.usefixtures("thirteen")
def test_nothing_is_left_of_the_other_trials(fleet: Fleet, tmp_path: Path) -> None:
    where = tmp_path / "sweep"
    assert not ended_with_traces(where, fleet, None)
    assert fleet.folders[-1][0] == 0o700
    best = max(fleet.scores.values())
    tensors = RunFiles(where).load_model()
    assert all((value == np.float32(best)).all() for value in tensors.values())
    assert json.loads((where / "sweep.json").read_text())["score"] == best


@pytest.mark.usefixtures("thirteen")
def test_mlflow_has_one_run_of_it(fleet: Fleet, tmp_path: Path) -> None:
    import mlflow

    fleet.scores.clear()
    said: list[str] = []
    summary = run(tmp_path / "sweep", tell=said.append, tracked=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.info.status == "FINISHED"
    assert only.data.tags["fedray.kind"] == "sweep" and only.data.tags["fedray.sweep_price"] == "sealed"
    assert only.data.metrics["eval/accuracy"] == pytest.approx(summary["score"])
    assert only.data.metrics["privacy/epsilon"] == pytest.approx(summary["privacy"][0]["epsilon"])
    best = next(n for n, s in fleet.scores.items() if s == summary["score"])
    assert not list(traces(tmp_path, after_the_draw(said), fleet, best))


def scores_file(where: Path, fleet: Fleet) -> str:
    (where / "scores.json").write_text(json.dumps(fleet.scores))
    return ""


def all_models(where: Path, fleet: Fleet) -> str:
    np.array(list(fleet.scores.values()), dtype=np.float32).tofile(where / "ensemble.bin")
    return ""


def left_folder(where: Path, fleet: Fleet) -> str:
    (where / sealed.PRIVATE / "tune").mkdir(parents=True)
    return ""


def told_scores(where: Path, fleet: Fleet) -> str:
    return ", ".join(f"{score:.4f}" for score in fleet.scores.values())


def told_number(where: Path, fleet: Fleet) -> str:
    return f"the best of {len(fleet.trials)} trials"


@pytest.mark.parametrize("plant", [scores_file, all_models, left_folder, told_scores, told_number])
def test_a_planted_leak_is_found(
    fleet: Fleet, tmp_path: Path, plant: Callable[[Path, Fleet], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed.Repetitions, "number", lambda *_: 5)
    assert ended_with_traces(tmp_path / "sweep", fleet, plant)


def test_every_client_is_charged_once_by_the_selected_event(fleet: Fleet, tmp_path: Path, base: Prepared) -> None:
    where = tmp_path / "sweep"
    summary = run(where)
    book = verify(where / "ledger" / "records.jsonl")
    assert set(book.charges.values()) == {1} and set(book.spent) == set(base.names)
    (event,) = book.spent[base.names[0]]
    assert isinstance(event, RepeatAndSelect) and (event.mean, event.shape) == (6.0, 0.0)
    assert len(event.of) == 2  # the learning rate decides nothing
    assert summary["privacy"][0]["epsilon"] == pytest.approx(accountant.bound({event: 1}, 4e-4))
    lines = list(verify_all(where))  # recomputed from the entries, and compared with summary and statement
    assert any("the figures of 10 clients follow from" in line for line in lines)
    (row,) = compare_runs([str(where)])["runs"]  # its directory is that of one run
    assert row["score"] == summary["score"] and row["epsilon"] == summary["privacy"][0]["epsilon"]
    statement = json.loads((where / "privacy_statement.json").read_text())
    assert "whose number is secret" in statement["guarantee"]["against"]
    assert any("how many trials there were" in text for text in statement["guarantee"]["not_covered"])
    assert statement["summary"]["statement"].startswith("The best of a secret number of trainings")
    assert (where / "privacy_statement.md").read_text().count("composition of all trials") == 1


def test_two_sealed_sweeps_compose_in_a_lasting_ledger(fleet: Fleet, tmp_path: Path) -> None:
    lasting = f"privacy.ledger={tmp_path / 'books'}"
    first = run(tmp_path / "one", lasting)
    second = run(tmp_path / "two", lasting)
    (event,) = {e for spent in verify(tmp_path / "books" / "records.jsonl").spent.values() for e in spent}
    assert second["privacy"][0]["epsilon"] == pytest.approx(accountant.bound({event: 2}, 4e-4))
    assert second["privacy"][0]["epsilon"] > first["privacy"][0]["epsilon"]
    assert any("follow from" in line for line in verify_all(tmp_path / "two"))
    with pytest.raises(BudgetReached, match=r"would bring it to epsilon .* above privacy\.budget=5"):
        run(tmp_path / "three", lasting, "privacy.budget=5.0")
    assert not (tmp_path / "three" / "sweep.json").exists()


def test_a_stopped_sweep_goes_on_with_the_same_trials_for_the_same_charge(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed.Repetitions, "number", lambda *_: 4)
    fleet.most, fleet.stop_with, where = 2, 15, tmp_path / "sweep"
    with pytest.raises(Stopped):
        run(where)
    before = dict(fleet.scores)
    fleet.most = fleet.stop_with = None
    summary = run(where, resume=True)
    assert fleet.folders == [(0o700, 4), (0o700, 2)]
    assert before.items() <= fleet.scores.items() and len(fleet.scores) == 4
    assert summary["score"] == max(fleet.scores.values())
    assert set(verify(where / "ledger" / "records.jsonl").charges.values()) == {1}
    assert run(where, resume=True) == summary  # it has ended, and nothing is drawn again
    assert len(fleet.folders) == 2


def test_who_draws_again_pays_again(fleet: Fleet, tmp_path: Path) -> None:
    fleet.most, fleet.stop_with, where = 0, 15, tmp_path / "sweep"
    with pytest.raises(Stopped):
        run(where)
    sealed.remove_trials(where)
    fleet.most = fleet.stop_with = None
    run(where, resume=True)
    assert set(verify(where / "ledger" / "records.jsonl").charges.values()) == {2}


def test_a_trial_that_ran_more_than_was_charged_stops_the_release(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.rounds = 4
    original = Fleet.__call__  # whose trials are kept from it by their config

    def more(self: Fleet, trials: Sequence[Trial], *rest: Any) -> None:
        freed = [replace(t, config=resolve_config(t.config, ["privacy.max_participations=9", "rounds=9"])) for t in trials]
        original(self, freed, *rest)

    monkeypatch.setattr(Fleet, "__call__", more)
    with pytest.raises(ClaimVoid, match="does not cover, so nothing of this sweep is released"):
        run(tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "model.safetensors").exists()
    assert not (tmp_path / "sweep" / sealed.PRIVATE).exists()


def test_failing_trials_do_not_end_the_others_and_say_nothing(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed.Repetitions, "number", lambda *_: 5)
    fleet.failing = lambda number: number % 2 == 1
    said: list[str] = []
    summary = run(tmp_path / "sweep", tell=said.append)
    assert summary["score"] == max(fleet.scores.values()) and len(fleet.scores) == 2
    assert "diverged" not in "".join(p.read_text(errors="ignore") for p in (tmp_path / "sweep").rglob("*.json")) + "\n".join(said)
    fleet.failing = lambda number: True
    with pytest.raises(FedrayError, match="no trial of the sealed sweep came to its end"):
        run(tmp_path / "none")
    assert not (tmp_path / "none" / sealed.PRIVATE).exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (["clients.placement=dedicated", "privacy.ledger=/tmp/x"], "privacy.incompatible.dedicated.sealed"),
        (["privacy.insecure_seed=1"], "privacy.incompatible.sealed.void_claim"),
        (["sweep.space={training.sampling_rate: {uniform: [0.1, 0.5]}}"], "privacy.incompatible.sealed.interval"),
        (["sweep.space={seed: [0, 1]}"], "privacy.incompatible.sweep.seed"),
    ],
)
def test_what_cannot_be_sealed_is_refused(change: list[str], code: str, tmp_path: Path) -> None:
    with pytest.raises(PrivacyRefusal) as refusal:
        run(tmp_path / "sweep", *change)
    assert refusal.value.code == code
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["sweep.public=false"], "test records must be public"),
        (["sweep.trials=3"], "the number of trials of a sealed sweep is secret"),
        (["sweep.scheduler=asha"], "a sealed sweep shows nothing"),
        (["sweep.search=grid", "sweep.space={privacy.clip: [1.0]}"], "independently"),
        (["privacy={regime: none}"], "nothing to seal"),
    ],
)
def test_a_sealed_section_is_checked(change: list[str], words: str) -> None:
    told = CliRunner().invoke(cli, ["plan", str(CONFIG), *SEALED, *change])
    assert told.exit_code == 2 and words in told.output


def test_plan_prices_a_sweep_both_ways() -> None:
    told = CliRunner().invoke(cli, ["plan", str(CONFIG), *SEALED, "--json"])
    assert told.exit_code == 0, told.output
    (unit,) = json.loads(told.output)["sweep"]["units"]
    assert unit["trials"] == 6 and unit["least"] < unit["most"] < unit["sealed"]
    text = CliRunner().invoke(cli, ["plan", str(CONFIG)]).output
    assert "charged:  12 composed" in text and "<- sweep.price" in text and "sealed: mean 12" in text
    over = CliRunner().invoke(cli, ["plan", str(CONFIG), "privacy.budget=9.0"])
    assert over.exit_code == 0 and "only the first 1 fit the budget" in over.output
    over = CliRunner().invoke(cli, ["plan", str(CONFIG), "privacy.budget=7.0", "sweep.space={privacy.noise_multiplier: [1.5]}"])
    assert over.exit_code == 3 and "not even its first trial fits the budget" in over.output
