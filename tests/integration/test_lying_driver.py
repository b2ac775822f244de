"""A driver that lies, with a valid certificate, against a real silo's process: refused there, with the reason, and in its log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from lyingdriver import NAME, LyingDriver, Ward, ward
from silopolicies import write_policy

from fedray.cli import cli
from fedray.clients.states import StateAddress
from fedray.privacy.mechanisms.central import Clipped
from fedray.silos.approvals import asked_sha256
from fedray.silos.counter import SiloRefused

#: Record privacy only, each update noised by the silo itself, no facts.
USUAL: dict[str, Any] = {
    "models": ["softmax"],
    "regimes": ["record"],
    "unmasked": "noised",
    "facts": [],
    "delta": 1e-3,
    "rounds_a_day": 1000,
}


@pytest.fixture(scope="module")
def silo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with ward(tmp_path_factory.mktemp("ward")) as found:
        yield found


@pytest.fixture(autouse=True)
def usual_policy(silo: Ward) -> None:
    write_policy(silo.home, **USUAL)


def opened(silo: Ward, job: str, **sections: Any) -> LyingDriver:
    driver = silo.driver(job, **sections)
    said, info = driver.open()
    assert said == "answer", info
    assert (info.silo.records, info.class_counts, info.pid) == (1, None, 0), "facts that the policy does not name"
    return driver


def refused(silo: Ward, answer: tuple[str, Any], *said: str) -> None:
    """The silo refuses to open a run, says why, and has it in its log."""
    assert answer[0] == "error", answer
    kind, text = answer[1]
    assert kind == "PolicyRefused"
    last = silo.logged("refused")[-1]["message"]
    for each in said:
        assert each in text
        assert each in last
    assert silo.alive


MORE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "model": ({"model": {"kind": "mlp"}}, ("model.kind: mlp", "policy.yaml, line 1 (models: softmax)")),
    "regime": (
        {"privacy": {"regime": "none"}, "training": {"lr": 0.1, "batch_size": 1, "steps": 1}},
        ("(regimes: record)", "(unmasked: noised)"),
    ),
    "noise": (
        {"privacy": {"regime": "record", "noise_multiplier": 0.2, "delta": 1e-4}},
        ("noise_multiplier: 0.2", "(noise_multiplier: at least 0.8)"),
    ),
    "epsilon": (
        {"rounds": 10, "training": {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 10, "steps": 99}},
        ("(epsilon_run: at most 8)",),
    ),
    "rounds": ({"rounds": 99}, ("(rounds: at most 10)",)),
    "code": (
        {"training": {"lr": 0.5, "sampling_rate": 0.1, "expected_batch": 10, "steps": 2, "engine": "python:os:system"}},
        ("python:os:system", "(code"),
    ),
    "seeded noise": (
        {"privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4, "insecure_seed": 1}},
        ("(void_claims: false)",),
    ),
    "weights by records": ({"algorithm": {"kind": "fedavg"}}, ("algorithm.weights", "(facts: none)")),
    "held-out records": (
        {"evaluation": {"federated": True, "metrics": ["accuracy"], "charged": {"noise_multiplier": 9.0}}},
        ("(facts: none)",),
    ),
}


@pytest.mark.parametrize("lie", MORE)
def test_a_driver_that_asks_for_more_than_the_policy(silo: Ward, lie: str) -> None:
    before = silo.charges
    sections, said = MORE[lie]
    refused(silo, silo.driver(f"more-{lie.replace(' ', '-')}/1", **sections).open(), *said)
    assert silo.charges == before


def test_a_driver_that_lies_about_its_terms(silo: Ward) -> None:
    """The plan is what the engine would have worked by; the config is what the policy was asked about."""
    driver = silo.driver("terms/1")
    plan = driver.terms.plan
    assert plan is not None
    for lie in (
        {"noise_multiplier": 1.0},
        {"steps": 50},
        {"clip": 1e6},
        {"expected_batch": 1.0},
        {"delta": 1e-3},
        {"participations": 1000},
    ):
        refused(silo, driver.open(plan=replace(plan, **lie)), f"plan.{next(iter(lie))}")
    refused(silo, driver.open(plan=None), "plan")
    other = driver.model_of(driver.config, seed=7)
    refused(silo, driver.open(model=other), "model")
    refused(silo, driver.open(exchange="0" * 64), "exchange")
    refused(silo, driver.open(job="escape\x1b[2J/1"), "job")
    assert driver.order("train_and_hand_over", driver.task, driver.weights, [driver.client])[0] == "gone", "nothing was opened"


def test_a_driver_that_lies_in_its_orders(silo: Ward) -> None:
    before = silo.charges
    driver = opened(silo, "orders/1")
    tasks: dict[str, Any] = {
        "round": {"round": 3},
        "stages": {"stages": (Clipped(1e-3, 0.0, False),)},
        "capacity": {"capacity": 1e6},
        "clients": {"clients": 2},
        "plan": {"plan": "0" * 64},
    }
    driver.train()  # from then on the capacity is known
    assert silo.charges == before + 1
    for field, lie in tasks.items():
        report, part = driver.train(task={"round": 1} | lie)
        assert (report.status, part.clients) == ("refused", [])
        assert field in report.error
        assert silo.logged("refused")[-1]["message"] in report.error
    clients: dict[str, Any] = {
        "steps": {"steps": 50},
        "epochs": {"epochs": 9},
        "index": {"index": 1},
        "factor": {"factor": 4096},
        "attempt": {"attempt": 1000},
        "version": {"version": 0},
        "state": {"state": StateAddress("../../identity/identity.pem", 0, 10, "0" * 64)},
    }
    for field, lie in clients.items():
        report, part = driver.train(task={"round": 1}, client=lie)
        assert (report.status, part.clients) == ("refused", []), field
        assert field in report.error
    said, found = driver.order("train_and_hand_over", replace(driver.task, round=1), driver.weights[1:], [driver.client])
    assert said == "answer" and "weights" in found[0][0].error
    said, found = driver.order("evaluate", driver.weights, [driver.client])
    assert (said, found) == ("answer", [])
    assert driver.order("commit", 0, 0, {"reservation": "0" * 64, "steps": 0})[0] == "error"
    assert driver.order("spent", 10**6)[0] == "error"
    assert silo.charges == before + 1, "whatever was refused cost nothing"
    assert silo.alive


def test_a_driver_that_replays(silo: Ward) -> None:
    before = silo.charges
    driver = opened(silo, "replay/1")
    number = "a" * 32
    first = driver.train(order=number)
    assert first[0].status == "done"
    with pytest.raises(SiloRefused, match="no order is worked on twice"):
        driver.train(order=number)
    report, _ = driver.train()
    assert (report.status, "was done or is over" in report.error) == ("refused", True)
    silo.restart()
    reopened = LyingDriver(driver._gateway, driver.config, "replay/1")
    assert reopened.open()[0] == "answer"
    report, _ = reopened.train()
    assert (report.status, "was done or is over" in report.error) == ("refused", True)
    assert reopened.train(task={"round": 1})[0].status == "done"
    assert silo.charges == before + 2


def test_a_driver_that_makes_the_sum_small(silo: Ward) -> None:
    """Fewer members than the policy wants, keys that nobody signs, and the silo as several members."""
    secagg = {"kind": "secagg", "fewest": 3, "identities": "/nowhere/identities.json", "key": "/nowhere/key"}
    write_policy(silo.home, **USUAL | {"unmasked": "never"})
    refused(silo, silo.driver("small/1", secure=secagg).open(), "cohort.min_clients: 3", "(cohort: at least 5)")
    refused(silo, silo.driver("small/2", secure={"kind": "secagg"}).open(), "secure.identities", "(unsigned_keys: false)")
    refused(silo, silo.driver("small/3").open(), "secure.kind: none", "(unmasked: never)")


def test_a_run_waits_for_a_person(silo: Ward) -> None:
    write_policy(silo.home, **USUAL | {"approval": True})
    driver = silo.driver("waits/1")
    digits = asked_sha256(driver.terms)[:12]
    refused(silo, driver.open(), "(approval: true)", f"fedray silo approve SITE.yaml {digits}")

    def approve(*arguments: str) -> str:
        found = CliRunner().invoke(cli, ["silo", "approve", str(silo.home / "site.yaml"), *arguments])
        assert found.exit_code == 0, found.output
        return found.output

    assert f"{digits}  waits  asked" in approve()
    assert "yes, said Dr. Weber" in approve(digits, "--who", "Dr. Weber")
    assert driver.open()[0] == "answer"
    assert driver.train()[0].status == "done"
    approve(digits, "--who", "Dr. Weber", "--no")
    report, _ = driver.train(task={"round": 1})
    assert report.status == "refused" and "no to terms" in report.error
    assert [line["who"] for line in silo.logged("approval")] == ["Dr. Weber", "Dr. Weber"]


def test_what_the_policy_allows_by_the_day_and_by_its_ledger_ends(silo: Ward) -> None:
    done = len(silo.logged("training"))
    write_policy(silo.home, **USUAL | {"rounds_a_day": done + 1})
    driver = opened(silo, "day/1")
    assert driver.train()[0].status == "done"
    said, decision = driver.order("authorize", 1, 0)
    assert said == "answer" and not decision.granted
    assert "(rounds_a_day" in decision.refused[NAME]
    assert "(rounds_a_day" in silo.logged("refused")[-1]["message"]
    write_policy(silo.home, **USUAL | {"epsilon_run": 0.2, "epsilon_total": 0.2})
    report, _ = driver.train(task={"round": 1})
    assert report.status == "refused" and "epsilon" in report.error
