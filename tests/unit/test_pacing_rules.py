"""What a schedule is refused with: one sentence each, and a code where privacy is the reason."""

from __future__ import annotations

from typing import Any

import pytest

from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only
from fedray.planning.planner import make_plan
from fedray.planning.preparation import prepare
from fedray.rounds.pacing import FedBuff, Schedule

HERE = f"python:{__name__}:"
FEDBUFF: dict[str, Any] = {"kind": "fedbuff", "buffer": 2, "concurrency": 3, "arrival": "simulated"}
SEMI: dict[str, Any] = {"kind": "semi_synchronous", "over": 1.5, "arrival": "simulated"}
FIXED = {"kind": "fixed", "size": 4}
STEPS = {"batch_size": 8, "steps": 2}
UNIFORM = {"kind": "fedavg", "weights": "uniform"}
RAW: dict[str, Any] = {
    "name": "t",
    "rounds": 2,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}},
    "model": {"kind": "softmax"},
    "training": {"batch_size": 8, "epochs": 1},
}


class Constant(FedBuff):
    def factor(self, staleness: int) -> int:
        return 256


class Idle(Schedule):
    carries = True


@pytest.mark.parametrize(
    "sections",
    [
        {"pacing": {"kind": "synchronous"}},
        {"pacing": {"kind": "synchronous", "arrival": "simulated", "spread": 3.0}},
        {"pacing": SEMI, "cohort": FIXED},
        {"pacing": SEMI, "cohort": {"kind": "fixed", "fraction": 0.5}},
        {"pacing": FEDBUFF},
        {"pacing": {**FEDBUFF, "kind": f"{HERE}Constant"}},
    ],
)
def test_what_goes_together_is_accepted(sections: dict[str, Any]) -> None:
    prepare(build_config({**RAW, **sections}))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"pacing": {"kind": "fedbuf"}}, r"pacing.kind: 'fedbuf' is not known.*Did you mean 'fedbuff'"),
        ({"pacing": {"kind": "fedbuff", "buffer": 2}}, r"pacing.concurrency: FedBuff needs it"),
        ({"pacing": {**FEDBUFF, "foo": 1}}, r"pacing.foo: unknown argument of FedBuff"),
        ({"pacing": {**FEDBUFF, "buffer": 0}}, r"pacing.buffer: should be at least 1, but is 0"),
        ({"pacing": {**FEDBUFF, "buffer": 7}}, r"pacing: 7 clients .* more than the 6 there are"),
        ({"pacing": {"kind": "synchronous", "spread": 2.0}}, r"pacing.*spread: has no effect on real arrivals"),
        ({"pacing": FEDBUFF, "cohort": FIXED}, r"cohort.kind: 'fixed' draws a cohort.*pacing.concurrency"),
        ({"pacing": FEDBUFF, "cohort": {"deadline": 3.0}}, r"cohort.deadline: there is no round.*most_staleness"),
        ({"pacing": FEDBUFF, "cohort": {"min_clients": 3}}, r"cohort.min_clients: 3 updates cannot come from a pacing.buffer of 2"),
        ({"pacing": FEDBUFF, "algorithm": {"kind": "scaffold"}}, r"algorithm.kind: the clients of 'scaffold'.*use fedavg or fedprox"),
        ({"pacing": FEDBUFF, "algorithm": {"kind": "fednova"}}, r"algorithm.kind: the clients of 'fednova'.*use fedavg or fedprox"),
        ({"pacing": SEMI}, r"cohort.kind: a semi-synchronous round.*use fixed"),
        ({"pacing": {**SEMI, "over": 1.0}, "cohort": FIXED}, r"pacing.over: should be above 1"),
        ({"pacing": {**SEMI, "over": 2.0}, "cohort": FIXED}, r"cohort.size: for 4 clients that count 8 are asked"),
        ({"pacing": {"kind": "python:os:getpid"}}, r"pacing.kind: 'python:os:getpid' made a int.*docs/schedules.md"),
        ({"pacing": {"kind": f"{HERE}Idle", "arrival": "simulated"}}, r"pacing.kind: with 'python:.*Idle' no client would train"),
    ],
)
def test_what_does_not_go_together_is_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare(build_config({**RAW, **sections}))


@pytest.mark.parametrize(
    ("code", "sections"),
    [
        ("client.asynchronous", {"pacing": FEDBUFF, "privacy": {"regime": "client"}}),
        ("distributed.asynchronous", {"pacing": FEDBUFF, "privacy": {"regime": "distributed"}, "cohort": {"min_clients": 2}}),
        ("client.over_selection", {"pacing": SEMI, "privacy": {"regime": "client"}, "cohort": FIXED}),
        (
            "local.simulated_arrival",
            {"pacing": {"kind": "synchronous", "arrival": "simulated"}, "privacy": {"regime": "local"}, "training": RAW["training"]},
        ),
    ],
)
def test_what_voids_a_guarantee_is_refused_with_a_code_and_a_way_out(code: str, sections: dict[str, Any]) -> None:
    privacy = {"noise_multiplier": 2.0, "delta": 1e-3, **sections.pop("privacy")}
    with pytest.raises(PrivacyRefusal, match=rf"^\[privacy\.incompatible\.{code}\] .*; (use|give) .*\.$"):
        check_only(build_config({**RAW, "training": STEPS, "algorithm": UNIFORM, "privacy": privacy, **sections}))


def test_records_and_local_clients_may_be_protected_with_stale_updates() -> None:
    common = {**RAW, "pacing": FEDBUFF, "algorithm": UNIFORM}
    check_only(build_config({**common, "training": STEPS, "privacy": {"regime": "local", "noise_multiplier": 9.0, "delta": 1e-3}}))
    training = {"sampling_rate": 0.2, "expected_batch": 10, "steps": 2}
    check_only(build_config({**common, "training": training, "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-4}}))


def test_a_plan_says_what_it_cannot_know() -> None:
    training = {"sampling_rate": 0.2, "expected_batch": 10, "steps": 2}
    privacy = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-4}
    plan = make_plan(prepare(build_config({**RAW, "pacing": FEDBUFF, "training": training, "privacy": privacy})), curves=False)
    assert any(note.startswith("pacing.kind: how often 'fedbuff' asks a client is not known") for note in plan["notes"])
    assert plan["actors"]["largest_cohort"] == 2  # clients of one buffer train at once in simulated time
