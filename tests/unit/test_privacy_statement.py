"""What a privacy statement must say, for every regime; and what of it may be published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fedray.config import Config
from fedray.configfile import build_config
from fedray.privacy.account import Account
from fedray.privacy.clientplan import ClientPlan, plan_clients
from fedray.privacy.recordplan import plan_record
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown
from fedray.privacy.statement_text import meaning
from fedray.rounding import rounded_up

POISSON = {"kind": "poisson", "fraction": 0.2}
RECORD = {"noise_multiplier": 1.1, "delta": 1e-3}
WHOLE = {"noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.5}
REGIMES: dict[str, dict[str, Any]] = {
    "record": {"privacy": {"regime": "record", **RECORD}},
    "client-poisson": {"privacy": {"regime": "client", **WHOLE}, "cohort": POISSON},
    "client-fixed": {"privacy": {"regime": "client", **WHOLE}, "cohort": {"kind": "fixed", "size": 10}},
    "client-tree": {"privacy": {"regime": "client", "mechanism": {"kind": "tree"}, **WHOLE}, "cohort": {"kind": "cyclic", "size": 10}},
    "local": {"privacy": {"regime": "local", **WHOLE}, "cohort": POISSON},
    "distributed": {"privacy": {"regime": "distributed", **WHOLE}, "cohort": {**POISSON, "min_clients": 4}},
    "joint": {"privacy": {"regime": ["record", "client"], **RECORD, "joint": WHOLE}, "cohort": POISSON},
}
CLIENTS = [f"c{i}" for i in range(50)]


def config(name: str, **privacy: Any) -> Config:
    sections = REGIMES[name]
    training = {"sampling_rate": 0.25, "steps": 2, "expected_batch": 30}
    raw = {"name": "t", "rounds": 4, "data": {"source": "sklearn:digits"}, "model": {"kind": "softmax"}, "training": training}
    return build_config(
        {**raw, **sections, "privacy": {**sections["privacy"], **privacy}, "algorithm": {"kind": "fedavg", "weights": "uniform"}}
    )


@pytest.fixture
def stated(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    made = count()

    def make(name: str, **privacy: Any) -> dict[str, Any]:
        given, lines, heads = config(name, **privacy), [], {}
        folder = tmp_path / f"{next(made)}"
        plans: list[Any] = [plan_record(given)] if given.privacy.record else []
        if given.privacy.whole_clients:
            plans.append(plan_clients(given, len(CLIENTS), 64, 30))
        for plan in plans:
            subjects = plan.subjects(CLIENTS) if isinstance(plan, ClientPlan) else CLIENTS
            with Account.open_run(folder, dict.fromkeys(subjects, plan), "run/1") as account:
                account.authorize(0, 0, subjects[:7])
                lines.append(Guarantee(plan.unit, [plan], account.groups(), account.figures()))
                heads[plan.unit + "s"] = account.head
        return privacy_statement(given, lines, next(iter(heads.values())) if len(heads) == 1 else heads, 1)

    return make


@pytest.mark.parametrize("name", REGIMES)
def test_every_regime_says_all_that_a_reader_must_know(name: str, stated: Callable[..., dict[str, Any]]) -> None:
    statement = stated(name)
    assert json.loads(json.dumps(statement, allow_nan=False)) == statement
    for line in (statement, *statement["joint"]):
        guarantee, accounting, mechanism = line["guarantee"], line["accounting"], line["mechanism"]
        for key in (
            "definition",
            "setting",
            "unit",
            "adjacency",
            "statement",
            "meaning",
            "against",
            "trust",
            "persons",
            "released",
            "accesses",
        ):
            assert len(guarantee[key]) > 10, key
        assert len(guarantee["not_covered"]) >= 5
        for key in ("headline", "library", "composition", "rounding"):
            assert accounting[key]
        for assumption in accounting["assumptions"]:
            assert set(assumption) == {"assumption", "holds", "because"}
        for key in ("name", "sampling", "denominator", "rng", "client_sampling", "enforced"):
            assert mechanism[key]
        (plan,) = mechanism["plans"]
        assert {"delta", "clip", "noise_multiplier", "sha256", "planned_epsilon"} <= set(plan)
        assert {"epsilon", "epsilon_rdp", "delta", "unit", "adjacency", "regime", "accountant_version", "clients"} <= set(line["summary"])
        assert rounded_up(line["summary"]["epsilon"]) in guarantee["statement"]
    assert set(statement["exposure"]) == {"data", "access", "side_channels"}
    assert set(statement["implementation"]) == {"code", "checked", "not_checked"}
    assert "Not accounted for" in statement["tuning"]
    assert {"python", "fedray", "dp-accounting", "torch"} <= set(statement["versions"])
    text = statement_markdown(statement)
    for phrase in ("Assumptions", "Not covered", "Side channel", "Choice of settings", "Rounding", statement["summary"]["statement"][:60]):
        assert phrase in text
    assert "void" not in text


def assumption(line: dict[str, Any], text: str) -> dict[str, Any]:
    return next(a for a in line["accounting"]["assumptions"] if text in a["assumption"])


def test_whether_batches_really_are_poisson_is_said(stated: Callable[..., dict[str, Any]]) -> None:
    assert assumption(stated("record"), "Poisson")["holds"]
    assert not assumption(stated("record", insecure_seed=1), "Poisson")["holds"]


def test_secret_cohorts_are_assumed_only_where_the_headline_needs_them(stated: Callable[..., dict[str, Any]]) -> None:
    assert "secret" in assumption(stated("client-poisson"), "cohorts are Poisson")["assumption"]
    for name in ("client-tree", "local"):
        assert not any("secret" in a["assumption"] for a in stated(name)["accounting"]["assumptions"])
        assert "secret" not in stated(name)["mechanism"]["sampling"]
    assert assumption(stated("client-tree"), "takes part at most 1 time")["holds"]


def test_without_a_secure_sum_distributed_noise_says_so(stated: Callable[..., dict[str, Any]]) -> None:
    found = assumption(stated("distributed"), "only sums")
    assert not found["holds"]
    assert "no secure sum was made" in found["because"]
    line = stated("distributed")["guarantee"]
    assert "not the driver" in line["against"]
    assert "trusted with single updates" in line["trust"]


def test_only_checks_that_ran_are_said_to_have_been_made(stated: Callable[..., dict[str, Any]]) -> None:
    """The test of sensitivity before training is one of local steps."""
    checked = {name: "sensitivity before training" in stated(name)["implementation"]["checked"] for name in REGIMES}
    assert {name for name, said in checked.items() if said} == {"record", "joint"}


def test_a_book_of_each_unit_has_a_scope_of_its_own(stated: Callable[..., dict[str, Any]]) -> None:
    assert stated("joint")["ledger"]["scope"] == "this run alone"
    found = stated("joint", ledger="books")
    assert found["ledger"]["scope"] == "for clients this run alone; for records all runs that were charged to the same ledger"
    assert "Not accounted for" in found["tuning"]


def test_adjacency_and_the_two_kinds_of_arithmetic(stated: Callable[..., dict[str, Any]]) -> None:
    assert stated("client-fixed")["guarantee"]["adjacency"].startswith("replace-one")
    assert stated("client-poisson")["guarantee"]["adjacency"].startswith("zero-out")
    assert assumption(stated("client-poisson"), "arithmetic")["holds"]
    assert not assumption(stated("local"), "arithmetic")["holds"]


def test_a_lasting_ledger_pays_for_tuning(stated: Callable[..., dict[str, Any]]) -> None:
    assert "are paid for" in stated("record", ledger="books")["tuning"]


def test_two_guarantees_have_two_figures_and_one_sentence_each(stated: Callable[..., dict[str, Any]]) -> None:
    statement = stated("joint")
    assert [statement["summary"]["unit"], statement["summary"]["joint"]["unit"]] == ["record", "client"]
    assert {row["unit"] for row in statement["clients"]} == {"record", "client"}
    assert statement["summary"]["statement"].count("Training was (") == 2
    assert "Second guarantee" in statement_markdown(statement)


@pytest.mark.parametrize(
    ("name", "reveals"), [("record", False), ("client-poisson", False), ("local", False), ("distributed", True), ("joint", True)]
)
def test_who_was_charged_is_not_listed_where_cohorts_must_stay_secret(
    name: str, reveals: bool, stated: Callable[..., dict[str, Any]]
) -> None:
    statement = stated(name)
    assert statement["reveals_cohorts"] is reveals
    assert ("| c3 |" in statement_markdown(statement)) is (name in ("record", "local"))


@pytest.mark.parametrize(
    ("epsilon", "delta", "percent"), [(0.0, 0.0, "50 %"), (1.0, 1e-5, "73.11 %"), (math.log(3), 0.0, "75 %"), (math.inf, 0.1, "100 %")]
)
def test_the_meaning_bounds_a_guess(epsilon: float, delta: float, percent: str) -> None:
    assert f"with probability at most {percent} (" in meaning("record", "zero_out", epsilon, delta, "x")


@pytest.mark.parametrize("name", ["joint", "record"])
def test_mlflow_gets_no_books_or_tables_that_tell_cohorts(name: str, stated: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from fedray.tracking.artifacts import stage
    from fedray.tracking.journal import State

    run, secret = tmp_path / "run", name == "joint"
    (run / "ledger").mkdir(parents=True)
    (run / "ledger" / "records.jsonl").write_text("{}\n")
    (run / "privacy_statement.json").write_text(json.dumps(stated(name)))
    staged = stage(run, State("sqlite:///x", "e", "1", "r", "n"), None)
    try:
        sent = json.loads((staged.files / "privacy_statement.json").read_text())
        assert bool(sent["clients"]) is not secret
        assert (staged.files / "ledger").exists() is not secret
        assert (staged.files / "clients" / "clients.json").exists() is not secret
        assert sent["summary"]["epsilon"] > 0
    finally:
        staged.remove()
