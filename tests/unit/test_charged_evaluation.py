"""Charged evaluation: what a client tells is bounded, noised, charged once and answered once, and the price is that of the events."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from accounts import epsilons
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from paths import ROOT
from scipy import stats
from torch import nn
from virtualray import drive

from fedray.audit.bounds import clopper_pearson
from fedray.clients import measuring
from fedray.clients import pool as pool_module
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, NoisedEvaluation
from fedray.clients.pool import Pool
from fedray.clients.terms import Site, make_terms
from fedray.config import Config
from fedray.configfile import build_config, load_config
from fedray.errors import ClaimVoid, ConfigError, FedrayError, PrivacyRefusal
from fedray.evaluationconfig import ChargedEvaluation
from fedray.parameters import set_vector
from fedray.planning.combinations import check_only
from fedray.planning.planner import make_plan
from fedray.planning.planner_text import plan_text
from fedray.planning.preparation import Prepared, prepare
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.accounting.events import Gaussian
from fedray.privacy.csprng import InsecureSeeded
from fedray.privacy.evaluationplan import EvaluationPlan, plan_evaluation
from fedray.privacy.evaluations import Evaluations
from fedray.privacy.figures import listed
from fedray.privacy.integersums import GRID, noised
from fedray.privacy.ledger.chain import read
from fedray.privacy.ledger.verification import verify
from fedray.privacy.recordplan import RecordPlan
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown
from fedray.reporting.report_head import _final, _guaranteed
from fedray.rounds.books import Books, RunBook
from fedray.rounds.noisedevaluation import NoisedEvaluations
from fedray.rounds.record import OpenRow, Record
from fedray.sweeps.pricing import Share
from fedray.tracking.note import run_note
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import Loss, find_loss
from fedray.training.noisedmetrics import (
    Calibrated,
    ClippedMean,
    Confused,
    Counted,
    Right,
    Scored,
    Seen,
    counted_for,
    figures_of,
    spreads_of,
    sums_over,
)

HERE = f"python:{__name__}:"
CLIENTS = 4
#: Without a target, to which noise would have to be found.
FIXED = {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4}


def config_of(**sections: Any) -> Config:
    base: dict[str, Any] = {
        "name": "charged",
        "rounds": 4,
        "data": {
            "source": "sklearn:digits",
            "classes": 10,
            "partition": {"kind": "iid", "clients": CLIENTS},
            "holdout": {"at": "clients", "fraction": 0.2},
        },
        "model": {"kind": "softmax"},
        "training": {"sampling_rate": 0.2, "steps": 5, "expected_batch": 60, "lr": 0.5},
        "privacy": {"regime": "record", "target_epsilon": 8.0, "delta": 1e-4},
        "evaluation": {"every": 2, "metrics": ["accuracy"], "federated": True, "charged": {"noise_multiplier": 4.0}},
        "tracking": {"enabled": False},
    }
    return build_config(base | sections)


def evaluated(**more: Any) -> dict[str, Any]:
    return {"every": 2, "metrics": ["accuracy"], "federated": True, "charged": {"noise_multiplier": 4.0}} | more


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(config_of())


def plans_of(p: Prepared) -> tuple[RecordPlan, EvaluationPlan]:
    record = p.plans[0]
    assert record is not None
    return record, plan_evaluation(record, [("correct", 1)])


# -- what one record can do ------------------------------------------------------------------------

KINDS: list[Counted] = [
    Right(),
    Confused(3),
    Scored(7),
    Calibrated(),
    ClippedMean("loss", 4.0),
    ClippedMean("mae", 10.0),
    ClippedMean("rmse", 100.0),
]
finite = st.floats(-1e30, 1e30)
odd = st.floats(allow_nan=True, allow_infinity=True)


def of_rows(seen: Seen, rows: Any) -> Seen:
    return Seen(seen.outputs[rows], seen.targets[rows], seen.losses[rows])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=60)
@given(st.data())
def test_leaving_out_a_record_changes_a_sum_by_at_most_the_bound(kind: Counted, data: st.DataObject) -> None:
    n, classes = data.draw(st.integers(1, 6)), 2 if isinstance(kind, Scored) else 3
    outputs = 1 if isinstance(kind, ClippedMean) else data.draw(st.sampled_from([classes, 1])) if classes == 2 else classes
    seen = Seen(
        data.draw(arrays(np.float64, (n, outputs), elements=finite)),
        data.draw(arrays(np.int64, n, elements=st.integers(0, classes - 1))).astype(np.float64),
        data.draw(arrays(np.float64, n, elements=odd)),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        rows = kind.contributions(seen)
        assert rows.dtype == np.int64 and rows.shape == (n, kind.size)
        whole = rows.sum(axis=0)
        for i in range(n):
            without = kind.contributions(of_rows(seen, np.arange(n) != i)).sum(axis=0)
            assert sum(int(v) ** 2 for v in whole - without) <= GRID**2
            assert (kind.contributions(of_rows(seen, [i]))[0] == rows[i]).all()  # whatever is beside it


class Coupled(nn.Module):
    """Gives a record other outputs beside others, and none that is a number for some."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x - x.mean(0)) + x[:, :1].log()


def test_records_are_judged_alone_and_those_without_finite_outputs_contribute_nothing() -> None:
    torch.manual_seed(0)
    model, loss = Coupled().eval(), find_loss("cross_entropy")
    x = torch.randn(40, 2)
    y = torch.randint(0, 3, (40,))
    counted = counted_for(["f1", "loss"], ChargedEvaluation(noise_multiplier=1.0, loss_bound=2.0), 3)
    whole = sums_over(counted, model, x, y, loss)
    negative = x[:, 0] < 0  # whose logarithm is none
    assert 0 < int(negative.sum()) < 40 and int(whole["confusion_matrix"].sum()) == GRID * int((~negative).sum())
    for i in range(40):
        rest = torch.arange(40) != i
        less, alone = sums_over(counted, model, x[rest], y[rest], loss), sums_over(counted, model, x[i : i + 1], y[i : i + 1], loss)
        for name, total in whole.items():
            assert (total - less[name] == alone[name]).all()


class Greedy(Right):
    """Contributes more than it may."""

    def contributions(self, seen: Seen) -> Any:
        return super().contributions(seen) * 2


def test_a_contribution_above_the_bound_counts_as_nothing() -> None:
    model = nn.Linear(2, 2).eval()
    sums = sums_over([Greedy()], model, torch.randn(9, 2), torch.randint(0, 2, (9,)), find_loss("cross_entropy"))
    assert sums["correct"].tolist() == [0]


# -- figures ---------------------------------------------------------------------------------------

METRICS = ["accuracy", "balanced_accuracy", "f1", "precision", "binary_f1", "auc", "average_precision", "calibration_error", "loss"]
SECTION = ChargedEvaluation(noise_multiplier=3.0, loss_bound=5.0, bins=200)


def judged_records() -> tuple[nn.Module, torch.Tensor, torch.Tensor, Loss]:
    draws = torch.Generator().manual_seed(4)
    x = torch.randn(1500, 3, generator=draws)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, 0.2]]))
        model.bias.zero_()
    y = (x[:, 0] - 0.5 * x[:, 1] + 0.8 * torch.randn(1500, generator=draws) > 0).long()
    return model.eval(), x, y, find_loss("cross_entropy")


def test_without_noise_the_figures_are_the_metrics() -> None:
    model, x, y, loss = judged_records()
    counted = counted_for(METRICS, SECTION, 2)
    assert [one.name for one in counted] == ["confusion_matrix", "scores", "calibration", "loss"]
    sums = {name: total.tolist() for name, total in sums_over(counted, model, x, y, loss).items()}
    found, exact = figures_of(counted, sums, len(x), METRICS), evaluate(model, x, y, find_metrics(METRICS), loss)
    assert list(found) == METRICS
    for name in METRICS:
        assert found[name] == pytest.approx(exact[name], abs=2e-3 if name in ("auc", "average_precision") else 1e-5), name
    values = nn.Linear(3, 1).eval()
    t = torch.randn(1500, generator=torch.Generator().manual_seed(1))
    wanted, section = ["mae", "rmse"], ChargedEvaluation(noise_multiplier=1.0, error_bound=20.0)
    counted = counted_for(wanted, section, None)
    sums = {name: total.tolist() for name, total in sums_over(counted, values, x, t, find_loss("mse")).items()}
    exact = evaluate(values, x, t, find_metrics(wanted), find_loss("mse"))
    assert figures_of(counted, sums, len(x), wanted) == pytest.approx(exact, abs=1e-4)


def test_without_noise_the_figures_of_tokens_are_the_metrics() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).eval()
    x = torch.randint(0, 5, (30, 6))
    loss, wanted = find_loss("next_token"), ["perplexity", "token_accuracy", "loss"]
    counted = counted_for(wanted, ChargedEvaluation(noise_multiplier=1.0, loss_bound=10.0), 5)
    assert [one.name for one in counted] == ["loss", "token_accuracy"]
    for y in (torch.roll(x, -1, 1), x[:, 1:].contiguous()):  # a target for each position, or none for the last one
        sums = {name: total.tolist() for name, total in sums_over(counted, model, x, y, loss).items()}
        exact = evaluate(model, x, y, find_metrics(wanted), loss)
        assert figures_of(counted, sums, len(x), wanted) == pytest.approx(exact, rel=1e-5)
    nothing = sums_over(counted, model, x[:0], x[:0], loss)
    assert all((total == 0).all() for total in nothing.values())


def test_over_1000_seeds_the_errors_lie_in_the_theoretical_band() -> None:
    """Accuracy and loss of four clients' noised sums: 99 of 100 errors are within 2.58 standard deviations, and their spread is the noise's."""
    model, x, y, loss = judged_records()
    metrics = ["accuracy", "loss"]
    counted = counted_for(metrics, ChargedEvaluation(noise_multiplier=4.0, loss_bound=5.0), 2)
    parts = [sums_over(counted, model, x[k::CLIENTS], y[k::CLIENTS], loss) for k in range(CLIENTS)]
    record, _ = plans_of(prepare(config_of(privacy=FIXED)))
    plan = plan_evaluation(record, [(one.name, one.size) for one in counted])
    exact = figures_of(counted, {name: sum(p[name] for p in parts).tolist() for name in parts[0]}, len(x), metrics)
    z = plan.noise_multiplier * math.sqrt(2 * CLIENTS) / len(x)  # two statistics share one charge
    std = {"accuracy": z, "loss": z * 5.0 / 2}
    assert spreads_of(counted, {one.name: one.variance * CLIENTS for one in plan.sums}, len(x), metrics) == pytest.approx(std, rel=1e-6)
    errors = {name: np.empty(1000) for name in metrics}
    for seed in range(1000):
        sums = {
            one.name: sum(
                noised(p[one.name], one.variance, InsecureSeeded(seed, 0, f"{one.name} {k}")) for k, p in enumerate(parts)
            ).tolist()
            for one in plan.sums
        }
        for name, value in figures_of(counted, sums, len(x), metrics).items():
            errors[name][seed] = value - exact[name]
    for name in metrics:
        inside = int((np.abs(errors[name]) <= stats.norm.isf(0.005) * std[name]).sum())
        assert stats.binom.cdf(inside, 1000, 0.99) > 1e-4 and inside < 1000, (name, inside)
        assert 0.9 < errors[name].std() / std[name] < 1.1, name
        assert abs(errors[name].mean()) < 4 * std[name] / math.sqrt(1000), name


# -- the price -------------------------------------------------------------------------------------


def test_the_plan_the_ledger_and_dp_accounting_agree(tmp_path: Path, prepared: Prepared) -> None:
    record, evaluation = plans_of(prepared)
    assert record.evaluations == Evaluations(4.0, 2, 4) and record.evaluations.count() == 2
    with Account.open_run(tmp_path, dict.fromkeys(prepared.names, record), "run/1") as account:
        for r in range(4):
            account.authorize(r, 0, prepared.names)
            if r % 2:
                assert account.authorize(r, 0, prepared.names, evaluation).granted == list(prepared.names)
        spent, figures, book = epsilons(account), account.figures()[0], account.path
    line = make_plan(prepared)["lines"][0]
    assert (figures.charges, figures.run_charges) == (6, 4)
    assert spent == dict.fromkeys(prepared.names, record.planned_epsilon) and line["epsilon"] == record.planned_epsilon
    assert record.planned_epsilon <= 8.0 and record.planned_epsilon == pytest.approx(8.0, abs=1e-3)
    events = [dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0), 2)]
    step = dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(record.noise_multiplier))
    events.append(dp_accounting.SelfComposedDpEvent(step, 20))
    theirs = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=record.interval)
    for event in events:
        theirs.compose(event)
    assert record.planned_epsilon == pytest.approx(theirs.get_epsilon(1e-4), abs=2e-3)  # both are bounds on the same grid
    both = dp_accounting.get_epsilon_gaussian(4.0 / math.sqrt(2), 1e-4)
    assert line["evaluations"]["epsilon"] == pytest.approx(both, abs=1e-9)
    assert bound({Gaussian(4.0): 2}, 1e-4) == pytest.approx(both, abs=1e-9)
    alone = [e.event for e in read(book) if e.kind == "reserve" and e.data["subject"] == prepared.names[0] and "purpose" in e.data]
    assert bound(Counter(alone), 1e-4) == pytest.approx(both, abs=1e-9)
    assert verify(book).charges == dict.fromkeys(prepared.names, 6)
    share = Share(tuple(prepared.names), "run", record)
    assert bound({share.event: 1}, 1e-4) == record.planned_epsilon
    text = plan_text(make_plan(prepared))
    assert "2 with noise multiplier 4, charged beside the training" in text and "standard deviation of" in text


def test_groups_with_settings_of_their_own_share_one_plan_of_evaluation() -> None:
    groups = {"groups": [{"name": "few", "clients": 2, "training": {"sampling_rate": 0.1}}]}
    p = prepare(config_of(clients=groups, privacy=FIXED))
    plans = [plan_evaluation(plan, [("correct", 1)]) for plan in p.plans if plan is not None]
    assert len(plans) == 2 and p.plans[0] != p.plans[1] and plans[0] == plans[1] and plans[0].sha256 == plans[1].sha256


def test_the_target_is_for_training_and_evaluations_together(prepared: Prepared) -> None:
    plain = prepare(config_of(evaluation={"metrics": []})).plans[0]
    record, _ = plans_of(prepared)
    assert plain is not None and plain.evaluations is None and record.noise_multiplier > plain.noise_multiplier
    assert "evaluations" not in plain.terms() and RecordPlan.of(record.terms()) == record
    with pytest.raises(ConfigError, match=r"2 evaluations alone cost epsilon .*target_epsilon=8.* raise the noise"):
        prepare(config_of(evaluation=evaluated(charged={"noise_multiplier": 0.5})))


@pytest.mark.parametrize(("every", "rounds", "number"), [(0, 5, 1), (1, 5, 5), (2, 5, 3), (5, 5, 1), (7, 5, 1), (2, 0, 0), (0, 0, 0)])
def test_evaluations_are_counted_as_the_driver_makes_them(every: int, rounds: int, number: int) -> None:
    assert Evaluations(1.0, every, 9).count(rounds) == number


def test_a_client_whose_budget_allows_no_evaluation_is_refused_before_anything_is_written(tmp_path: Path, prepared: Prepared) -> None:
    record, evaluation = plans_of(prepared)
    names = list(prepared.names)
    with Account.open_run(tmp_path, dict.fromkeys(names, record), "before/1", lasting=True) as account:
        for r in range(3):
            account.authorize(r, 0, names[:1])
    with Account.open_run(tmp_path, dict.fromkeys(names, record), "run/1", lasting=True) as account:
        r = 0
        while account.check(names[:1]).granted:
            account.authorize(r, 0, names[:1])
            r += 1
        while account.check(names[:1], evaluation).granted:
            account.authorize(r, 0, names[:1], evaluation)
            r += 1
        before = account.head
        decision = account.authorize(r, 0, names, evaluation)
        assert decision.granted == names[1:]
        assert "another evaluation would bring it to" in str(decision.refused[names[0]])
        entries = [e.data["subject"] for e in read(account.path) if e.kind == "reserve"][-3:]
        assert entries == names[1:] and account.head != before
        assert all(epsilon <= 8.0 for epsilon in epsilons(account).values())


# -- one answer under one charge -------------------------------------------------------------------


def host_of(p: Prepared) -> ClientHost:
    assert p.model is not None and p.federation is not None
    (group,) = make_groups(p.config, p.names)
    host = ClientHost(make_terms(p.config, group, p.plans[0], p.model.facts), Site(device="cpu"), p.federation)
    host.ready()
    return host


def weights_of(p: Prepared) -> np.ndarray:
    assert p.model is not None
    return np.random.default_rng(0).normal(size=p.model.facts.layout.size).astype(np.float32)


def test_a_client_answers_no_charge_twice_and_none_without_a_charge(prepared: Prepared) -> None:
    host, weights, name = host_of(prepared), weights_of(prepared), prepared.names[0]
    charged = ClientTask(0, name, reservations=(("record", "a" * 64),))
    (first,) = host.evaluate_noised(weights, [charged], 1)
    assert (first.problem == "" and first.records == 89 + len(first.sums) and first.receipt is not None) or first.records > 0
    for task, why in ((charged, "has answered under this charge"), (ClientTask(0, name), "was not charged for an evaluation")):
        (again,) = host.evaluate_noised(weights, [task], 1)
        assert why in again.problem and not again.sums and again.receipt is None
    with pytest.raises(FedrayError, match="protects the clients' records"):
        host.evaluate(weights, [charged])


def test_noise_is_drawn_anew_and_from_the_operating_system(prepared: Prepared) -> None:
    host, weights, name = host_of(prepared), weights_of(prepared), prepared.names[0]
    told = [
        host.evaluate_noised(weights, [ClientTask(0, name, reservations=(("record", f"{k}"),))], 1)[0].sums["correct"][0] for k in range(8)
    ]
    assert len(set(told)) == 8
    other = host_of(prepared).evaluate_noised(weights, [ClientTask(0, name, reservations=(("record", "0"),))], 1)[0]
    assert other.sums["correct"][0] != told[0]


class Keeps(nn.Module):
    """Keeps something of a record, but only in evaluation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.out, self.most = nn.Linear(inputs, outputs), 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.most = max(self.most, float(x.abs().max()))
        return self.out(x) / (1.0 + self.most)


def keeps(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Keeps(math.prod(input_shape), outputs)


def test_a_model_that_keeps_something_between_records_gives_no_answer() -> None:
    p = prepare(config_of(model={"kind": f"{HERE}keeps"}, privacy=FIXED))
    (said,) = host_of(p).evaluate_noised(weights_of(p), [ClientTask(0, p.names[0], reservations=(("record", "x"),))], 1)
    assert not said.sums and "could not be evaluated (PrivacyRefusal); it is charged" in said.problem


# -- whole runs in one process ---------------------------------------------------------------------


def exact_accuracy(p: Prepared, weights: np.ndarray) -> float:
    assert p.model is not None and p.federation is not None and p.federation.client_test is not None
    model, held = p.model.facts.build(), p.federation.client_test
    set_vector(model, p.model.facts.layout, weights)
    with torch.no_grad():
        return float((model(torch.from_numpy(np.array(held.x))).argmax(1).numpy() == held.y).mean())


def test_a_run_charges_each_evaluation_and_tells_figures_near_the_exact_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    p = prepare(config)
    rows, _, weights = drive(config, tmp_path, lambda client: 1.0, 2, monkeypatch)
    assert [row["round"] for row in rows if "eval/accuracy" in row["metrics"]] == [2, 4]
    assert not any(name.startswith("fairness/") for row in rows for name in row["metrics"])
    assert p.held_out is not None
    std = 4.0 * math.sqrt(CLIENTS) / int(p.held_out.sum())
    assert abs(rows[-1]["metrics"]["eval/accuracy"] - exact_accuracy(p, weights)) < 5 * std
    record, evaluation = plans_of(p)
    book = tmp_path / "ledger/records.jsonl"
    entries = [e for e in read(book) if e.kind == "reserve"]
    kinds = Counter((e.data["subject"], e.data.get("purpose", "training")) for e in entries)
    assert kinds == {(name, kind): n for name in p.names for kind, n in (("training", 4), ("evaluation", 2))}
    assert {e.data["plan"] for e in entries} == {record.sha256, evaluation.sha256}
    assert verify(book).commits == 24
    assert rows[-1]["metrics"]["privacy/epsilon"] == pytest.approx(record.planned_epsilon, abs=1e-2)
    first = [row["metrics"]["privacy/epsilon"] for row in rows]
    assert first == sorted(first)


def test_four_hospitals_tell_an_accuracy_near_the_exact_one(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UCI Heart Disease; one evaluation at the end, of 250 held-out records."""
    overrides = [
        f"data.source=csv:{real_data / 'heart'}",
        "clients.placement=hosted",
        "privacy={regime: record, noise_multiplier: 2.0, delta: 3.0e-4}",
        "evaluation={every: 0, metrics: [accuracy, auc, loss], federated: true, charged: {noise_multiplier: 2, loss_bound: 3}}",
        "tracking.enabled=false",
    ]
    config = load_config(ROOT / "configs" / "heart-private.yaml", overrides)
    p = prepare(config)
    rows, _, weights = drive(config, tmp_path, lambda client: 1.0, 2, monkeypatch)
    assert p.model is not None and p.federation is not None and p.federation.client_test is not None
    model, held, loss = p.model.facts.build().eval(), p.federation.client_test, find_loss(config.training.loss)
    set_vector(model, p.model.facts.layout, weights)
    x, y = torch.from_numpy(np.array(held.x)), torch.from_numpy(np.array(held.y))
    exact = evaluate(model, x, y, find_metrics(config.evaluation.metrics), loss)
    noise = 2.0 * math.sqrt(3 * 4) / len(y)  # of three statistics and four clients, on a part of the records
    found = {name: rows[-1]["metrics"][f"eval/{name}"] for name in exact}
    assert exact["accuracy"] > 0.6
    assert abs(found["accuracy"] - exact["accuracy"]) < 5 * noise < 0.15
    assert abs(found["loss"] - exact["loss"]) < 5 * noise * 1.5
    assert abs(found["auc"] - exact["auc"]) < 0.2
    assert [row["round"] for row in rows if "eval/loss" in row["metrics"]] == [20]


def test_a_driver_that_dies_between_charge_and_answer_leaves_the_charge_and_charges_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    answered = list[tuple[str, str | None]]()
    whole = measuring.Measuring._sums

    def noted(self: Any, weights: Any, client: ClientTask, *rest: Any) -> Any:
        answered.append((client.name, dict(client.reservations).get("record")))
        return whole(self, weights, client, *rest)

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    config = config_of(rounds=1, evaluation=evaluated(every=1), privacy=FIXED)
    monkeypatch.setattr(measuring.Measuring, "_sums", noted)
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "evaluate_once", killed)
        with pytest.raises(Killed):
            drive(config, tmp_path, lambda client: 1.0, 2, patch)
    book = tmp_path / "ledger/records.jsonl"
    assert sum(e.data.get("purpose") == "evaluation" for e in read(book) if e.kind == "reserve") == CLIENTS and not answered
    drive(config, tmp_path, lambda client: 1.0, 2, monkeypatch)
    charges = [e.sha256 for e in read(book) if e.kind == "reserve" and e.data.get("purpose") == "evaluation"]
    assert len(charges) == 2 * CLIENTS
    assert sorted(reservation for _, reservation in answered) == sorted(charges[CLIENTS:])


def test_whoever_does_not_answer_stays_charged_and_is_not_asked_again(prepared: Prepared, tmp_path: Path) -> None:
    record, evaluation = plans_of(prepared)
    asked, told = Counter[str](), list[str]()

    class Reached:
        def within_reach(self, clients: Sequence[ClientTask]) -> Sequence[ClientTask]:
            return clients

        def evaluate_once(self, cohort: Sequence[ClientTask], weights: Any, round_: int, timeout: float) -> list[NoisedEvaluation]:
            asked.update(c.name for c in cohort)
            return [answer_of(c, evaluation) for c in cohort[1:]]

    with Account.open_run(tmp_path, dict.fromkeys(prepared.names, record), "run/1") as account:
        books = Books(RunBook("records", "record", account, False))
        tasks = [ClientTask(i, name) for i, name in enumerate(prepared.names)]
        about = [Right()], ["accuracy"], tasks, Reached(), books, lambda fault: told.append(fault.text)
        evaluations = NoisedEvaluations(evaluation, *about, 1.0)  # type: ignore[arg-type]
        for number in (1, 2):
            row = evaluations.after(number, None)
            assert row["eval/accuracy"] == 0.5 and set(row) == {"eval/accuracy", "noise/accuracy"}
            assert asked == dict.fromkeys(prepared.names, number)
            assert [f.charges for f in account.figures()] == [number] * CLIENTS
        assert told == ["client-0000: has been charged for 2 evaluations without an answer, and is asked no more."]
        evaluations.after(3, None)
        assert [f.charges for f in account.figures()] == [2, 3, 3, 3] and len(told) == 1
        Reached.evaluate_once = lambda self, cohort, *_: [answer_of(c, evaluation, noise_multiplier=9.0) for c in cohort]  # type: ignore[assignment,misc]
        with pytest.raises(ClaimVoid, match="its receipt says noise_multiplier 9"):
            NoisedEvaluations(evaluation, *about, 1.0).after(4, None)  # type: ignore[arg-type]


def test_each_client_is_asked_once_however_few_are_asked_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[list[str]]()
    whole = ClientHost.evaluate_noised

    def counted(self: ClientHost, weights: Any, clients: Sequence[ClientTask], round_: int) -> list[NoisedEvaluation]:
        asked.append([c.name for c in clients])
        return whole(self, weights, clients, round_)

    monkeypatch.setattr(ClientHost, "evaluate_noised", counted)
    monkeypatch.setattr(pool_module, "_TOGETHER", 1)
    rows = drive(config_of(rounds=1, evaluation=evaluated(every=0), privacy=FIXED), tmp_path, lambda client: 1.0, 2, monkeypatch)[0]
    assert sorted(asked) == [[f"client-000{k}"] for k in range(CLIENTS)] and "eval/accuracy" in rows[-1]["metrics"]


def answer_of(client: ClientTask, plan: EvaluationPlan, **other: Any) -> NoisedEvaluation:
    receipt = {
        "reservation": dict(client.reservations)["record"],
        "plan": plan.sha256,
        "noise_multiplier": plan.noise_multiplier,
        "clip": plan.clip,
    }
    return NoisedEvaluation(client.name, 10, {"correct": [5 * GRID]}, receipt | other)


def test_a_row_that_has_its_figures_is_not_evaluated_again(prepared: Prepared) -> None:
    """It comes from a checkpoint of a run that died before it wrote the row."""
    record = Record.__new__(Record)
    record._config, record._figures = prepared.config, lambda final=False: {"privacy/epsilon": 2.0}  # type: ignore[method-assign]
    known = OpenRow({"round": 2, "metrics": {"eval/accuracy": 0.5, "privacy/epsilon": 1.0}})
    record.noised(known, lambda: pytest.fail("it was asked again"))
    assert known.row["metrics"] == {"eval/accuracy": 0.5, "privacy/epsilon": 1.0}
    row = {"round": 2, "metrics": {"privacy/epsilon": 1.0}}
    record.noised(OpenRow(row), lambda: {"eval/accuracy": 0.25, "eval/auc": math.nan})
    assert row == {"round": 2, "metrics": {"eval/accuracy": 0.25, "privacy/epsilon": 2.0}, "not_finite": {"eval/auc": "nan"}}


def test_statement_and_notes_say_what_evaluations_cost(tmp_path: Path, prepared: Prepared) -> None:
    record, evaluation = plans_of(prepared)
    with Account.open_run(tmp_path, dict.fromkeys(prepared.names, record), "run/1") as account:
        for r in range(4):
            account.authorize(r, 0, prepared.names)
            if r % 2:
                account.authorize(r, 0, prepared.names, evaluation)
        groups = account.groups()
        guarantee = Guarantee("record", [record], groups, listed(groups, prepared.names))
        statement = privacy_statement(prepared.config, [guarantee], account.head, 4)
    said = "2 evaluations on the clients' held-out records with noise multiplier 4, which alone would cost epsilon 1.1442"
    text = statement_markdown(statement)
    assert said in text and "exact and added by each client" in text and "Holds: a client answers an evaluation at most once" in text
    assert "the updates and noised evaluations that clients sent" in text and statement["summary"]["claim"] == "valid"
    summary = {"status": "completed", "privacy": statement["summary"], "final": {"eval/accuracy": 0.5, "noise/accuracy": 0.0429}}
    assert f"*Evaluation:* {said}; its figures carry that noise." in run_note("eval/accuracy", [], summary, {}, {}, {}, [])
    assert ("evaluation", said) in _guaranteed(SimpleNamespace(summary=summary, starts=[]))  # type: ignore[arg-type]
    assert _final(summary["final"]) == [("accuracy at the end", "0.5000, with noise of standard deviation 0.043")]
    plain = prepare(config_of(evaluation={"metrics": []})).plans[0]
    without = privacy_statement(prepared.config, [Guarantee("record", [plain], [], [])], None, 4)  # type: ignore[list-item]
    assert "evaluation" not in without["summary"] and "noised evaluations" not in statement_markdown(without)


# -- a planted fault -------------------------------------------------------------------------------


def distinguished(p: Prepared, runs: int) -> float:
    """Lower bound, at confidence 99.9 %, on epsilon of one evaluation, from an adversary who knows all records but one."""
    assert p.federation is not None and p.federation.client_test is not None
    weights, held = weights_of(p), p.federation.client_test
    host = host_of(p)
    model = p.model.facts.build()  # type: ignore[union-attr]
    set_vector(model, p.model.facts.layout, weights)  # type: ignore[union-attr]
    with torch.no_grad():
        own = int(p.held_out[0])  # type: ignore[index]
        right = model(torch.from_numpy(np.array(held.x[:own]))).argmax(1).numpy() == held.y[:own]
    k = int(np.flatnonzero(right)[0])
    totals = list[list[int]]()
    for side in range(2):
        if side:
            held.x[k] = np.nan  # zeroed out: its outputs are not finite, so it contributes nothing
        found = list[int]()
        for n in range(runs):
            (said,) = host.evaluate_noised(weights, [ClientTask(0, p.names[0], reservations=(("record", f"{side} {n}"),))], 1)
            found.append(said.sums["correct"][0])
        totals.append(found)
    middle = float(np.median(totals[0] + totals[1]))
    hits, alarms = sum(v >= middle for v in totals[0]), sum(v >= middle for v in totals[1])
    return clopper_pearson(runs, runs, hits, alarms, 1e-4, 0.001)


def test_an_adversary_finds_a_sum_that_leaves_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    holdout = {"at": "clients", "fraction": 0.05, "stratify": False}
    config = config_of(
        data={"source": "sklearn:digits", "classes": 10, "partition": {"kind": "iid", "clients": CLIENTS}, "holdout": holdout},
        evaluation=evaluated(every=0, charged={"noise_multiplier": 2.0}),
        privacy=FIXED,
    )
    claimed = bound({Gaussian(2.0): 1}, 1e-4)
    assert distinguished(prepare(config), 150) <= claimed
    monkeypatch.setattr(measuring, "noised", lambda total, variance, source: total)
    assert distinguished(prepare(config), 150) > claimed


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"evaluation": evaluated(federated=False)}, r"evaluation\.charged: .* evaluation\.federated is false"),
        ({"privacy": {}}, r"evaluation\.charged: privacy\.regime is none"),
        ({"evaluation": evaluated(metrics=["accuracy", "r2"])}, r"evaluation\.metrics: r2 is no function of bounded sums"),
        ({"evaluation": evaluated(metrics=["accuracy", f"{HERE}mine"])}, r"is no function of bounded sums"),
        ({"evaluation": evaluated(metrics=["loss"])}, r"evaluation\.charged\.loss_bound: is needed for loss"),
        ({"evaluation": evaluated(charged={"noise_multiplier": 4.0, "bins": 9})}, r"evaluation\.charged\.bins: is for auc"),
        ({"evaluation": evaluated(charged={"noise_multiplier": 4.0, "loss_bound": 9.0})}, r"loss_bound: is for loss"),
        (
            {"privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4, "unprotected": ["evaluation"]}},
            r"evaluation\.charged: the evaluation is charged, so privacy\.unprotected need not name it",
        ),
    ],
)
def test_settings_without_an_effect_are_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_only(config_of(**sections))


def mine(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return 0.0


WHOLE = {"noise_multiplier": 2.0, "delta": 8e-3}


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"privacy": {"regime": "client", **WHOLE}}, "client.charged_evaluation"),
        ({"privacy": {"regime": "local", **WHOLE}}, "local.charged_evaluation"),
        ({"privacy": {"regime": "distributed", **WHOLE}, "cohort": {"kind": "all", "min_clients": 2}}, "distributed.charged_evaluation"),
        (
            {
                "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4, "person": {"kind": "clipped"}},
                "data": {"source": "csv:x", "person": "p"},
            },
            "person.charged_evaluation",
        ),
        ({"algorithm": {"kind": "fedper", "personal": ["out"]}}, "charged_evaluation.own_models"),
        ({"evaluation": {"metrics": ["accuracy"], "federated": True}}, "record.federated_evaluation"),
    ],
)
def test_what_the_charge_does_not_cover_is_refused_with_the_nearest_setting(sections: dict[str, Any], code: str) -> None:
    training = {"algorithm": {"kind": "fedavg", "weights": "uniform"}}
    with pytest.raises(PrivacyRefusal, match=rf"^\[privacy\.incompatible\.{code}\] .*; set .*\.$"):
        check_only(config_of(**training | sections))


def test_records_that_the_driver_holds_are_evaluated_without_a_charge() -> None:
    data = {"source": "sklearn:digits", "classes": 10, "partition": {"kind": "iid", "clients": CLIENTS}}
    with pytest.raises(ConfigError, match=r"evaluation\.(federated: the clients hold no test|charged: the driver holds test) records"):
        prepare(config_of(data=data))


def test_delta_is_held_to_the_held_out_records_too() -> None:
    privacy = {"regime": "record", "noise_multiplier": 2.0, "delta": 2.5e-4}
    with pytest.raises(PrivacyRefusal, match=r"1 / \(10 x 4(49|50) records\)"):
        prepare(config_of(privacy=privacy))
    assert prepare(config_of(privacy=privacy, evaluation={"metrics": []})).plans[0] is not None
