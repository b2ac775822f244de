"""Canaries who are persons: what several records of one give away, and what the audit tries of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audited import digits

from fedray.audit.bounds import clopper_pearson
from fedray.audit.canaries import make_canaries, records_of_a_canary, with_canaries
from fedray.audit.checks import record_checks
from fedray.audit.local_run import subjects
from fedray.audit.probes import Probe, Subject
from fedray.data.records import Federation, Records
from fedray.planning.preparation import prepare
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.persons import Person
from fedray.privacy.recordplan import RecordPlan
from fedray.rng import generator

DELTA, RECORDS, TRIALS, THRESHOLD = 1e-3, 4, 1500, 6.0


@pytest.fixture(scope="module")
def subject() -> Subject:
    settings = ("training.sampling_rate=0.25", "training.steps=4", f"privacy.delta={1e-4}")
    (found,) = subjects(prepare(digits(*settings)))
    return found


def with_person(subject: Subject, person: Person | None) -> Subject:
    engine = "hooks" if person is not None and person.clipped else subject.group.training.engine
    training = subject.group.training.model_copy(update={"engine": engine})
    return replace(subject, plan=replace(subject.plan, person=person), group=replace(subject.group, training=training))


def epsilon(plan: RecordPlan) -> float:
    return bound({plan.event(): 1}, DELTA)


def lower_bound(subject: Subject, trials: int = TRIALS) -> float:
    """What is refuted with 95 % confidence by whether a person with four records takes part, of whom an adversary sees a turn's update.

    Without the person its records are there and have no gradient (zero-out).
    """
    with_, without = np.ones((RECORDS, 1), dtype=np.float32), np.full((RECORDS, 1), np.nan, dtype=np.float32)
    whose = np.zeros(2 * RECORDS, dtype=np.int64)
    whose[RECORDS:] = 1
    probe = Probe(subject, [with_ * 9, without], persons=whose)
    said = [sum(float(probe.sum(client, round_)[0]) > THRESHOLD for round_ in range(trials)) for client in (0, 1)]
    return clopper_pearson(trials, trials, said[0], said[1], DELTA)


@pytest.mark.slow
def test_four_records_break_the_bound_of_one_and_not_that_of_their_person(subject: Subject) -> None:
    """With noise multiplier 2 the records add up to 4 of a standard deviation of 4, which refutes an epsilon of 1.3 or so. That this fails by
    chance has a probability below one in ten thousand.
    """
    one = with_person(subject, None)
    assert epsilon(one.plan) == pytest.approx(0.786, abs=1e-3)
    assert lower_bound(one) > epsilon(one.plan)
    four = with_person(subject, Person("bounded", RECORDS))
    assert epsilon(one.plan) < lower_bound(four) < epsilon(four.plan) == pytest.approx(4.343, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("person", [Person("bounded", 1), Person("clipped")])
def test_a_person_who_is_held_to_one_record_keeps_the_bound_of_one(subject: Subject, person: Person) -> None:
    held = with_person(subject, person)
    assert lower_bound(held, 500) < epsilon(held.plan) == epsilon(with_person(subject, None).plan)


@pytest.mark.parametrize("person", [Person("bounded", 2), Person("clipped")])
def test_the_audit_tries_a_person_with_many_records(subject: Subject, person: Person) -> None:
    checks = record_checks(with_person(subject, person), 10)
    (tried,) = [check for check in checks if check.name == "records of one person"]
    assert tried.passed, tried
    assert f"of {person.records or 1} that are charged" in tried.found
    failed = [check for check in checks if not check.passed]
    assert not failed, failed


def test_canaries_are_persons_of_their_own() -> None:
    draws = np.random.default_rng(0)
    train = Records(draws.standard_normal((12, 3)).astype(np.float32), draws.integers(0, 2, 12), np.arange(12) // 3)
    federation = Federation(["a", "b"], train, np.array([0, 6, 12]), None, None, None, 2)
    canaries = make_canaries(federation, 10, generator(0, "test"), copies=3)
    found = with_canaries(federation, canaries, zeroed=True)
    assert found.sizes.tolist() == [6 + 15, 6 + 15]
    persons = found.train.persons
    assert persons is not None
    assert np.bincount(persons).tolist() == [3] * 14
    for k in range(4, 14):
        rows = found.train.x[persons == k]
        assert np.array_equal(rows, rows[[0, 0, 0]], equal_nan=True)
    left_out = with_canaries(federation, canaries, zeroed=False)
    assert left_out.sizes.sum() == 12 + 3 * canaries.included.sum()


def test_a_canary_has_as_many_records_as_are_charged_for(subject: Subject) -> None:
    plans = [with_person(subject, person).plan for person in (None, Person("bounded", 7), Person("clipped"))]
    assert [records_of_a_canary([plan]) for plan in plans] == [1, 7, 4]
