"""All books of a run as one: none, one or two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.clients.messages import ClientReport, ClientTask
from fedray.clients.pool import Pool
from fedray.configfile import build_config
from fedray.privacy.account import Account
from fedray.privacy.figures import LISTED, Figures, Spent, listed
from fedray.privacy.recordplan import plan_record
from fedray.rounds.books import Authorization, Books, BooksView, RunBook, SiloBooks

COHORT = [ClientTask(i, f"c{i}") for i in range(6)]


def figures(epsilon: float, exhausted: bool = False) -> Figures:
    return Figures("?", "client", 1, 1, epsilon, epsilon, None, epsilon, 1e-5, None, None, exhausted, cast(Any, ()))


class Ledger:
    """A book in memory that refuses some clients, and writes down what it is asked in a list that books can share."""

    def __init__(self, unit: str, calls: list[tuple[str, str]], refused: set[str] | None = None, begins: bool = True) -> None:
        self.unit, self.calls, self.refused, self.begins = unit, calls, refused or set(), begins

    def authorize(self, round_: int, cohort: list[ClientTask]) -> Authorization:
        self.calls.append((self.unit, "authorize"))
        granted = [c._replace(reservations=(*c.reservations, (self.unit, "id"))) for c in cohort if c.name not in self.refused]
        return Authorization(round_, granted, {c.name: self.unit for c in cohort if c.name in self.refused}, begins=self.begins)

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        return next(iter(self.authorize(round_, [client]).cohort), None)

    def commit(self, round_: int, trained: list[ClientReport]) -> None:
        self.calls.append((self.unit, "commit"))

    def view(self, rounds: int, everyone: bool) -> BooksView:
        return BooksView({self.unit: [Spent(figures(float(rounds), True), self.refused)]}, frozenset(self.refused))

    def heads(self) -> dict[str, str]:
        return {self.unit: "head"}

    def parts(self) -> dict[str, dict[str, Any]]:
        return {self.unit: {}}


def books(*ledgers: Ledger) -> Books:
    return Books(*cast(list[RunBook], ledgers))


def test_without_a_book_everyone_may_train() -> None:
    none = Books()
    assert none.authorize(3, COHORT) == Authorization(3, COHORT)
    assert none.retry(3, COHORT[0]) is COHORT[0]
    none.commit(3, [], [])
    assert none.view(3) == BooksView() and not none.heads() and not none.parts()


@given(st.sets(st.sampled_from([c.name for c in COHORT])), st.sets(st.sampled_from([c.name for c in COHORT])), st.booleans())
def test_two_books_must_both_allow_a_client(records: set[str], clients: set[str], begins: bool) -> None:
    calls: list[tuple[str, str]] = []
    both = books(Ledger("record", calls, records), Ledger("client", calls, clients, begins))
    found = both.authorize(0, COHORT)
    assert [c.name for c in found.cohort] == [c.name for c in COHORT if c.name not in records | clients]
    assert all(c.reservations == (("client", "id"), ("record", "id")) for c in found.cohort)
    assert found.refused == dict.fromkeys(records - clients, "record") | dict.fromkeys(clients, "client")
    assert found.begins == begins
    both.commit(0, [], [])
    assert calls == [("client", "authorize"), ("record", "authorize"), ("client", "commit"), ("record", "commit")]
    for client in COHORT:
        calls.clear()
        assert (both.retry(0, client) is None) == (client.name in records | clients)
        assert ("record", "authorize") not in calls or client.name not in clients  # who is refused once is charged no more
    view = both.view(2)
    assert list(view.groups) == list(both.heads()) == list(both.parts()) == ["record", "client"]
    assert view.exhausted == records | clients


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_each_subject_has_the_figures_of_its_group(spent: list[int]) -> None:
    names = [f"c{i}" for i in range(len(spent))]
    groups = [Spent(figures(float(e)), [n for n, mine in zip(names, spent, strict=True) if mine == e]) for e in sorted(set(spent))]
    found = listed(groups, [*names, "unknown"])
    assert [(f.name, f.epsilon) for f in found] == list(zip(names, map(float, spent), strict=True))


def test_of_very_many_subjects_those_that_spent_most_are_listed() -> None:
    many = Spent(figures(1.0), [f"c{i}" for i in range(LISTED)])
    found = listed([many, Spent(figures(2.0), ["most"])], [])
    assert len(found) == LISTED and found[0].name == "most"
    assert {f.epsilon for f in found[1:]} == {1.0}


def test_clients_are_charged_for_the_version_that_they_start_from() -> None:
    charged: list[tuple[str, int, list[str]]] = []

    class Noting(Ledger):
        def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
            charged.append(("authorize", round_, [c.name for c in cohort]))
            return super().authorize(round_, cohort)

        def commit(self, round_: int, trained: list[ClientReport]) -> None:
            charged.append(("commit", round_, [r.name for r in trained]))

    one, cohort = books(Noting("record", [], set())), [COHORT[0], COHORT[1]._replace(version=3), COHORT[2]._replace(version=5)]
    permit = one.authorize(5, cohort)
    assert sorted(c.name for c in permit.cohort) == sorted(c.name for c in cohort) and permit.round == 5
    one.retry(5, cohort[1])
    one.commit(5, permit.cohort, [ClientReport(c.index, c.name, "done") for c in permit.cohort[1:]])
    names = [c.name for c in cohort]
    assert charged[:3] == [("authorize", 5, [names[0], names[2]]), ("authorize", 3, [names[1]]), ("authorize", 3, [names[1]])]
    assert charged[3:] == [("commit", 5, [names[2]]), ("commit", 3, [names[1]])]


class Silos:
    """Stands in for the pool: each account is asked as its silo's actor would be, and a silo that is away does not answer."""

    def __init__(self, accounts: Mapping[int, Account]) -> None:
        self.accounts = accounts

    def ask(self, method: str, arguments: Mapping[int, tuple[Any, ...]], timeout: float) -> dict[int, Any]:
        assert method == "of_ledger" and timeout == 5.0
        return {i: getattr(self.accounts[i], what)(*more) for i, (what, *more) in arguments.items() if i in self.accounts}


def test_silos_say_which_rounds_earlier_starts_of_the_run_charged(tmp_path: Path) -> None:
    """Another run's rounds in the same books do not count, nor does a silo that is away; a retry is a charge of the same round."""
    raw: dict[str, Any] = {
        "name": "t",
        "rounds": 9,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"sampling_rate": 0.25, "steps": 2, "expected_batch": 30},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5},
    }
    plan = plan_record(build_config(raw))
    charged = {"c0": [(0, 0), (1, 0)], "c1": [(1, 0), (1, 1), (4, 0)], "c2": [(6, 0)]}
    for name, rounds in charged.items():
        for job, times in (("other/1", [(9, 0)]), ("run/1", rounds)):
            with Account.open_silo(tmp_path / "books", name, plan, job) as account:
                assert all(account.authorize(*time, [name]).granted for time in times)
    with ExitStack() as opened:  # of the run's second start
        accounts = {i: opened.enter_context(Account.open_silo(tmp_path / "books", f"c{i}", plan, "run/2")) for i in range(3)}
        assert all(account.earlier_rounds == {round_ for round_, _ in charged[f"c{i}"]} for i, account in accounts.items())

        def found(*there: int) -> set[int]:
            pool = cast(Pool, Silos({i: accounts[i] for i in there}))
            return Books(SiloBooks(pool, COHORT[:3], "record", 5.0)).earlier_rounds()

        assert found(0, 1, 2) == {0, 1, 4, 6}
        assert found(0, 2) == {0, 1, 6}
        assert found() == set()
