"""Nine bugs that federated privacy code is known for, planted one at a time: which check, attack or verification finds each.

The honest run stays quiet: no check fails, no lower bound is above the proven epsilon, no estimate is suspicious. The
statistical checks of one honest audit fail with probability below 1e-5; a lower bound would be wrong in one of 20 seeds
only if the attack were as good as the mechanism allows, which it never is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audited import digits
from published import CURVES
from torch import Tensor, nn

import fedray
from fedray import components
from fedray.audit.report import Report
from fedray.audit.run import AuditRequest, audit
from fedray.clients import trainer
from fedray.clients.messages import ClientReport
from fedray.clients.trainer import Trainer
from fedray.configfile import dump_config
from fedray.errors import ClaimVoid, LedgerError
from fedray.planning.preparation import prepare
from fedray.privacy import recordplan as privacy_plan
from fedray.privacy.account import Account
from fedray.privacy.accounting import accountant
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.csprng import Csprng
from fedray.privacy.ledger.inspect import verify_all
from fedray.privacy.ledger.verification import verify
from fedray.privacy.mechanisms import central
from fedray.privacy.receipt import record_receipt
from fedray.privacy.recordplan import check_history
from fedray.privacy.release import Release
from fedray.rng import generator
from fedray.training.engine import LocalJob, LocalResult, NoiseSource

Table = dict[str, list[str]]
#: Ten rounds of one step at rate 1/2: epsilon 0.74 at delta 4e-4.
RECORD = ("rounds=10", "privacy.noise_multiplier=6.0", "training.engine=hooks")
#: Five rounds of all ten clients: epsilon 1.44 at delta 1e-5.
CLIENT = (
    "rounds=5",
    "privacy={regime: client, noise_multiplier: 6.0, delta: 1.0e-5, clip: 0.5, ledger: run}",
    "cohort={kind: all}",
    "algorithm.weights=uniform",
)

#: The norm that a fifth of the updates exceed, found with noise of 5 clients on the count.
ADAPTIVE = "privacy.adaptive_clip={quantile: 0.8, bit_noise: 5.0}"


def audited(folder: Path, *overrides: str, attack: str = "checks", seed: int = 0) -> Report:
    path = folder / "config.yaml"
    path.write_text(dump_config(digits(*overrides)))
    found: list[Report] = []
    for kind in ("checks", "canaries") if attack == "both" else (attack,):
        found.append(audit(AuditRequest(path, (), kind, canaries=600, seed=seed)))
    return replace(found[0], checks=[c for r in found for c in r.checks], attacks=[a for r in found for a in r.attacks])


def finders(report: Report) -> list[str]:
    """The checks that failed and the attacks that proved too much, in order."""
    return [f"check: {c.name}" for c in report.checks if not c.passed] + [f"attack: {a.name}" for a in report.attacks if a.violated]


@pytest.fixture
def table() -> Table:
    """Bug to what found it."""
    return {}


def normal(factor: float) -> Any:
    """Csprng.normal with its noise scaled."""
    real = Csprng.normal
    return lambda self, n: real(self, n) * factor


def test_no_noise(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Csprng, "normal", normal(0.0))
    record, client = audited(tmp_path, *RECORD, attack="both"), audited(tmp_path, *CLIENT, attack="both")
    table["no noise, records"], table["no noise, whole clients"] = finders(record), finders(client)
    assert {"check: noise of one step", "check: noise of a whole round", "attack: canary records, every update"} <= set(finders(record))
    assert {"check: whole clients: noise of an empty cohort", "attack: canary clients, all releases"} <= set(finders(client))


def test_noise_scaled_by_the_wrong_cohort(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each of ten clients is taken to add its own share of the noise, but only one does."""
    real = ClientPlan.noise_std
    monkeypatch.setattr(ClientPlan, "noise_std", lambda self, clip: real(self, clip) / self.facts.cohort)
    report = audited(tmp_path, *CLIENT, attack="both")
    table["noise scaled by the wrong cohort"] = finders(report)
    assert {"check: whole clients: noise of an empty cohort", "attack: canary clients, all releases"} <= set(finders(report))


def clamp(values: Any, clip: float, slack: float = 0.0) -> Any:
    finite = np.nan_to_num(values, nan=0.0)
    return np.clip(finite, -clip, clip).astype(np.float32), bool(np.abs(finite).max() <= clip)


def per_coordinate(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """DP-SGD as it is often written by hand: each coordinate of a record's gradient is clipped to C."""
    training, dp, noise = job.training, job.dp, job.noise
    assert dp is not None and noise is not None and training.sampling_rate and training.expected_batch
    parameters = list(model.parameters())
    for _ in range(training.steps or 0):
        sums = [torch.zeros_like(p) for p in parameters]
        for i in np.flatnonzero(noise.uniform(len(x)) < training.sampling_rate):
            gradients = torch.autograd.grad(job.loss(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters)
            for total, g in zip(sums, gradients, strict=True):
                total += torch.nan_to_num(g).clamp(-dp.clip, dp.clip)
        for p, total in zip(parameters, sums, strict=True):
            draws = torch.from_numpy(noise.normal(p.numel()) * dp.noise_multiplier * dp.clip).to(p.dtype).view_as(p)
            p.data -= job.lr * (total + draws) / training.expected_batch
            p.grad = (total + draws) / training.expected_batch
        if job.adjust is not None:
            job.adjust(model)
    return LocalResult(training.steps or 0, 0, None, [(dp.noise_multiplier, training.sampling_rate, training.steps or 0)])


def test_per_coordinate_clip(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(components.ENGINES.parts(), "hooks", per_coordinate)
    monkeypatch.setattr(central, "clip_update", clamp)
    record, client = audited(tmp_path, *RECORD), audited(tmp_path, *CLIENT)
    table["per-coordinate clip, records"], table["per-coordinate clip, whole clients"] = finders(record), finders(client)
    assert {"check: sensitivity of the run's model", "check: clip of adversarial records"} <= set(finders(record))
    assert finders(client) == ["check: whole clients: clip of adversarial updates"]


def test_metrics_leaked(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """First the training loss, then a count that looks public and is not."""
    real = Trainer._turn

    def leaking(field: str) -> Any:
        def turn(self: Trainer, task: Any, weights: Any, client: Any, *more: Any) -> ClientReport:
            report, labels = real(self, task, weights, client, *more), self.data(client).train.y
            leaked = float(labels.mean()) if field == "loss" else int((labels > 4).sum())
            return report._replace(**{field: leaked})

        return turn

    name = "check: nothing but the update depends on records"
    for field in ("loss", "records"):
        monkeypatch.setattr(Trainer, "_turn", leaking(field))
        report = audited(tmp_path, *RECORD)
        table["metrics leaked"] = finders(report)
        assert finders(report) == [name], field


def test_sampler_replaced_by_a_shuffle(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = Csprng.uniform
    monkeypatch.setattr(Csprng, "uniform", lambda self, n: real(self, n).argsort().argsort() / max(n, 1))
    poisson = "cohort={kind: poisson, fraction: 0.5}"
    record, client = audited(tmp_path, *RECORD), audited(tmp_path, *CLIENT, poisson)
    table["sampler replaced by a shuffle, records"] = finders(record)
    table["sampler replaced by a shuffle, whole clients"] = finders(client)
    assert "check: batches are independent coins" in finders(record)
    assert "check: whole clients: cohorts are independent coins" in finders(client)


class _Replayed:
    """The noise of a turn with coins from a generator that the run's seed decides."""

    secure = True

    def __init__(self, noise: NoiseSource, coins: np.random.Generator) -> None:
        self._noise, self._coins = noise, coins

    def uniform(self, n: int) -> Any:
        return self._coins.random(n)

    def normal(self, n: int) -> Any:
        return self._noise.normal(n)


def test_coins_from_the_seed(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Coins that are independent and of the right rate, but that everyone who knows the config can toss once more."""
    real = trainer.turn_noise

    def turn_noise(insecure_seed: int | None, round_: int, client: int) -> Any:
        source = real(insecure_seed, round_, client)
        return lambda: _Replayed(source(), generator(7, "coins", round_, client))

    monkeypatch.setattr(trainer, "turn_noise", turn_noise)
    monkeypatch.setattr(Release, "coins", lambda self, number: generator(7, "cohort", number).random(self.plan.facts.clients))
    record, client = audited(tmp_path, *RECORD), audited(tmp_path, *CLIENT, "cohort={kind: poisson, fraction: 0.5}")
    table["coins from the run's seed, records"], table["coins from the run's seed, whole clients"] = finders(record), finders(client)
    assert finders(record) == ["check: coins do not follow from the run's seed"]
    assert finders(client) == ["check: whole clients: cohorts do not follow from the run's seed"]


def test_adaptive_clip_without_noise_on_its_bits(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = ClientPlan.noise_std

    def silent(self: ClientPlan, clip: float) -> Any:
        std = real(self, clip)
        return std if isinstance(std, float) else np.append(std[:-1], 0.0)

    assert finders(audited(tmp_path, *CLIENT, ADAPTIVE)) == []
    monkeypatch.setattr(ClientPlan, "noise_std", silent)
    found = finders(audited(tmp_path, *CLIENT, ADAPTIVE))
    table["adaptive clip's bits without noise"] = found
    assert found == ["check: whole clients: noise of the adaptive clip's bits"]


def test_fewer_steps_charged_than_run(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of a round's steps are charged: the receipt is compared with the event, so the run would end, and the book is no better."""
    real = privacy_plan._event
    with monkeypatch.context() as patch:
        patch.setattr(privacy_plan, "_event", lambda q, steps, z, person: real(q, max(1, steps // 2), z, person))
        found = finders(audited(tmp_path, *RECORD, "training.steps=4"))
        plan = prepare(digits(*RECORD, "training.steps=4")).plans[0]
        assert plan is not None
        with pytest.raises(ClaimVoid, match=r"ran \[\(6.0, 0.5, 4\)\].*but \[\(6.0, 0.5, 2\)\] was charged"):
            check_history([(6.0, 0.5, 4)], plan)
        with Account.open_run(tmp_path / "book", {"a": plan}, "run/1") as account:
            reserved = account.authorize(0, 0, ["a"]).reservations["a"]
            account.commit(0, 0, {"a": record_receipt(plan, [(6.0, 0.5, 4)], "hooks", reserved.id)})
    with pytest.raises(LedgerError, match="its receipt says steps 4, but 2 was charged"):
        verify(tmp_path / "book" / "records.jsonl")
    table["fewer steps charged than run"] = ["the run's receipts", "fedray ledger verify", *found]
    assert "check: charged steps are those that run" in found


@pytest.mark.slow
def test_engine_made_anew_each_round(table: Table, tmp_path: Path) -> None:
    """The accountant forgets: the figures of a finished run are those of one round, wherever they are written."""
    result = fedray.run(digits(*RECORD, "training.engine=auto", "rounds=3"), output=str(tmp_path / "run"))
    root = result.output
    assert not finders(audit(AuditRequest(root, (), "checks")))
    list(verify_all(root))
    spent, plan = result.summary["privacy"]["epsilon"], prepare(result.config).plans[0]
    assert plan is not None
    one = accountant.bound({plan.event(): 1}, plan.delta, accountant.FINAL_INTERVAL)
    assert one < 0.7 * spent
    for path in (root / "summary.json", root / "privacy_statement.json"):
        path.write_text(json.dumps(_forgetful(json.loads(path.read_text()), spent, one)))
    found = finders(audit(AuditRequest(root, (), "checks")))
    with pytest.raises(LedgerError):
        list(verify_all(root))
    table["engine made anew each round"] = ["fedray ledger verify", *found]
    assert found == ["check: the run's figures follow from its ledger"]


def _forgetful(value: Any, spent: float, one: float) -> Any:
    if isinstance(value, dict):
        return {k: _forgetful(v, spent, one) for k, v in value.items()}
    if isinstance(value, list):
        return [_forgetful(v, spent, one) for v in value]
    return one if isinstance(value, float) and abs(value - spent) < 1e-3 * spent else value


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_table_of_what_finds_what(tmp_path: Path) -> None:
    """All bugs, one at a time, and the table that is kept beside the published curves."""
    rows: Table = {}
    planted = (test_no_noise, test_noise_scaled_by_the_wrong_cohort, test_per_coordinate_clip, test_metrics_leaked)
    late = (test_coins_from_the_seed, test_adaptive_clip_without_noise_on_its_bits, test_fewer_steps_charged_than_run)
    for plant in (*planted, test_sampler_replaced_by_a_shuffle, *late):
        with pytest.MonkeyPatch.context() as patch:
            plant(rows, patch, tmp_path)
    test_engine_made_anew_each_round(rows, tmp_path)
    assert len(rows) == 13 and all(rows.values())
    CURVES.mkdir(exist_ok=True)
    (CURVES / "planted_bugs.json").write_text(json.dumps(rows, indent=1) + "\n")


def quiet(folder: Path, seed: int) -> None:
    for overrides in (RECORD, CLIENT, (*CLIENT, ADAPTIVE)):
        report = audited(folder, *overrides, attack="both", seed=seed)
        assert report.faults == []
        assert all(a.verdict == "consistent" for a in report.attacks), [(a.name, a.at_least, a.epsilon) for a in report.attacks]


def test_the_honest_run_is_quiet(tmp_path: Path) -> None:
    quiet(tmp_path, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_honest_run_is_quiet_in_twenty_of_twenty_seeds(tmp_path: Path) -> None:
    for seed in range(100, 120):
        quiet(tmp_path, seed)
    told = {"seeds": [100, 119], "quiet": 20, "audited": ["records", "whole clients", "whole clients, adaptive clip"]}
    (CURVES / "honest_runs.json").write_text(json.dumps(told, indent=1) + "\n")
