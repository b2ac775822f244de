"""A run has one epsilon: the same number in its last row, its summary and its statement; where digits are cut it is rounded up."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_privacy_statement import CLIENTS, REGIMES, config

from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import FINAL_INTERVAL, bound
from fedray.privacy.clientplan import ClientPlan, plan_clients
from fedray.privacy.recordplan import plan_record
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown
from fedray.rounding import as_given, rounded_down, rounded_up
from fedray.rounds.round_metrics import GuaranteePlan, Guarantees


@given(st.floats(min_value=0.0, max_value=1e9, allow_nan=False), st.integers(1, 6), st.booleans())
def test_figures_in_words_are_on_the_safe_side(value: float, decimals: int, fixed: bool) -> None:
    up, down = rounded_up(value, decimals, fixed), rounded_down(value, decimals, fixed)
    assert float(down) <= value <= float(up)
    assert float(up) - float(down) <= 10.0**-decimals * (1 + 1e-6) + 1e-15 * value
    if fixed:
        assert len(up.partition(".")[2]) == decimals


def test_figures_in_words_at_the_edges() -> None:
    for value in (8.00000000000005, 1234.5642, 1e6 + 1e-9, 5e-324, 0.1 + 0.2, 1e300):
        assert float(rounded_up(value)) >= value >= float(rounded_down(value))
    assert [rounded_up(v) for v in (8.0, 0.0, None, "infinity", 100.0, 7.9)] == ["8", "0", "none", "infinity", "100", "7.9"]
    assert (rounded_up(7.99991, 3, fixed=True), rounded_up(7.5, 3, fixed=True)) == ("8.000", "7.500")
    assert (rounded_up(1.23001), rounded_down(1.23009)) == ("1.2301", "1.23")
    assert [rounded_up(v) for v in (math.inf, -math.inf, math.nan)] == ["infinity", "-infinity", "not a number"]
    assert [as_given(v) for v in (8.0, 2.5, 1e-5, None)] == ["8", "2.5", "1e-05", "none"]


@pytest.mark.parametrize("name", REGIMES)
def test_the_last_row_says_what_the_summary_says(name: str, tmp_path: Path) -> None:
    """To all digits, for every regime and both units; rows before it are on the coarse grid, and never below."""
    given_, lines, guarantees = config(name), [], []
    plans: list[Any] = [plan_record(given_)] if given_.privacy.record else []
    if given_.privacy.whole_clients:
        plans.append(plan_clients(given_, len(CLIENTS), 64, 30))
    groups = {}
    for plan in plans:
        subjects = plan.subjects(CLIENTS) if isinstance(plan, ClientPlan) else CLIENTS
        with Account.open_run(tmp_path, dict.fromkeys(subjects, plan), "run/1") as account:
            for number in range(4):
                account.authorize(number, 0, subjects[: 7 + number])
            groups[plan.unit] = account.groups()
            guarantees.append(Guarantee(plan.unit, [plan], account.groups(), account.figures()))
        lines.append(GuaranteePlan(plan.unit, [plan]))
    privacy = Guarantees(lines)
    last, before = privacy.metrics(groups, 4, 0, final=True), privacy.metrics(groups, 4, 0, final=False)
    statement = privacy_statement(given_, guarantees, None, 4)
    for prefix, summary in (("privacy", statement["summary"]), ("privacy/joint", statement["summary"].get("joint"))):
        for key in ("epsilon", "epsilon_client_median", "epsilon_rdp", "epsilon_unamplified", "epsilon_observers", "clients_exhausted"):
            assert last.get(f"{prefix}/{key}") == (summary or {}).get(key), (prefix, key)
        if summary:
            assert before[f"{prefix}/epsilon"] >= last[f"{prefix}/epsilon"] > 0
    figures = max(groups[plans[0].unit], key=lambda g: g.figures.epsilon).figures
    assert last["privacy/epsilon"] == min(
        figures.epsilon, bound(dict(figures.composition), figures.delta, FINAL_INTERVAL, plans[0].adjacency)
    )
    assert rounded_up(last["privacy/epsilon"]) in statement["summary"]["statement"]
    assert rounded_up(last["privacy/epsilon"]) in statement_markdown(statement)


def test_who_had_all_planned_rounds_is_not_exhausted(tmp_path: Path) -> None:
    """The budget is used up to the last round and nobody was left out of one; the summary counts those who were."""
    plan = plan_record(config("record", noise_multiplier=None, target_epsilon=2.0))
    with Account.open_run(tmp_path, dict.fromkeys(CLIENTS, plan), "run/1") as account:
        for number in range(4):
            assert len(account.authorize(number, 0, CLIENTS).granted) == len(CLIENTS)
        assert all(f.exhausted for f in account.figures())
        line = Guarantee("record", [plan], account.groups(), account.figures())
        assert privacy_statement(config("record"), [line], account.head, 4)["summary"]["clients_exhausted"] == 0
        assert privacy_statement(config("record"), [line], account.head, 4, left_out=3)["summary"]["clients_exhausted"] == 3


@pytest.mark.parametrize("name", REGIMES)
def test_durations_are_not_told_where_cohorts_are_secret(name: str) -> None:
    """Neither as metrics nor by the times of rows, which go to MLflow: those are told to the hour."""
    given_ = config(name)
    lines = [GuaranteePlan("record", [plan_record(given_)])] if given_.privacy.record else []
    lines += [GuaranteePlan("client", [plan_clients(given_, len(CLIENTS), 64, 30)])] if given_.privacy.whole_clients else []
    privacy, secret = Guarantees(lines), name in ("client-poisson", "client-fixed", "distributed", "joint")
    assert privacy.hides_cohorts is secret
    assert privacy.durations(round=2.0, train=1.0) == ({} if secret else {"time/round_s": 2.0, "time/train_s": 1.0})
    now = privacy.stamp()
    assert (now % 3600 == 0) if secret else abs(now - time.time()) < 60
    assert 0 <= time.time() - now < 7200


def test_a_run_without_privacy_tells_its_durations() -> None:
    assert Guarantees().durations(round=2.0) == {"time/round_s": 2.0}
