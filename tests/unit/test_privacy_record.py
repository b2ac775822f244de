"""The plan of record-level privacy, and accounts that charge before anyone trains."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from accounts import epsilons, left

from fedray.config import Config, Training
from fedray.configfile import build_config
from fedray.errors import ClaimVoid, ConfigError, LedgerError, PrivacyRefusal
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import bound, person_epsilon
from fedray.privacy.accounting.events import Gaussian, Poisson, SelfComposed, Unsupported
from fedray.privacy.ledger.chain import Charge
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import records_path
from fedray.privacy.ledger.verification import verify
from fedray.privacy.recordplan import RecordPlan, check_delta, check_history, plan_record
from fedray.rounding import rounded_up


def config(privacy: Mapping[str, Any] | None = None, **sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "t",
        "rounds": 6,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30},
        "privacy": {"regime": "record", "target_epsilon": 8.0, "delta": 1e-5, **(privacy or {})},
    }
    return build_config({**raw, **sections})


@pytest.fixture(scope="module")
def plan() -> RecordPlan:
    return plan_record(config())


def test_the_plan_is_laid_out_for_all_rounds(plan: RecordPlan) -> None:
    assert plan.sampling_rate == Fraction(1, 4)
    assert plan.participations == 6
    assert plan.budget == plan.target_epsilon == 8.0
    assert plan.event() == SelfComposed(5, Poisson(Fraction(1, 4), Gaussian(plan.noise_multiplier)))
    assert plan.history() == [(plan.noise_multiplier, 0.25, 5)]
    assert 7.99 < plan.planned_epsilon <= 8.0
    assert bound({plan.event(): 7}, 1e-5) > 8.0
    assert plan.rng.startswith("aes-256-ctr")
    assert "0.6" in plan.accountant_version


def test_a_plan_has_one_hash_and_travels(plan: RecordPlan) -> None:
    assert len(plan.sha256) == 64
    assert pickle.loads(pickle.dumps(plan)) == plan
    other = plan_record(config({"clip": 0.5}))
    assert other.noise_multiplier == plan.noise_multiplier
    assert other.sha256 != plan.sha256


def test_fewer_participations_and_group_settings_change_the_noise(plan: RecordPlan) -> None:
    fewer = plan_record(config({"max_participations": 2}))
    assert fewer.participations == 2
    assert fewer.noise_multiplier < plan.noise_multiplier
    group = plan_record(config(), Training(sampling_rate=0.05, steps=5, expected_batch=30.0))
    assert group.sampling_rate == Fraction(1, 20)
    assert group.noise_multiplier < plan.noise_multiplier


def test_given_noise_has_no_budget_unless_one_is_given() -> None:
    free = plan_record(config({"target_epsilon": None, "noise_multiplier": 1.5}))
    assert (free.noise_multiplier, free.budget, free.target_epsilon) == (1.5, None, None)
    assert plan_record(config({"target_epsilon": None, "noise_multiplier": 1.5, "budget": 3.0})).budget == 3.0
    assert plan_record(config({"budget": 20.0})).budget == 20.0


def test_missing_and_contradicting_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"record needs privacy.delta; add it\."):
        plan_record(config({"delta": None}))
    with pytest.raises(ConfigError, match="neither of them is given; give exactly one"):
        plan_record(config({"target_epsilon": None}))
    with pytest.raises(ConfigError, match="both of them are given"):
        plan_record(config({"noise_multiplier": 1.0}))


@pytest.mark.parametrize("batches", [{"batch_size": 32, "epochs": 2}, {"batch_size": 32, "steps": 10}])
def test_shuffled_batches_are_refused_with_the_nearest_legal_setting(batches: dict[str, int]) -> None:
    with pytest.raises(PrivacyRefusal, match=r"replace batch_size=32.*sampling_rate.*expected_batch=32 and training.steps") as caught:
        plan_record(config(training=batches))
    assert caught.value.code == "privacy.incompatible.record.shuffled_batches"


def test_delta_is_at_most_a_tenth_of_one_over_the_records(plan: RecordPlan) -> None:
    check_delta(plan, {"a": 10_000, "b": 5, "c": 0})
    check_delta(plan, {})
    with pytest.raises(PrivacyRefusal, match=r"1 / \(10 x 10001 records\) of client 'big'.*privacy.delta=9.99e-06 or less") as caught:
        check_delta(plan, {"small": 3, "big": 10_001})
    assert caught.value.code == "privacy.delta.too_large"


def test_a_local_round_is_held_against_its_plan(plan: RecordPlan) -> None:
    check_history(plan.history(), plan)
    check_history([list(row) for row in plan.history()], plan)
    z, q, steps = plan.history()[0]
    for wrong in (
        None,
        [],
        [(z, q, steps - 1)],
        [(z, q, steps + 1)],
        [(z * 0.99, q, steps)],
        [(z, 0.2500001, steps)],
        [(z, q, 2), (z, q, 3)],
    ):
        with pytest.raises(ClaimVoid, match="must not be used"):
            check_history(wrong, plan)


def test_planned_rounds_are_granted_and_the_next_is_refused(plan: RecordPlan, tmp_path: Path) -> None:
    names = ["a", "b"]
    with Account.open_run(tmp_path / "ledger", dict.fromkeys(names, plan), "run/1") as account:
        for r in range(6):
            assert left(account, "a") == 6 - r
            decision = account.authorize(r, 0, names)
            assert (decision.granted, decision.refused) == (names, {})
            account.commit(r, 0, {"a": None})
        assert epsilons(account) == dict.fromkeys(names, plan.planned_epsilon)
        before = account.path.read_bytes()
        decision = account.authorize(6, 0, names)
        assert decision.granted == []
        assert account.path.read_bytes() == before
        assert set(account.check(names).refused) == set(names)
        refusal = pickle.loads(pickle.dumps(decision.refused["a"]))
        assert (refusal.spent, refusal.after, refusal.budget) == (plan.planned_epsilon, bound({plan.event(): 7}, 1e-5), 8.0)
        assert left(account, "a") == 0
        assert all(f.exhausted for f in account.figures())
        epsilon_rdp = account.figures()[0].epsilon_rdp
    assert epsilon_rdp > plan.planned_epsilon
    assert verify(records_path(tmp_path / "ledger")).charges == {"a": 6, "b": 6}


def test_a_refusal_tells_what_would_fit_and_it_does(tmp_path: Path) -> None:
    plan = plan_record(config({"target_epsilon": None, "noise_multiplier": 1.0, "budget": 9.0}))
    with Account.open_run(tmp_path, {"silo": plan}, "run/1") as account:
        rounds = left(account, "silo") or 0
        assert rounds >= 1
        for r in range(rounds):
            assert account.authorize(r, 0, ["silo"]).granted
        refusal = account.authorize(rounds, 0, ["silo"]).refused["silo"]
        noise, steps = refusal.fits()
        text = str(refusal)
    assert noise is not None
    assert noise > 1.0
    spent = dict(refusal.composition)
    assert bound({**spent, SelfComposed(5, Poisson(Fraction(1, 4), Gaussian(noise))): 1}, 1e-5) <= 9.0
    assert text.startswith(
        f"silo: has spent epsilon {rounded_up(refusal.spent)} of 9, and another round would bring it to {rounded_up(refusal.after)}; "
        "it would fit with "
    )
    assert f"privacy.noise_multiplier={noise:g}" in text
    if steps:
        assert bound({**spent, SelfComposed(steps, Poisson(Fraction(1, 4), Gaussian(1.0))): 1}, 1e-5) <= 9.0
        assert f"training.steps={steps}" in text
    assert text.endswith("or raise privacy.budget.")


def test_max_participations_holds_without_a_budget_and_over_restarts(tmp_path: Path) -> None:
    plan = plan_record(config({"target_epsilon": None, "noise_multiplier": 2.0, "max_participations": 2}))
    with Account.open_run(tmp_path, {"a": plan}, "run/1") as account:
        assert account.authorize(0, 0, ["a"]).granted
    with Account.open_run(tmp_path, {"a": plan}, "run/2") as account:
        assert left(account, "a") == 1
        assert account.authorize(0, 0, ["a"]).granted
        assert "took part in 2 rounds, which is privacy.max_participations" in str(account.authorize(1, 0, ["a"]).refused["a"])
    with Account.open_run(tmp_path, {"a": plan}, "other/1") as account:
        assert left(account, "a") == 2
        (figures,) = account.figures()
        assert (figures.charges, figures.run_charges) == (2, 0)


def test_without_any_limit_rounds_go_on(tmp_path: Path) -> None:
    plan = plan_record(config({"target_epsilon": None, "noise_multiplier": 0.5}))
    with Account.open_run(tmp_path, {"a": plan}, "run/1") as account:
        assert left(account, "a") is None
        assert account.authorize(0, 0, ["a"]).granted
        assert not account.figures()[0].exhausted


def test_retries_are_charged_and_never_for_free(plan: RecordPlan, tmp_path: Path) -> None:
    with Account.open_run(tmp_path, {"a": plan}, "run/1") as account:
        account.authorize(0, 0, ["a"])
        with pytest.raises(LedgerError, match="new attempt number"):
            account.authorize(0, 0, ["a"])
        account.authorize(0, 1, ["a"])
        assert left(account, "a") == 4
        with pytest.raises(LedgerError, match="client 'z' has no plan"):
            account.authorize(1, 0, ["z"])


def test_the_charge_is_on_disk_before_the_answer(plan: RecordPlan, tmp_path: Path) -> None:
    with Account.open_run(tmp_path, {"a": plan}, "run/1") as account:
        account.authorize(0, 0, ["a"])
        summary = verify(account.path)  # the lock is the writer's; a reader sees what is there
        assert summary.charges == {"a": 1}
        assert summary.terms[plan.sha256] == plan.terms()
        assert summary.head is not None
        assert summary.head.sha256 == account.head


def test_a_silo_keeps_its_own_book_over_runs(plan: RecordPlan, tmp_path: Path) -> None:
    with Account.open_silo(tmp_path / "books", "north/1", plan, "first/1") as account:
        account.authorize(0, 0, ["north/1"])
        pin = account.head
    with Account.open_silo(tmp_path / "books", "north/1", plan, "second/1", pinned=pin) as account:
        (figures,) = account.figures()
        assert (figures.name, figures.charges, figures.run_charges, figures.rounds_left) == ("north/1", 1, 0, 5)
        assert figures.next_epsilon > figures.epsilon > 0
        assert pickle.loads(pickle.dumps(figures)) == figures
        with pytest.raises(LedgerError, match="in use by job 'second/1'"):
            Account.open_silo(tmp_path / "books", "north/1", plan, "third/1", wait=0.0)


def test_an_unbounded_release_in_the_book_ends_all_training(plan: RecordPlan, tmp_path: Path) -> None:
    with Ledger.open(records_path(tmp_path), "run/0") as ledger:
        ledger.reserve([Charge("a", 0, 0, Unsupported("labels in the clear"), "p", 1.0)])
    with Account.open_run(tmp_path, {"a": plan, "b": plan}, "run/1") as account:
        decision = account.authorize(0, 0, ["a", "b"])
        assert decision.granted == ["b"]
        assert "no setting makes it fit" in str(decision.refused["a"])


def test_a_person_in_two_silos_is_counted_twice(tmp_path: Path) -> None:
    plan = plan_record(config({"max_silos_per_person": 2}))
    with Account.open_run(tmp_path, dict.fromkeys("abc", plan), "run/1") as account:
        account.authorize(0, 0, ["a", "b", "c"])
        spents = [dict(f.composition) for f in account.figures()]
        assert person_epsilon(spents, plan.delta, plan.max_silos_per_person) > max(epsilons(account).values())
