"""Whatever is asked, nobody is charged above the budget, and whoever could pay is granted."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from accounts import epsilons
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import INTERVAL, bound, epsilon, flatten
from fedray.privacy.accounting.events import Gaussian, Poisson, SelfComposed
from fedray.privacy.ledger.chain import EVERYONE, Charge
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path
from fedray.privacy.ledger.verification import verify
from fedray.privacy.recordplan import SECURE_RNG, RecordPlan, check_history, plan_record

NAMES = ("a", "b", "c")


def plan(q: Fraction, steps: int, noise: float, budget: float | None, most: int | None = None) -> RecordPlan:
    return RecordPlan(q, steps, 10.0, noise, 1.0, 1e-5, budget, None, 5, most, 1, "pld", "dp-accounting", INTERVAL, SECURE_RNG)


@given(
    q=st.sampled_from([Fraction(1, 20), Fraction(1, 3), Fraction(1)]),
    steps=st.integers(1, 4),
    noise=st.sampled_from([1.0, 3.0]),
    budget=st.floats(0.5, 12.0),
    most=st.none() | st.integers(1, 3),
    asks=st.lists(st.sets(st.sampled_from(NAMES)), max_size=8),
)
@settings(max_examples=25)
def test_no_sequence_of_requests_exceeds_the_budget(
    q: Fraction, steps: int, noise: float, budget: float, most: int | None, asks: list[set[str]]
) -> None:
    terms = plan(q, steps, noise, budget, most)
    charged = dict.fromkeys(NAMES, 0)
    with tempfile.TemporaryDirectory() as folder, Account.open_run(folder, dict.fromkeys(NAMES, terms), "run/1") as account:
        for r, ask in enumerate(asks):
            decision = account.authorize(r, 0, sorted(ask))
            assert sorted([*decision.granted, *decision.refused]) == sorted(ask)
            for name in ask:
                after = bound({terms.event(): charged[name] + 1}, 1e-5)
                affordable = after <= budget and (most is None or charged[name] < most)
                assert (name in decision.granted) == affordable
            for name in decision.granted:
                charged[name] += 1
            for name, figure in epsilons(account).items():
                assert figure == (bound({terms.event(): charged[name]}, 1e-5) if charged[name] else 0.0)
                assert figure <= budget
            for figures in account.figures():
                left = figures.rounds_left
                assert left is not None
                assert bound({terms.event(): charged[figures.name] + left}, 1e-5) <= budget or left == 0
                assert figures.exhausted == (left == 0)


@given(
    q=st.sampled_from([0.02, 0.25, 1.0]),
    steps=st.integers(1, 10),
    rounds=st.integers(1, 12),
    target=st.floats(0.3, 15.0),
)
@settings(max_examples=8)
def test_planned_rounds_are_never_refused(q: float, steps: int, rounds: int, target: float) -> None:
    from fedray.configfile import build_config

    terms = plan_record(
        build_config(
            {
                "name": "t",
                "rounds": rounds,
                "data": {"source": "sklearn:digits"},
                "model": {"kind": "softmax"},
                "training": {"sampling_rate": q, "steps": steps, "expected_batch": 5.0},
                "privacy": {"regime": "record", "target_epsilon": target, "delta": 1e-5},
            }
        )
    )
    assert terms.planned_epsilon <= target
    check_history(terms.history(), terms)
    with tempfile.TemporaryDirectory() as folder, Account.open_run(folder, {"a": terms}, "run/1") as account:
        for r in range(rounds):
            assert account.authorize(r, 0, ["a"]).granted == ["a"]


@given(st.sampled_from([Fraction(1, 50), Fraction(1, 4)]), st.floats(0.7, 4.0), st.lists(st.integers(1, 400), min_size=2, max_size=4))
@settings(max_examples=15)
def test_epsilon_grows_with_steps_and_pld_never_exceeds_rdp(q: Fraction, noise: float, counts: list[int]) -> None:
    event = Poisson(q, Gaussian(noise))
    counts = sorted(counts)
    for by in ("pld", "rdp"):
        figures = [epsilon({event: n}, 1e-5, by) for n in counts]  # type: ignore[arg-type]
        assert (np.diff(figures) >= -1e-9).all()
    for n in counts:
        assert epsilon({event: n}, 1e-5) <= epsilon({event: n}, 1e-5, "rdp")
        assert epsilon({SelfComposed(n, event): 1}, 1e-5) == epsilon({event: n}, 1e-5)


def test_charges_of_all_clients_and_of_single_ones_add_up_in_one_book(tmp_path: Path) -> None:
    """One run charges everyone at once, the next single clients: no figure may forget the other's charges."""
    everyone = SelfComposed(3, Gaussian(2.0))
    with Ledger.open(clients_path(tmp_path), "a/1", unit="client", make_directory=True) as book:
        book.reserve([Charge(EVERYONE, 0, 0, everyone, "p", 1.0, "client")])
        book.reserve([Charge(name, r, 0, Gaussian(2.0), "p", 1.0, "client") for name, n in (("a", 2), ("b", 4)) for r in range(n)])
        assert flatten(book.spent("a")) == ((Gaussian(2.0), 5),)
        assert flatten(book.spent("c")) == ((Gaussian(2.0), 3),)
        assert flatten(book.spent(EVERYONE)) == ((Gaussian(2.0), 7),)  # whoever was charged most
    found = verify(clients_path(tmp_path)).epsilons(1e-3)
    assert found == {"a": bound({Gaussian(2.0): 5}, 1e-3), "b": bound({Gaussian(2.0): 7}, 1e-3), EVERYONE: bound({Gaussian(2.0): 7}, 1e-3)}
