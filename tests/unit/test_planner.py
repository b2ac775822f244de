"""The planner: the same figures as the accounts, who would be refused and when, and settings that then fit."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from accounts import epsilons, left
from paths import ROOT

from fedray.configfile import load_config
from fedray.errors import LedgerError
from fedray.planning.forecast import Participation
from fedray.planning.planner import make_plan, shortfalls
from fedray.planning.planner_text import plan_text
from fedray.planning.preparation import Prepared, prepare
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import records_path

SMALL = ["data.partition={kind: iid, clients: 4}", "rounds=6", "privacy.delta=2e-4"]
GIVEN = ["privacy.target_epsilon=null", "privacy.noise_multiplier=1.5"]
CLIENTS = ["data.partition={kind: iid, clients: 50}", "algorithm.weights=uniform", "rounds=6"]


def prepared(*overrides: str) -> Prepared:
    return prepare(load_config(ROOT / "configs" / "digits.yaml", overrides))


def only_line(plan: dict[str, Any]) -> dict[str, Any]:
    (line,) = plan["lines"]
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    return line  # type: ignore[no-any-return]


def test_a_plan_says_what_the_accounts_will_say(tmp_path: Path) -> None:
    p = prepared(*SMALL)
    line = only_line(make_plan(p))
    record = p.plans[0]
    assert record is not None
    (row,) = line["rows"]
    assert (row["clients"], len(row["records"]), row["verdict"]) == (4, 4, "fits")
    assert sum(row["records"]) == 1438 - 1438 % 4 or sum(row["records"]) == 1438
    with Account.open_run(tmp_path, dict.fromkeys(p.names, record), "run/1") as account:
        assert row["rounds_affordable"] == left(account, p.names[0]) == 6
        for r in range(6):
            assert account.authorize(r, 0, p.names).granted == p.names
        assert epsilons(account) == dict.fromkeys(p.names, row["epsilon"])
    assert line["epsilon"] == line["epsilon_person"] == row["epsilon"] == record.planned_epsilon
    assert line["curves"][0]["epsilon"][-1] == row["epsilon"]
    assert line["curves"][0]["epsilon"] == sorted(line["curves"][0]["epsilon"])
    levers = {x["change"]: x["epsilon"] for x in line["levers"]}
    assert levers["noise x 1.25"] < row["epsilon"] < levers["noise x 0.8"]
    assert levers["rounds halved"] < row["epsilon"] < levers["rounds doubled"] == levers["steps doubled"]
    assert levers["sampling rate halved"] < row["epsilon"] < levers["sampling rate doubled"]
    for each in line["noise_for_epsilon"]:
        spent = bound({record.event(each["noise_multiplier"]): 6}, record.delta)
        assert 0.99 * each["epsilon"] < spent <= each["epsilon"]


def test_a_budget_that_does_not_last_is_told_with_settings_that_fit() -> None:
    short = [*SMALL, *GIVEN, "training.steps=2", "privacy.budget=4"]
    p = prepared(*short)
    (sentence,) = shortfalls(p)
    plan = make_plan(p, curves=False)
    assert plan["refusal"] == sentence
    (row,) = only_line(plan)["rows"]
    assert row["exceeded_in_round"] == row["rounds_affordable"] + 1 < 6
    assert sentence.startswith(
        f"client-0000 and 3 others: would reach the privacy budget in round {row['exceeded_in_round']} of 6: epsilon "
    )
    ways = re.search(r"it would fit with (.*), or raise privacy.budget\.$", sentence)
    assert ways is not None
    settings = ways[1].split(" or ")
    assert [s.partition("=")[0] for s in settings] == ["privacy.noise_multiplier", "training.steps", "rounds"]
    for setting in settings:
        assert shortfalls(prepared(*short, setting)) == [], setting


def test_what_a_lasting_ledger_holds_counts(tmp_path: Path) -> None:
    lasting = [*SMALL, f"privacy.ledger={tmp_path / 'books'}", "privacy.budget=10"]
    p = prepared(*lasting)
    assert "nothing is taken as spent" in make_plan(p, curves=False)["notes"][0]
    record = p.plans[0]
    assert record is not None
    with Account.open_run(tmp_path / "books", dict.fromkeys(p.names, record), "before/1", lasting=True) as account:
        for r in range(4):
            account.authorize(r, 0, p.names[:1])
        spent = epsilons(account)[p.names[0]]
        rows = only_line(make_plan(p, curves=False))["rows"]  # read while another run holds the lock
        assert [(r["names"], r["charges_before"]) for r in rows] == [(p.names[:1], 4), (p.names[1:], 0)]
        assert rows[0]["epsilon_before"] == spent
        assert rows[0]["rounds_affordable"] == left(account, p.names[0])
        assert (rows[0]["verdict"], rows[1]["verdict"]) == ("exceeds", "fits")
    (sentence,) = shortfalls(p)
    assert sentence.startswith("client-0000: would reach the privacy budget in round ")
    setting = re.search(r"it would fit with (privacy.target_epsilon=\S+) (privacy.budget=10), or raise", sentence)
    assert setting is not None
    assert shortfalls(prepared(*lasting, *setting.groups())) == []


def test_a_torn_book_can_be_planned_on_and_a_broken_one_cannot(tmp_path: Path) -> None:
    p = prepared(*SMALL, f"privacy.ledger={tmp_path}")
    record = p.plans[0]
    assert record is not None
    with Account.open_run(tmp_path, dict.fromkeys(p.names, record), "before/1", lasting=True) as account:
        account.authorize(0, 0, p.names)
    book = records_path(tmp_path)
    assert isinstance(book, Path)
    whole = book.read_bytes()
    book.write_bytes(whole + b'{"half')
    plan = make_plan(p, curves=False)
    assert "torn" in plan["notes"][0]
    assert only_line(plan)["rows"][0]["charges_before"] == 1
    book.write_bytes(whole.replace(b'"round":0', b'"round":1', 1))
    with pytest.raises(LedgerError, match="line was changed"):
        make_plan(p)


def test_a_book_of_another_unit_is_refused(tmp_path: Path) -> None:
    p = prepared(*SMALL, f"privacy.ledger={tmp_path}")
    record = p.plans[0]
    assert record is not None
    with Ledger.open(records_path(tmp_path), "x/1", unit="record", adjacency="replace_one") as ledger:
        from fedray.privacy.ledger.chain import Charge

        ledger.reserve([Charge("client-0000", 0, 0, record.event(), "p", 1.0, "record", "replace_one")])
    with pytest.raises(
        LedgerError, match="have no common epsilon, so this run could not use it; set privacy.regime, privacy.person and cohort"
    ):
        make_plan(p)


@pytest.mark.parametrize(
    ("law", "expected", "worst"),
    [
        (Participation(10), 10, 10),
        (Participation(10, most=4), 4, 4),
        (Participation(10, every=4), 3, 3),
        (Participation(10, 0.3), 3, 10),
        (Participation(10, 0.0), 0, 0),
        (Participation(2, 0.5, most=1), 0.75, 1),
    ],
)
def test_how_often_a_client_is_charged(law: Participation, expected: float, worst: int) -> None:
    assert law.expected == pytest.approx(expected)
    assert law.worst == worst
    assert law.above(worst) == 0.0
    assert law.needed(1) <= worst


def test_needed_charges_are_those_that_chance_all_but_never_exceeds() -> None:
    law = Participation(1000, 0.01)
    needed = law.needed(100)
    assert 10 < needed < 40
    assert law.above(needed) * 100 <= 0.01 < law.above(needed - 1) * 100
    assert law.above(9) == pytest.approx(1 - sum(math.comb(1000, k) * 0.01**k * 0.99 ** (1000 - k) for k in range(10)))


def test_cohorts_by_chance_have_an_expected_and_a_worst_case() -> None:
    p = prepared(*SMALL, *GIVEN, "privacy.budget=100", "cohort={kind: poisson, fraction: 0.5}")
    (row,) = only_line(make_plan(p))["rows"]
    assert row["participations"] == {"expected": pytest.approx(3.0), "worst": 6}
    assert row["epsilon_expected"] < row["epsilon"]
    text = plan_text(make_plan(p, curves=False))
    assert "3.0 (at most 6)" in text


def test_whole_clients_have_a_population_and_three_figures() -> None:
    p = prepared(
        *CLIENTS, "privacy={regime: client, noise_multiplier: 1.5, budget: 3, delta: 1.0e-3}", "cohort={kind: poisson, fraction: 0.2}"
    )
    plan = make_plan(p)
    line = only_line(plan)
    assert (line["unit"], line["population"]["clients"], line["population"]["cohort"]) == ("client", 50, 10.0)
    assert line["rows"][0]["names"] == ["clients"]
    assert line["epsilon"] < line["epsilon_unamplified"]
    assert line["noise"]["std_per_value"] == pytest.approx(1.5 / 10)
    assert line["noise"]["norm"] == pytest.approx(1.5 / 10 * math.sqrt(650))
    levers = {x["change"]: x["epsilon"] for x in line["levers"]}
    assert levers["cohort halved"] < line["epsilon"] < levers["cohort doubled"]
    text = plan_text(plan)
    assert "against whoever knows the cohorts" in text
    assert "all clients" in text


def test_trees_are_charged_once_for_their_rounds() -> None:
    p = prepared(
        *CLIENTS,
        "privacy={regime: client, noise_multiplier: 1.0, budget: 3, delta: 1.0e-3, mechanism: {kind: tree}}",
        "cohort={kind: cyclic, size: 5}",
    )
    (row,) = only_line(make_plan(p))["rows"]
    assert row["participations"] == {"expected": 1.0, "worst": 1}
    (sentence,) = shortfalls(p)
    noise = re.search(r"(privacy.noise_multiplier=[\d.]+)", sentence)
    assert noise is not None
    assert "all clients: would reach the privacy budget in round 1 of 6" in sentence


def test_silos_that_only_see_their_own_data_are_planned_by_name(tmp_path: Path) -> None:
    for silo in ("north", "south"):
        (tmp_path / f"{silo}.csv").write_text("a,b,target\n1,2,0\n3,4,1\n")
    p = prepare(
        load_config(
            ROOT / "configs" / "heart-private.yaml",
            [
                f"data={{source: 'csv:{tmp_path}', label: target, label_threshold: 0}}",
                f"privacy.ledger={tmp_path / 'books'}",
                "clients.groups=[{name: slow, clients: [south], training: {steps: 2}}]",
            ],
        )
    )
    plan = make_plan(p)
    rows = only_line(plan)["rows"]
    assert [(r["names"], r["records"], r["steps"]) for r in rows] == [(["south"], None, 2), (["north"], None, 5)]
    assert plan["memory"] is None
    assert any("works on their names alone" in note for note in plan["notes"])
    assert plan["actors"]["number"] == 2
    assert "known when the silos" in plan_text(plan)


def test_a_run_without_privacy_has_a_plan_too() -> None:
    plan = make_plan(prepared("privacy={regime: none}"))
    assert plan["lines"] == [] and plan["refusal"] is None
    assert plan["memory"]["parameters"] == 650
    assert "nothing is protected" in plan_text(plan)


def test_single_updates_are_planned_as_such() -> None:
    sections = ("privacy={regime: none}", "cohort={kind: fixed, size: 6}")
    mean, median = (make_plan(prepared(*sections, f"aggregation.kind={kind}")) for kind in ("mean", "median"))
    assert median["traffic"]["up_per_round"] == 6 * median["memory"]["model"]
    assert mean["traffic"]["up_per_round"] == 2 * mean["traffic"]["parts"] * mean["memory"]["model"]
    assert "the driver combines 6 updates a round" in plan_text(median)
    assert "the driver adds up" in plan_text(mean)
    krum = make_plan(prepared(*sections, "aggregation={kind: krum}"))
    assert krum["memory"]["driver"] == median["memory"]["driver"] + 2 * 8 * krum["traffic"]["parts"] ** 2
    clipping = make_plan(prepared(*sections, "aggregation={kind: centered_clipping, radius: 1.0}"))
    assert clipping["memory"]["checkpoint"] == median["memory"]["checkpoint"] + median["memory"]["model"]


def test_the_sum_of_a_large_model_lies_once_a_node_where_nobody_is_charged_for_a_second_try() -> None:
    large = ("model={kind: mlp, hidden: [9000, 1000]}", "privacy={regime: none}")
    plans = [make_plan(prepared(*large, *more))["memory"] for more in ((), ("cohort.deadline=60",), ("clients.node_sums=false",))]
    assert [plan["sum_lies"] for plan in plans] == ["once a node, shared", "in each actor", "in each actor"]
    assert plans[0]["sum"] == 2 * plans[0]["model"] > 2**26
    assert plans[1]["actor"] == plans[0]["actor"] + plans[0]["sum"]
    assert make_plan(prepared("privacy={regime: none}"))["memory"]["sum_lies"] == "in each actor"
    assert make_plan(prepared("model={kind: mlp, hidden: [9000, 1000]}", *SMALL), curves=False)["memory"]["sum_lies"] == "in each actor"


def test_many_clients_are_shown_in_groups() -> None:
    plan = make_plan(prepared(*SMALL), curves=False)
    few, grouped = plan_text(plan, clients=4), plan_text(plan)
    assert few.count("fits") == 1 + len(set(only_line(plan)["rows"][0]["records"]))  # the verdict, and a row for each number of records
    assert "client-0000 and 3 more" in grouped


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_plan_fits_the_terminal_and_begins_with_its_verdict(width: int) -> None:
    text = plan_text(make_plan(prepared(*SMALL, *GIVEN, "rounds=2000", "privacy.budget=2"), curves=False), width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("digits: DOES NOT FIT the budget: epsilon")
    assert "exceeds in round" in " ".join(text.split())
    (head,) = [n for n, line in enumerate(lines) if line.split() == ["what", "if", "epsilon", "for", "epsilon", "noise"]]
    assert lines[head + 1].split()[:3] == ["noise", "x", "1.25"]
