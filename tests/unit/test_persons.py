"""Persons as the unit of record-level privacy: what is drawn, clipped, charged and refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedray.config import Config, Training
from fedray.configfile import build_config
from fedray.data.dataset import load_federation
from fedray.data.whose import person_codes
from fedray.errors import ClaimVoid, ConfigError, DataError, LedgerError, PrivacyRefusal
from fedray.planning.preparation import prepare
from fedray.privacy import rules
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import bound, calibrate, epsilon, person_epsilon
from fedray.privacy.accounting.event_json import canonical, from_canonical
from fedray.privacy.accounting.events import Gaussian, Poisson, PoissonGroup, SelfComposed
from fedray.privacy.csprng import Csprng
from fedray.privacy.ledger.inspect import describe, table
from fedray.privacy.persons import Person
from fedray.privacy.receipt import record_receipt
from fedray.privacy.recordplan import RecordPlan, check_history, plan_record
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import DpStep, LocalJob, LocalResult
from fedray.training.preflight import sensitivity_check
from fedray.training.stepdraws import bounded, drawing

Q, Z, STEPS, DELTA = Fraction(1, 10), 1.8356, 100, 3e-4
CLIPPED = Person("clipped")


# -- what it costs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "golden"), [(1, 2.000), (2, 4.60), (4, 11.10), (8, 28.76)])
def test_a_person_costs_what_the_mixture_of_the_binomial_costs(records: int, golden: float) -> None:
    found = bound({SelfComposed(STEPS, PoissonGroup(Q, records, Z)): 1}, DELTA)
    assert round(found, 2) == golden
    if records == 1:
        assert found == bound({SelfComposed(STEPS, Poisson(Q, Gaussian(Z))): 1}, DELTA)


@pytest.mark.parametrize(("q", "size", "z", "steps"), [(0.5, 5, 6.0, 50), (0.9, 2, 3.0, 20), (0.02, 3, 0.7, 300)])
def test_the_distribution_is_that_of_dp_accounting(q: float, size: int, z: float, steps: int) -> None:
    from dp_accounting.pld import privacy_loss_distribution as pld
    from scipy.stats import binom

    counts = list(range(size + 1))
    theirs = pld.from_mixture_gaussian_mechanism(z, counts, binom.pmf(counts, size, q), value_discretization_interval=1e-3)
    expected = theirs.self_compose(steps).get_epsilon_for_delta(1e-4)
    assert bound({PoissonGroup(Fraction(str(q)), size, z): steps}, 1e-4) == pytest.approx(expected, rel=1e-7)


def test_more_records_cost_more_and_every_record_always_is_a_gaussian() -> None:
    costs = [bound({PoissonGroup(Q, size, 3.0): 20}, 1e-5) for size in range(1, 6)]
    assert costs == sorted(set(costs))
    assert bound({PoissonGroup(Fraction(1), 3, 6.0): 7}, 1e-5) == bound({Gaussian(2.0): 7}, 1e-5)
    assert bound({PoissonGroup(Q, 3, 0.0): 1}, 1e-5) == float("inf")
    assert bound({PoissonGroup(Q, 8, 0.05): 100_000}, 1e-5) == float("inf")  # and not for lack of memory


def test_renyi_does_not_bound_it_and_says_so() -> None:
    with pytest.raises(LedgerError, match="does not bound the event .*poisson_group.*use pld"):
        epsilon({PoissonGroup(Q, 2, 1.0): 1}, 1e-5, "rdp")


@given(st.integers(1, 20), st.integers(1, 9), st.floats(0.5, 9.0))
def test_the_event_survives_the_ledger(tenths: int, size: int, z: float) -> None:
    event = SelfComposed(3, PoissonGroup(Fraction(tenths, 20), size, z))
    assert from_canonical(canonical(event)) == event


def test_noise_is_found_for_persons() -> None:
    z = calibrate(lambda noise: SelfComposed(20, PoissonGroup(Q, 4, noise)), 5, DELTA, 2.0)
    at = [bound({SelfComposed(20, PoissonGroup(Q, 4, noise)): 5}, DELTA) for noise in (z, z * 0.999)]
    assert at[0] <= 2.0 < at[1]


def test_a_person_in_several_silos_pays_in_each() -> None:
    event = PoissonGroup(Q, 2, 2.0)
    spents = [{event: 10}, {event: 30}, {event: 20}, {}]
    assert person_epsilon(spents, 1e-5, 1) == bound({event: 30}, 1e-5)
    assert person_epsilon(spents, 1e-5, 2) == bound({event: 50}, 1e-5)
    assert person_epsilon(spents, 1e-5, 9) == bound({event: 60}, 1e-5)
    other = {PoissonGroup(Q, 3, 4.0): 5}
    pairs = [bound({event: 30} | other, 1e-5), bound({event: 50}, 1e-5)]
    assert person_epsilon([*spents, other], 1e-5, 2) >= max(pairs)


# -- who joins a step ------------------------------------------------------------------------------

PERSONS = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(lambda codes: np.array(codes, dtype=np.int64))


@given(PERSONS, st.integers(1, 5))
def test_at_most_so_many_records_of_a_person_take_part(persons: npt.NDArray[np.int64], most: int) -> None:
    rows = bounded(persons, most, Csprng())
    assert len(np.unique(rows)) == len(rows) and (np.diff(rows) > 0).all()
    everyone, had = np.unique(persons, return_counts=True)
    kept = [int((persons[rows] == one).sum()) for one in everyone]
    assert kept == np.minimum(had, most).tolist()


def test_each_record_of_a_person_is_as_likely_to_take_part() -> None:
    persons, noise, counts = np.array([0] * 6 + [1, 1, 2]), Csprng(), np.zeros(9)
    for _ in range(4000):
        counts[bounded(persons, 2, noise)] += 1
    assert (counts[6:] == 4000).all()
    assert (np.abs(counts[:6] - 4000 / 3) < 6 * np.sqrt(4000 * 2 / 9)).all()  # six standard deviations


class _Fixed:
    """Coins that are given; no noise."""

    def __init__(self, coins: Sequence[float]) -> None:
        self._coins = np.array(coins)

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        return self._coins[:n]

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)


@given(PERSONS, st.integers(1, 5), st.integers(0, 6))
def test_whose_records_take_part_depends_on_nobody_else(persons: npt.NDArray[np.int64], most: int, gone: int) -> None:
    keys = np.random.default_rng(0).random(len(persons))
    others = persons != gone
    rows = bounded(persons, most, _Fixed(keys))
    without = np.flatnonzero(others)[bounded(persons[others], most, _Fixed(keys[others]))] if others.any() else np.zeros(0)
    assert rows[others[rows]].tolist() == without.tolist()


@given(PERSONS, st.integers(1, 12), st.lists(st.floats(0, 0.99), min_size=7, max_size=7))
def test_a_drawn_person_joins_with_all_records_in_one_batch(persons: npt.NDArray[np.int64], physical: int, coins: list[float]) -> None:
    draw = drawing(CLIPPED, persons, len(persons), _Fixed(coins))
    batches = list(draw(0.5, physical))
    everyone = np.unique(persons)
    drawn = everyone[np.array(coins[: len(everyone)]) < 0.5]
    seen = [person for rows, _ in batches for person in np.unique(persons[rows])]
    assert sorted(seen) == drawn.tolist()  # each in one batch
    for rows, owners in batches:
        assert owners is not None
        assert sorted(rows.tolist()) == np.flatnonzero(np.isin(persons, persons[rows])).tolist()  # with all their records
        assert len({(a, b) for a, b in zip(persons[rows].tolist(), owners.tolist(), strict=True)}) == owners.max() + 1
        assert len(rows) <= physical or owners.max() == 0


def test_persons_are_needed() -> None:
    for persons in (None, np.zeros(2, dtype=np.int64)):
        with pytest.raises(ConfigError, match=r"privacy\.person: it is not known whose each record is"):
            drawing(Person("bounded", 1), persons, 3, Csprng())


# -- what a person adds ----------------------------------------------------------------------------


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0] * targets


def _linear() -> nn.Linear:
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def _sum(engine: Any, x: Tensor, persons: npt.NDArray[np.int64], person: Person, physical: int = 256, z: float = 0.0) -> Tensor:
    """The clipped sum of one step in which everyone is drawn; a record's gradient is its ``x``."""
    model = _linear()
    training = Training(sampling_rate=1.0, steps=1, expected_batch=1.0, physical_batch=physical, lr=1.0)
    job = LocalJob(training, 1.0, _loss, np.random.default_rng(0), _Fixed(np.zeros(99)), DpStep(z, 1.0, "flat", person), persons=persons)
    engine(model, x, torch.ones(len(x)), job)
    return -model.weight.detach().flatten()


@given(PERSONS, st.integers(1, 12), st.integers(0, 6), st.floats(0.01, 100.0))
def test_a_clipped_person_moves_a_step_by_at_most_the_clip_norm(
    persons: npt.NDArray[np.int64], physical: int, gone: int, scale: float
) -> None:
    draws = np.random.default_rng(1)
    x = torch.from_numpy((draws.standard_normal((len(persons), 3)) * scale).astype(np.float32))
    whole = _sum(hooks, x, persons, CLIPPED, physical)
    means = [x[persons == one].mean(0) for one in np.unique(persons)]
    expected = sum(m * min(1.0, 1.0 / float(m.norm())) for m in means)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    others = persons != gone
    if others.any():
        assert float((whole - _sum(hooks, x[others], persons[others], CLIPPED, physical)).norm()) <= 1.0 + 1e-4


@pytest.mark.parametrize("engine", [hooks, book, ghost])
def test_a_bounded_person_moves_a_step_by_at_most_its_records(engine: Any) -> None:
    x = torch.tensor([[9.0, 0.0, 0.0]] * 7 + [[0.0, 0.5, 0.0]])
    found = _sum(engine, x, np.array([0] * 7 + [1]), Person("bounded", 3))
    torch.testing.assert_close(found, torch.tensor([3.0, 0.5, 0.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_record_that_is_not_finite_silences_nobody(bad: float) -> None:
    x = torch.tensor([[bad, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.5]])
    found = _sum(hooks, x, np.array([0, 0, 1]), CLIPPED)
    assert torch.isfinite(found).all() and float(found.norm()) <= 2.0
    assert found[2] == 0.5


@pytest.mark.parametrize("engine", [book, ghost])
def test_engines_without_single_gradients_refuse_to_clip_persons(engine: Any) -> None:
    with pytest.raises(ConfigError, match="has no single gradients to clip by person; use hooks"):
        _sum(engine, torch.ones(2, 3), np.zeros(2, dtype=np.int64), CLIPPED)


def _check(engine: Any) -> float:
    training = Training(sampling_rate=0.5, steps=3, expected_batch=4.0)
    make = lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))  # noqa: E731
    return sensitivity_check(engine, make, nn.CrossEntropyLoss(reduction="none"), (4,), 3, training, 1.0, 3, person=CLIPPED)


def test_the_preflight_test_leaves_out_whole_persons() -> None:
    assert 0.9 < _check(hooks) <= 1.0 + 1e-5


def test_the_preflight_test_finds_an_engine_that_clips_records_and_not_persons() -> None:
    def by_record(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        assert job.dp is not None
        return hooks(model, x, y, replace(job, dp=replace(job.dp, person=None)))

    with pytest.raises(PrivacyRefusal, match="leaving out one record moves a step's sum by (1[.][1-9]|2)"):
        _check(by_record)


# -- whose records they are ------------------------------------------------------------------------


def _config(folder: Path, person: dict[str, Any] | None, **sections: Any) -> Config:
    draws = np.random.default_rng(0)
    rows = [f"{draws.normal():.3f},{draws.normal():.3f},{draws.integers(2)},p{k // 3:02}" for k in range(90)]
    (folder / "visits.csv").write_text("\n".join(["u,v,y,patient", *rows]) + "\n")
    privacy = {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-3} | ({} if person is None else {"person": person})
    raw: dict[str, Any] = {
        "name": "persons",
        "rounds": 2,
        "data": {
            "source": f"csv:{folder / 'visits.csv'}",
            "label": "y",
            "classes": 2,
            "person": "patient",
            "partition": {"kind": "iid", "clients": 3},
        },
        "model": {"kind": "softmax"},
        "training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 6},
        "privacy": privacy,
        "tracking": {"enabled": False},
    }
    return build_config(raw | sections)


BOUNDED = {"kind": "bounded", "records": 2}


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "shards"])
@pytest.mark.parametrize("at", ["driver", "clients"])
def test_a_person_is_held_out_and_dealt_with_all_records(tmp_path: Path, kind: str, at: str) -> None:
    config = _config(tmp_path, BOUNDED)
    more = {"alpha": 5.0} if kind == "dirichlet" else {}
    data = config.data.model_copy(
        update={
            "partition": config.data.partition.model_validate({"kind": kind, "clients": 3, **more}),
            "holdout": config.data.holdout.model_copy(update={"at": at}),
        }
    )
    found = load_federation(data, 0)
    assert found.columns == ("u", "v")  # the person is no feature
    persons = found.train.persons
    assert persons is not None
    client = np.repeat(np.arange(3), found.sizes)
    assert len(np.unique(np.stack([persons, client]), axis=1).T) == len(np.unique(persons))
    assert set(np.unique(persons, return_counts=True)[1].tolist()) == {3}
    held = found.test if at == "driver" else found.client_test
    assert held is not None and held.persons is not None and not set(held.persons.tolist()) & set(persons.tolist())
    assert np.array_equal(found.persons, [len(np.unique(persons[client == k])) for k in range(3)])


def test_persons_in_training_and_test_set_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 persons \(data.person\) have records both for training and in the test set"):
        person_codes(["a", "b"], ["b", "c"], 2, "here")
    with pytest.raises(DataError, match=r"1 records do not say whose they are \(data.person\), the first is record 2"):
        person_codes(np.array(["a", None], dtype=object), None, 2, "here")


def test_one_person_written_in_several_ways_is_one() -> None:
    assert person_codes(["7", " 7", "07", "7.0", "8"], None, 5, "here").tolist() == [0, 0, 0, 0, 1]
    assert person_codes([7.0, 7.0, 8.0], None, 3, "here").tolist() == [0, 0, 1]
    assert person_codes(["a", "a ", "b"], None, 3, "here").tolist() == [0, 0, 1]


# -- what is planned, charged and refused ----------------------------------------------------------


def test_the_plan_names_the_person(tmp_path: Path) -> None:
    plan = plan_record(_config(tmp_path, BOUNDED))
    assert (plan.unit, plan.person) == ("person", Person("bounded", 2))
    assert plan.event() == SelfComposed(5, PoissonGroup(Fraction(1, 4), 2, 2.0))
    assert RecordPlan.of(plan.terms()) == plan and plan.terms()["person"] == BOUNDED
    alone = plan_record(_config(tmp_path, None))
    assert alone.unit == "record" and "person" not in alone.terms() and alone.sha256 != plan.sha256
    clipped = plan_record(_config(tmp_path, {"kind": "clipped"}))
    assert clipped.unit == "person" and clipped.event() == alone.event()


def test_what_ran_is_compared_with_what_was_charged(tmp_path: Path) -> None:
    plan = plan_record(_config(tmp_path, BOUNDED))
    check_history([(2.0, 0.25, 5)], plan)
    with pytest.raises(ClaimVoid):
        check_history([(2.0, 0.25, 6)], plan)
    receipt = record_receipt(plan, [(2.0, 0.25, 5)], "book", None)
    assert receipt["person"] == BOUNDED and receipt["person_records"] == 2


def test_a_ledger_of_records_refuses_persons_and_the_other_way_round(tmp_path: Path) -> None:
    record, person = plan_record(_config(tmp_path, None)), plan_record(_config(tmp_path, BOUNDED))
    for first, second in ((record, person), (person, record)):
        books = tmp_path / first.unit
        books.mkdir()
        with Account.open_run(books, {"a": first}, "job/1", lasting=True) as account:
            account.authorize(0, 0, ["a"])
        with pytest.raises(LedgerError, match=f"charges {first.unit} .* not {second.unit} .*privacy.person"):
            Account.open_run(books, {"a": second}, "other/1", lasting=True)


def test_runs_with_other_numbers_of_records_compose_in_one_ledger(tmp_path: Path) -> None:
    plans = [plan_record(_config(tmp_path, person)) for person in (BOUNDED, {"kind": "bounded", "records": 4}, {"kind": "clipped"})]
    for n, plan in enumerate(plans):
        with Account.open_run(tmp_path / "books", {"a": plan}, f"job{n}/1", lasting=True) as account:
            account.authorize(0, 0, ["a"])
            spent = account.figures()[0].epsilon
    assert spent == bound({plan.event(): 1 for plan in plans}, 1e-3)
    shown = table(describe(tmp_path / "books"))
    assert "person (at most 2 records a turn) or person (at most 4 records a turn) or person (records clipped as one) (zero-out)" in shown


@pytest.mark.parametrize(
    ("sections", "person", "message"),
    [
        ({"training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 6, "engine": "book"}}, {"kind": "clipped"}, "person.engine"),
        ({"data": {"source": "sklearn:digits"}}, BOUNDED, "needs to know whose each record is"),
        ({"privacy": {"regime": "client", "noise_multiplier": 2.0, "delta": 1e-3, "person": BOUNDED}}, None, "set privacy.regime=record"),
        ({"privacy": {"regime": "none", "person": BOUNDED}}, None, "privacy.person: given, but privacy.regime is none"),
    ],
)
def test_what_does_not_go_with_persons_is_refused(
    tmp_path: Path, sections: dict[str, Any], person: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises((ConfigError, PrivacyRefusal), match=message):
        rules.check(_config(tmp_path, person, **sections))


@pytest.mark.parametrize("person", [{"kind": "bounded"}, {"kind": "clipped", "records": 3}])
def test_the_number_of_records_goes_with_bounded(tmp_path: Path, person: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"records: goes with kind bounded"):
        _config(tmp_path, person)


def test_delta_is_for_the_number_of_persons(tmp_path: Path) -> None:
    config = _config(tmp_path, BOUNDED)  # 24 persons for training, 8 a client
    for delta, fits in ((1 / 80, True), (1 / 79, False)):
        changed = config.model_copy(update={"privacy": config.privacy.model_copy(update={"delta": delta})})
        if fits:
            prepare(changed)
        else:
            with pytest.raises(PrivacyRefusal, match="10 x 8 persons"):
                prepare(changed)


def test_a_person_at_more_clients_than_is_said_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, BOUNDED)
    lines = (tmp_path / "visits.csv").read_text().splitlines()
    moved = [lines[0] + ",site", *(f"{line},s{k % 3}" for k, line in enumerate(lines[1:]))]  # each patient's three visits at three sites
    (tmp_path / "visits.csv").write_text("\n".join(moved) + "\n")
    data = config.data.model_validate(config.data.model_dump() | {"silo": "site", "partition": {"kind": "natural"}})
    config = config.model_copy(update={"data": data})
    with pytest.raises(PrivacyRefusal, match="max_silos_per_person: is 1, but a person has records at 3 clients"):
        prepare(config)
    prepare(config.model_copy(update={"privacy": config.privacy.model_copy(update={"max_silos_per_person": 3})}))
