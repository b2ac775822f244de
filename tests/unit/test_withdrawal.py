"""Withdrawals: they count at once, also while a run holds the ledger's lock, and nothing is charged after them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from silofiles import silo_config

from fedray.cli import cli
from fedray.configfile import build_config
from fedray.errors import FedrayError, LedgerError
from fedray.privacy.account import Account
from fedray.privacy.accounting.events import Gaussian
from fedray.privacy.ledger.chain import Charge, Withdrawal, read
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path, records_path, subject_path
from fedray.privacy.ledger.notices import find_notices, notice_folder
from fedray.privacy.ledger.verification import verify
from fedray.privacy.ledger.withdrawal import LedgerWatch, books_in, enter, withdrawn_of
from fedray.privacy.recordplan import RecordPlan, plan_record
from fedray.queries.queryhost import QueryHost, QuerySite
from fedray.queryconfig import QueryConfig

STEPS = st.lists(st.tuples(st.sampled_from(["withdraw", "readmit"]), st.sampled_from(["a", "b"])), max_size=8)


def plan(folder: Path) -> RecordPlan:
    return plan_record(silo_config(folder))


def charge(subject: str, round_: int) -> Charge:
    return Charge(subject, round_, 0, Gaussian(1.0), "0" * 64, 1.0)


@settings(max_examples=40)
@given(STEPS, st.lists(st.booleans(), min_size=8, max_size=8), st.booleans())
def test_the_last_word_counts_and_nothing_is_charged_after_a_withdrawal(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]], charges: list[bool], locked: bool
) -> None:
    """Whatever is said in whatever order, with and without a writer that holds the lock: who reads and who writes agree."""
    folder = tmp_path_factory.mktemp("ledger")
    book, state, round_ = records_path(folder), set[str](), 0
    Ledger.open(book, "run/1").close()
    watch = LedgerWatch(lambda: [book])
    writer = Ledger.open(book, "run/2") if locked else None
    for (kind, subject), charged in zip(steps, charges, strict=False):
        if (subject in state) == (kind == "withdraw"):
            with pytest.raises(LedgerError):
                enter(kind, folder, subject, "why")
        else:
            (state.add if kind == "withdraw" else state.remove)(subject)
            assert all((found.entry is None) == (locked and found.book == book) for found in enter(kind, folder, subject, "why"))
        assert set(withdrawn_of(book)) == set(watch.now()) == state
        if charged and writer is not None:
            for name in ("a", "b"):
                round_ += 1
                if name in state:
                    with pytest.raises(LedgerError, match="has withdrawn its data"):
                        writer.reserve([charge(name, round_)])
                else:
                    writer.reserve([charge(name, round_)])
    if writer is not None:
        assert set(writer.withdrawn()) == state
        writer.close()
    with Ledger.open(book, "run/3") as after:
        assert set(after.withdrawn()) == state and not find_notices(book)
    assert set(verify(book).withdrawn) == state


def test_a_notice_is_entered_once_even_if_its_file_stays(tmp_path: Path) -> None:
    """A crash between the entry and the removal of the notice, and a readmission after it: the old notice does not come back."""
    book = subject_path(tmp_path, "a")
    with Ledger.open(book, "run/1", subject="a"):
        enter("withdraw", tmp_path, "a", "first")
        left = {path.name: path.read_bytes() for path in Path(str(notice_folder(book))).iterdir()}
    Ledger.open(book, "run/2", subject="a").close()
    enter("readmit", tmp_path, "a", "")
    folder = Path(str(notice_folder(book)))
    folder.mkdir(exist_ok=True)
    for name, data in left.items():
        (folder / name).write_bytes(data)
    assert not withdrawn_of(book)
    Ledger.open(book, "run/3", subject="a").close()
    assert not withdrawn_of(book) and [e.kind for e in read(book) if e.kind in ("withdraw", "readmit")] == ["withdraw", "readmit"]


def test_a_broken_notice_lets_nothing_be_charged(tmp_path: Path) -> None:
    book = subject_path(tmp_path, "a")
    with Ledger.open(book, "run/1", subject="a") as ledger:
        folder = Path(str(notice_folder(book)))
        folder.mkdir()
        (folder / "1.json").write_text('{"kind": "withdraw"')
        with pytest.raises(LedgerError, match="is no notice"):
            ledger.reserve([charge("a", 1)])


def test_an_account_refuses_who_has_withdrawn_while_it_holds_the_ledger(tmp_path: Path) -> None:
    p = plan(tmp_path)
    books = tmp_path / "books"
    with Account.open_run(books, {"a": p, "b": p}, "run/1", lasting=True) as account:
        assert set(account.authorize(0, 0, ["a", "b"]).granted) == {"a", "b"}
        enter("withdraw", books, "a", "consent revoked")
        decision = account.authorize(1, 0, ["a", "b"])
        assert decision.granted == ["b"] and isinstance(decision.refused["a"], Withdrawal)
        assert "consent revoked" in str(decision.refused["a"])
    assert [e.data["subject"] for e in read(records_path(books)) if e.kind == "reserve"] == ["a", "b", "b"]


def test_a_driver_s_new_ledger_knows_who_has_withdrawn_in_its_own(tmp_path: Path) -> None:
    """A client that trained without privacy, or nowhere, has withdrawn before the federation has a ledger in that folder."""
    (found,) = enter("withdraw", tmp_path, "a", "")
    assert found.book == subject_path(tmp_path, "a")
    p = plan(tmp_path)
    for start in (1, 2):
        with Account.open_run(tmp_path, {"a": p, "b": p}, f"run/{start}", lasting=True) as account:
            assert list(account.check(["a", "b"]).refused) == ["a"]
    assert {found.book for found in enter("readmit", tmp_path, "a", "")} == {records_path(tmp_path), subject_path(tmp_path, "a")}
    with Account.open_run(tmp_path, {"a": p, "b": p}, "run/3", lasting=True) as account:
        assert not account.check(["a", "b"]).refused
    assert sum(e.kind == "withdraw" for e in read(records_path(tmp_path))) == 1
    assert clients_path(tmp_path) not in books_in(tmp_path)


def test_the_commands_say_what_they_wrote(tmp_path: Path) -> None:
    run = CliRunner().invoke
    said = run(cli, ["ledger", "withdraw", str(tmp_path / "led"), "a", "--reason", "consent revoked"])
    assert said.exit_code == 0 and "client 'a' has withdrawn its data (entry 1 of a new ledger; this client had none here)" in said.output
    astray = run(cli, ["ledger", "withdraw", str(tmp_path / "there is" / "none"), "a"])
    assert astray.exit_code == 1 and "the directory above it must be there" in astray.output and not (tmp_path / "there is").exists()
    again = run(cli, ["ledger", "withdraw", str(tmp_path / "led"), "a"])
    assert again.exit_code == 1 and "has withdrawn already" in again.output
    assert "consent revoked" in run(cli, ["ledger", "show", str(tmp_path / "led")]).output
    assert run(cli, ["ledger", "verify", str(tmp_path / "led")]).exit_code == 0
    assert "is readmitted" in run(cli, ["ledger", "readmit", str(tmp_path / "led"), "a"]).output
    assert "consent revoked" not in run(cli, ["ledger", "show", str(tmp_path / "led")]).output


def test_a_silo_withdraws_by_its_site_file(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(
        "client: hospital-a\ngateway: federation.example.org:7443\nidentity: identity\nstate: state\npolicy: policy.yaml\n"
        "data: {source: 'csv:heart.csv', label: target}\n"
    )
    run = CliRunner().invoke
    assert run(cli, ["silo", "withdraw", str(site), "--reason", "contract ended"]).exit_code == 0
    assert withdrawn_of(subject_path(tmp_path / "state" / "ledger", "hospital-a"))["hospital-a"].reason == "contract ended"
    assert run(cli, ["silo", "readmit", str(site)]).exit_code == 0
    assert not withdrawn_of(subject_path(tmp_path / "state" / "ledger", "hospital-a"))


def test_a_query_without_privacy_is_not_answered_after_a_withdrawal(tmp_path: Path) -> None:
    """Neither when it begins nor when the client withdraws between the beginning and the answer."""
    rows = [f"{n % 7},{n % 2}" for n in range(20)]
    (tmp_path / "silos").mkdir()
    (tmp_path / "silos" / "north.csv").write_text("\n".join(["age,y", *rows]) + "\n")
    raw = {
        "name": "asks",
        "data": {"source": f"csv:{tmp_path / 'silos'}", "label": "y", "classes": 2, "holdout": {"fraction": 0.0}},
        "clients": {"placement": "dedicated"},
        "privacy": {"regime": "none", "ledger": str(tmp_path / "books")},
        "queries": {"classes": {"kind": "histogram", "column": "label"}},
    }
    host = QueryHost(QuerySite(build_config(raw, QueryConfig), (0, 1), client="north", ledger=str(tmp_path / "books"), job="q/1"))
    host.ready()
    assert host.open(None, True) == "" and host.answer("north", None).sums["classes"]
    enter("withdraw", tmp_path / "books", "north", "contract ended")
    assert "contract ended" in host.open(None, True)
    with pytest.raises(FedrayError, match="has withdrawn its data"):
        host.answer("north", None)
