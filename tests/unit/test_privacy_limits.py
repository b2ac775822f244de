"""Limits that lie with a ledger: what they refuse, before anything is charged, wherever the ledger is; and that they cannot be lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

from fedray.configfile import load_config
from fedray.errors import LedgerError, PrivacyRefusal
from fedray.planning.planner import make_plan, shortfalls
from fedray.planning.preparation import Prepared, prepare
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.clientplan import Plan
from fedray.privacy.ledger.chain import read
from fedray.privacy.ledger.location import records_path
from fedray.privacy.ledger.verification import verify
from fedray.privacy.limits import FILE, load_limits
from fedray.stores.object_path import Location, location

RECORD = ["data.partition={kind: iid, clients: 4}", "rounds=6", "privacy.delta=2e-4"]
CLIENT = ["data.partition={kind: iid, clients: 50}", "rounds=6", "algorithm.weights=uniform", "cohort={kind: poisson, fraction: 0.5}"]
NO_BUDGET = ["privacy.target_epsilon=null", "privacy.noise_multiplier=1.5"]


def of_clients(ledger: Location, delta: float = 1e-4) -> str:
    return f"privacy={{regime: client, noise_multiplier: 2.0, delta: {delta}, budget: 3.0, ledger: '{ledger}'}}"


def prepared(*overrides: str) -> Prepared:
    return prepare(load_config(ROOT / "configs" / "digits.yaml", overrides))


@pytest.fixture(params=["file", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    if request.param == "file":
        (tmp_path / "books").mkdir()
        yield tmp_path / "books"
        return
    import boto3
    from moto import mock_aws

    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="silo-books")
        yield location("s3://silo-books/ledgers?region=us-east-1")


def fix(folder: Location, text: str) -> None:
    if isinstance(folder, Path):
        (folder / FILE).write_text(text)
    else:
        import boto3

        boto3.client("s3", region_name="us-east-1").put_object(Bucket="silo-books", Key=f"ledgers/{FILE}", Body=text.encode())


def lift(folder: Location) -> None:
    if isinstance(folder, Path):
        (folder / FILE).unlink()
    else:
        import boto3

        boto3.client("s3", region_name="us-east-1").delete_object(Bucket="silo-books", Key=f"ledgers/{FILE}")


def plans(p: Prepared) -> dict[str, Plan]:
    if p.client_plan is not None:
        return dict.fromkeys(p.client_plan.subjects(p.names), p.client_plan)
    assert p.plans[0] is not None
    return dict.fromkeys(p.names, p.plans[0])


REFUSED = [
    (
        "epsilon: 4",
        RECORD,
        "privacy.limits.epsilon",
        r"privacy.budget: an epsilon of 8 is more than the total of 4 .*set privacy.budget=4 or",
    ),
    ("delta: 1.0e-4", RECORD, "privacy.limits.delta", r"privacy.delta: 0.0002 is more than the 0.0001 .*set privacy.delta=0.0001 or less"),
    ("units: [client]", RECORD, "privacy.limits.units", r"record protects one record, but .* only the units client"),
    ("regimes: [client, local]", RECORD, "privacy.limits.regimes", r"only the regimes client, local"),
    ("{}", [*RECORD, "privacy.insecure_seed=1"], "privacy.limits.void_claim", r"can be replayed, so the run's claim would be void"),
    (
        "epsilon: 8",
        [*RECORD, "privacy.unprotected=[class_counts]"],
        "privacy.limits.void_claim",
        r"privacy.unprotected: .* so the run's claim would be void",
    ),
    ("epsilon: 2.5", CLIENT, "privacy.limits.epsilon", r"privacy.budget: an epsilon of 3 is more than the total of 2.5"),
    ("regimes: [record]", CLIENT, "privacy.limits.regimes", r"privacy.regime: client protects one client"),
]


@pytest.mark.parametrize(("text", "overrides", "code", "words"), REFUSED)
def test_what_is_not_allowed_is_refused_before_anything_is_charged(
    folder: Location, text: str, overrides: list[str], code: str, words: str
) -> None:
    ledger = of_clients(folder) if overrides is CLIENT else f"privacy.ledger={folder}"
    p = prepared(*overrides, ledger)
    fix(folder, text)
    void = ["noise and sampling can be replayed"] if "insecure" in str(overrides) else ["privacy.unprotected: class_counts"]
    reasons = void if "void" in code else []
    for refused in (
        lambda: make_plan(p),
        lambda: shortfalls(p),
        lambda: Account.open_run(folder, plans(p), "run/1", lasting=True, void=reasons),
        lambda: Account.open_silo(folder, p.names[0], next(iter(plans(p).values())), "run/1", void=reasons),
    ):
        with pytest.raises(PrivacyRefusal, match=words) as caught:
            refused()
        assert caught.value.code == code
        assert FILE in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(LedgerError):  # there is no book yet, nor an entry of one
        verify(records_path(folder))


def test_what_is_allowed_is_charged_and_noted(folder: Location) -> None:
    p = prepared(*RECORD, f"privacy.ledger={folder}")
    fix(folder, "epsilon: 8.0\ndelta: 2.0e-4\nunits: [record]\nregimes: [record]\n")
    assert make_plan(p)["refusal"] is None
    for start in range(2):
        with Account.open_run(folder, plans(p), f"run/{start}", lasting=True) as account:
            assert account.authorize(start, 0, p.names).granted == p.names
    notes = [e.data["limits"] for e in read(records_path(folder)) if "limits" in e.data]
    assert notes == [{"epsilon": 8.0, "delta": 2.0e-4, "units": ["record"], "regimes": ["record"]}]


def test_a_run_without_a_budget_ends_at_the_limit(folder: Location) -> None:
    """And `fedray plan` says when; the plan that receipts name is the config's all the same."""
    p = prepared(*RECORD, *NO_BUDGET, f"privacy.ledger={folder}", "training.steps=2")
    assert make_plan(p)["refusal"] is None
    fix(folder, "epsilon: 4\n")
    (sentence,) = shortfalls(p)
    assert "allows no more, whatever the config says" in sentence and "raise privacy.budget" not in sentence
    assert " of 4 is spent by then" in sentence
    (row,) = make_plan(p)["lines"][0]["rows"]
    plan = plans(p)[p.names[0]]
    with Account.open_run(folder, plans(p), "run/1", lasting=True) as account:
        for number in range(row["rounds_affordable"]):
            assert account.authorize(number, 0, p.names[:1]).granted == p.names[:1]
        (refusal,) = account.authorize(9, 0, p.names[:1]).refused.values()
        figures = account.figures()[0]
    assert figures.exhausted and figures.budget == 4.0 and figures.epsilon <= 4.0 < bound({plan.event(): figures.charges + 1}, plan.delta)
    assert str(refusal).endswith(f"and {folder / FILE} allows no more, whatever the config says.")
    assert [e.data["plan"] for e in read(records_path(folder)) if e.kind == "reserve"] == [plan.sha256] * figures.charges


def test_nobody_is_told_to_raise_a_budget_that_is_the_limit(folder: Location) -> None:
    fix(folder, "epsilon: 4\n")
    p = prepared(*RECORD, f"privacy.ledger={folder}", "privacy.budget=4")
    (sentence,) = shortfalls(p)
    with Account.open_run(folder, plans(p), "run/1", lasting=True) as account:
        refusals = [str(r) for n in range(6) for r in account.authorize(n, 0, p.names[:1]).refused.values()]
    assert refusals
    for text in (sentence, *refusals):
        assert "allows no more, whatever the config says" in text and "raise privacy.budget" not in text


def test_limits_hold_over_all_runs(folder: Location) -> None:
    fix(folder, "epsilon: 8.0\n")
    p = prepared(*RECORD, f"privacy.ledger={folder}")
    for run in range(3):
        with Account.open_run(folder, plans(p), f"run-{run}/1", lasting=True) as account:
            granted = [n for n in range(6) if account.authorize(n, 0, p.names[:1]).granted]
            assert len(granted) == (6 if run == 0 else 0)
            assert account.figures()[0].epsilon <= 8.0


def test_limits_that_are_gone_are_missed(folder: Location) -> None:
    """A book that was held to limits is not charged without; other ones may take their place."""
    p = prepared(*RECORD, f"privacy.ledger={folder}")
    fix(folder, "epsilon: 8.0\n")
    Account.open_run(folder, plans(p), "run/1", lasting=True).close()
    lift(folder)
    for _ in range(2):  # the book is not left locked
        with pytest.raises(LedgerError, match=r"was held to limits, but the file limits.yaml beside it is missing"):
            Account.open_run(folder, plans(p), "run/2", lasting=True)
    fix(folder, "{}\n")
    Account.open_run(folder, plans(p), "run/3", lasting=True).close()
    assert verify(records_path(folder)).limits == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epsilom: 4", "epsilom: extra inputs are not permitted, but is 4"),
        ("epsilon: -1", "epsilon: input should be greater than 0"),
        ("epsilon: '4'", "epsilon: input should be a valid number"),
        ("delta: 1", "delta: input should be less than 1"),
        ("units: [patient]", "units.0: input should be 'record', 'person' or 'client'"),
        ("units: []", "units: list should have at least 1 item"),
        ("- epsilon", "it: input should be a valid dictionary"),
        ("epsilon: 4\nepsilon: 9", "stands twice"),
        ("epsilon: [", "not valid YAML"),
        ("\udcff", "it is not UTF-8 text"),
    ],
)
def test_limits_that_are_not_understood_allow_nothing(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LedgerError, match=words) as caught:
        load_limits(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / FILE}: ")


def test_an_unreadable_file_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(LedgerError, match="cannot be read"):
        load_limits(tmp_path)
    assert load_limits(tmp_path / "nowhere") is None
