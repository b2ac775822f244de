"""A silo's policy: each key refuses a config and admits its twin, refusals say where they come from, and a stricter policy admits no more."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from silopolicies import NOON, PLAIN, RECORD, WIDE, policy, terms

from fedray.errors import ConfigError
from fedray.privacy.accounting import accountant
from fedray.silos.defaultpolicy import TEXT
from fedray.silos.installedcode import code_digest
from fedray.silos.objection import Objection
from fedray.silos.policy import objections
from fedray.silos.policyconfig import Policy, parse_policy
from fedray.silos.spending import Spending

FEDERATED = {"federated": True, "metrics": ["accuracy"]}
SECAGG = {"kind": "secagg", "identities": "/etc/identities.json", "key": "/etc/key"}


class Case(NamedTuple):
    """A change of the wide policy, a config that it refuses then, and a twin that it admits; each a base and its changes."""

    policy: dict[str, Any]
    refused: tuple[dict[str, Any], dict[str, Any]]
    admitted: tuple[dict[str, Any], dict[str, Any]]


CASES: dict[str, list[Case]] = {
    "models": [
        Case({}, (PLAIN, {"model": {"kind": "linear"}}), (PLAIN, {"model": {"kind": "mlp"}})),
        Case(
            {"models": [{"kind": "mlp", "hidden": [8]}]},
            (PLAIN, {"model": {"kind": "mlp", "hidden": [9]}}),
            (PLAIN, {"model": {"kind": "mlp", "hidden": [8]}}),
        ),
        Case({"models": None}, (PLAIN, {}), (PLAIN, {})),
    ],
    "adapters": [
        Case({"adapters": []}, (PLAIN, {"model": {"adapters": {"kind": "lora", "rank": 2}}}), (PLAIN, {})),
        Case({"adapters": [{"kind": "lora", "rank": 2}]}, (PLAIN, {"model": {"adapters": {"kind": "lora", "rank": 3}}}), (PLAIN, {})),
    ],
    "weights": [Case({"weights": ["/w/a"]}, (PLAIN, {"model": {"weights": "/etc/passwd"}}), (PLAIN, {"model": {"weights": "/w/a"}}))],
    "algorithms": [
        Case({}, (PLAIN, {"algorithm": {"kind": "flhc", "clusters": 2}}), (PLAIN, {"algorithm": {"kind": "fedprox", "mu": 0.1}}))
    ],
    "losses": [Case({}, (PLAIN, {"training": {"loss": "focal"}}), (PLAIN, {"training": {"loss": "cross_entropy"}}))],
    "compressions": [Case({}, (PLAIN, {"compression": {"kind": "sign"}}), (PLAIN, {"compression": {"kind": "half"}}))],
    "bounds": [Case({"bounds": None}, (PLAIN, {"bound": {"kind": "norm", "most": 1.0}}), (PLAIN, {}))],
    "code": [Case({}, (PLAIN, {"training": {"engine": "python:os:system"}}), (PLAIN, {"training": {"engine": "plain"}}))],
    "regimes": [Case({"regimes": ["record"]}, (PLAIN, {}), (RECORD, {}))],
    "mechanisms": [
        Case(
            {"mechanisms": ["gaussian"], "noise_multiplier": 0.5},
            (
                PLAIN,
                {
                    "algorithm": {"weights": "uniform", "kind": "fedavg"},
                    "privacy": {"regime": "local", "noise_multiplier": 1.0, "delta": 1e-5},
                },
            ),
            (
                PLAIN,
                {
                    "algorithm": {"weights": "uniform", "kind": "fedavg"},
                    "privacy": {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-5},
                },
            ),
        )
    ],
    "epsilon_run": [Case({"epsilon_run": 1.0}, (RECORD, {"rounds": 10, "privacy": {"noise_multiplier": 0.9}}), (RECORD, {}))],
    "epsilon_total": [
        Case({"epsilon_run": None, "epsilon_total": None}, (RECORD, {}), (PLAIN, {})),
    ],
    "delta": [
        Case({"delta": 1e-6}, (RECORD, {}), (RECORD, {"privacy": {"delta": 1e-6}})),
        Case({"delta": None}, (RECORD, {}), (PLAIN, {})),
    ],
    "noise_multiplier": [Case({"noise_multiplier": 2.0}, (RECORD, {"privacy": {"noise_multiplier": 1.9}}), (RECORD, {}))],
    "void_claims": [Case({}, (RECORD, {"privacy": {"insecure_seed": 1}}), (RECORD, {}))],
    "unmasked": [
        Case({"unmasked": "noised"}, (PLAIN, {}), (RECORD, {})),
        Case({"unmasked": "never"}, (RECORD, {}), (RECORD, {"secure": SECAGG})),
    ],
    "secure": [
        Case({"secure": [SECAGG]}, (RECORD, {"secure": SECAGG | {"identities": "/tmp/theirs.json"}}), (RECORD, {"secure": SECAGG})),
    ],
    "cohort": [Case({"cohort": 7}, (RECORD, {"secure": SECAGG}), (RECORD, {"secure": SECAGG, "cohort": {"min_clients": 7}}))],
    "unsigned_keys": [Case({}, (RECORD, {"secure": {"kind": "secagg"}}), (RECORD, {"secure": SECAGG}))],
    "facts": [
        Case({"facts": []}, (PLAIN, {}), (PLAIN, {"algorithm": {"kind": "fedavg", "weights": "uniform"}})),
        Case({"facts": []}, (PLAIN, {"algorithm": {"kind": "fednova"}}), (PLAIN, {"algorithm": {"kind": "fedavg", "weights": "uniform"}})),
        Case({"facts": ["records"]}, (PLAIN, {"evaluation": FEDERATED}), (PLAIN, {})),
    ],
    "metrics": [Case({}, (PLAIN, {"evaluation": FEDERATED | {"metrics": ["loss"]}}), (PLAIN, {"evaluation": FEDERATED}))],
    "held_out": [Case({"held_out": None}, (PLAIN, {"evaluation": FEDERATED}), (PLAIN, {}))],
    "evaluations_a_day": [Case({"evaluations_a_day": None}, (PLAIN, {"evaluation": FEDERATED}), (PLAIN, {}))],
    "fine_tune": [Case({}, (PLAIN, {"evaluation": FEDERATED | {"fine_tune": {"epochs": 1}}}), (PLAIN, {"evaluation": FEDERATED}))],
    "rounds": [Case({}, (PLAIN, {"rounds": 11}), (PLAIN, {"rounds": 10})), Case({"rounds": None}, (PLAIN, {}), (PLAIN, {}))],
}
#: Keys that decide by the clock, by what was done, or by a person: they have tests of their own.
BY_STATE = {"hours", "time_zone", "rounds_a_day", "approval"}


def asked(changed: dict[str, Any], asks: tuple[dict[str, Any], dict[str, Any]], **more: Any) -> list[Objection]:
    return objections(policy(**changed), terms(asks[0], **asks[1]), NOON, **more)


def test_every_key_of_a_policy_has_a_case() -> None:
    assert set(CASES) | BY_STATE == set(Policy.model_fields)


@pytest.mark.parametrize(("key", "case"), [(key, case) for key, cases in CASES.items() for case in cases])
def test_a_key_refuses_a_config_and_admits_its_twin(key: str, case: Case) -> None:
    found = asked(case.policy, case.refused)
    mine = [each for each in found if each.rule == key]
    assert mine, found
    for each in mine:
        line = policy(**case.policy).line(key)
        assert each.line == line
        assert (f"policy.yaml, line {line}" if line else f"policy.yaml, which has no line for {key}") in str(each)
        assert each.setting in str(each)
        assert str(each).endswith(".")
    if case.refused != case.admitted:
        assert asked(case.policy, case.admitted) == []


@pytest.mark.parametrize(
    "key", [key for key in WIDE if key not in ("approval", "metrics", "adapters", "weights", "compressions", "bounds")]
)
def test_what_a_policy_does_not_name_it_refuses(key: str) -> None:
    everything = terms(
        RECORD,
        privacy={"regime": ["record", "client"], "noise_multiplier": 2.0, "delta": 1e-5, "joint": {"noise_multiplier": 2.0, "delta": 1e-5}},
        algorithm={"kind": "fedavg", "weights": "uniform"},
    )
    masked = terms(RECORD, secure=SECAGG)
    evaluated = terms(PLAIN, evaluation=FEDERATED)
    taken_out = {key: None} | ({"epsilon_run": None} if key == "epsilon_total" else {})
    rules = {each.rule for asks in (everything, masked, evaluated) for each in objections(policy(**taken_out), asks, NOON)}
    assert key in rules


def test_an_empty_policy_refuses_every_run() -> None:
    for asks in (terms(), terms(RECORD), terms(RECORD, secure=SECAGG)):
        assert objections(parse_policy("{}"), asks, NOON)


# -- a stricter policy admits no more ------------------------------------------------------------------

LISTS = {
    "models": ["softmax", "mlp"],
    "algorithms": ["fedavg", "fedprox"],
    "losses": ["cross_entropy", "focal"],
    "compressions": ["half", "sign"],
    "regimes": ["none", "record"],
    "secure": ["secagg"],
    "facts": ["records", "evaluation"],
    "metrics": ["accuracy", "f1"],
}
UPPER = {"epsilon_run": [0.1, 1.0, 5.0], "delta": [1e-6, 1e-5], "rounds": [2, 3, 9], "evaluations_a_day": [0, 5], "rounds_a_day": [0, 3]}
LOWER = {"noise_multiplier": [1.0, 2.0, 3.0], "cohort": [3, 5, 8], "held_out": [1, 9]}
UNMASKED = ["never", "noised", "always"]
FLAGS = ["unsigned_keys", "fine_tune", "void_claims"]


@st.composite
def two_policies(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A policy, and one that is as strict or stricter in each key."""
    loose: dict[str, Any] = {"hours": "always", "approval": False, "epsilon_total": 50.0}
    strict = dict(loose)
    for key, names in LISTS.items():
        loose[key] = draw(st.lists(st.sampled_from(names), unique=True))
        strict[key] = [name for name in loose[key] if draw(st.booleans())]
    for key, values in UPPER.items():
        loose[key] = draw(st.sampled_from(values))
        strict[key] = draw(st.sampled_from([None, *(v for v in values if v <= loose[key])]))
    for key, values in LOWER.items():
        loose[key] = draw(st.sampled_from(values))
        strict[key] = draw(st.sampled_from([None, *(v for v in values if v >= loose[key])]))
    at = draw(st.integers(0, 2))
    loose["unmasked"], strict["unmasked"] = UNMASKED[at], UNMASKED[draw(st.integers(0, at))]
    for key in FLAGS:
        loose[key] = draw(st.booleans())
        strict[key] = loose[key] and draw(st.booleans())
    hours = draw(st.sampled_from(["always", ["11:00-13:00"], ["13:00-11:00"]]))
    loose["hours"], strict["hours"] = hours, draw(st.sampled_from([hours, ["12:00-12:30"]] if hours != ["13:00-11:00"] else [hours, None]))
    return loose, strict


RUNS = st.fixed_dictionaries(
    {
        "rounds": st.sampled_from([2, 3]),
        "model": st.sampled_from([{"kind": "softmax"}, {"kind": "mlp"}]),
        "algorithm": st.sampled_from([{"kind": "fedavg"}, {"kind": "fedavg", "weights": "uniform"}, {"kind": "fedprox", "mu": 0.1}]),
        "compression": st.sampled_from([{"kind": "none"}, {"kind": "half"}]),
        "secure": st.sampled_from([{"kind": "none"}, SECAGG, {"kind": "secagg"}]),
        "evaluation": st.sampled_from([{"metrics": ["f1"]}, FEDERATED]),
    }
)


def read(content: dict[str, Any]) -> Policy:
    import yaml

    return parse_policy(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))


@settings(max_examples=150)
@given(two_policies(), RUNS, st.sampled_from([PLAIN, RECORD]))
def test_a_stricter_policy_admits_no_more(two: tuple[dict[str, Any], dict[str, Any]], asks: dict[str, Any], base: dict[str, Any]) -> None:
    loose, strict = (read(content) for content in two)
    run = terms(base, **asks)
    by_loose, by_strict = ({(each.rule, each.setting) for each in objections(one, run, NOON)} for one in (loose, strict))
    assert by_loose <= by_strict


@settings(max_examples=60)
@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_more_was_spent_the_less_is_admitted(less: int, more: int, total: float) -> None:
    run = terms(RECORD, privacy={"noise_multiplier": 1.0})
    assert run.plan is not None
    less, more = sorted((less, more))
    first, second = (
        objections(
            policy(epsilon_run=total, epsilon_total=total),
            run,
            NOON,
            spent=Spending((), accountant.flatten({run.plan.event(): n} if n else {})),
        )
        for n in (less, more)
    )
    assert bool(first) <= bool(second)


def test_a_run_that_goes_on_is_not_counted_twice() -> None:
    run = terms(RECORD)
    assert run.plan is not None
    cost = accountant.bound(run.plan.planned(), run.plan.delta)
    exact = policy(epsilon_run=cost * 1.001, epsilon_total=cost * 1.001)
    half = Spending(accountant.flatten({run.plan.event(): 2}), ())
    assert objections(exact, run, NOON, spent=half) == []
    other = Spending((), accountant.flatten({run.plan.event(): 2}))
    assert [each.rule for each in objections(exact, run, NOON, spent=other)] == ["epsilon_total"]


# -- terms that contradict themselves --------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"noise_multiplier": 1.0},
        {"steps": 3},
        {"delta": 1e-6},
        {"clip": 2.0},
        {"expected_batch": 11.0},
        {"participations": 0},
        {"participations": 99},
        {"interval": 1.0},
        {"budget": 7.0},
        {"clipping": "per_layer"},
    ],
)
def test_a_plan_that_does_not_follow_from_the_config_is_refused(lie: dict[str, Any]) -> None:
    from dataclasses import replace

    honest = terms(RECORD)
    assert honest.plan is not None
    assert objections(policy(), honest, NOON) == []
    found = objections(policy(), replace(honest, plan=replace(honest.plan, **lie)), NOON)
    assert [each.rule for each in found] == [""]
    assert next(iter(lie)) in str(found[0])


def test_a_plan_with_less_noise_than_its_target_needs_is_refused() -> None:
    from dataclasses import replace

    honest = terms(RECORD | {"privacy": {"regime": "record", "target_epsilon": 1.0, "delta": 1e-5}})
    assert honest.plan is not None
    assert objections(policy(), honest, NOON) == []
    found = objections(policy(), replace(honest, plan=replace(honest.plan, noise_multiplier=honest.plan.noise_multiplier * 0.9)), NOON)
    assert "plan.noise_multiplier" in str(found[0])


def test_terms_without_the_plan_of_their_regime_are_refused() -> None:
    from dataclasses import replace

    assert "plan" in str(objections(policy(), replace(terms(RECORD), plan=None), NOON)[0])
    assert "plan" in str(objections(policy(), replace(terms(), plan=terms(RECORD).plan), NOON)[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"algorithm": {"kind": "flhc", "clusters": 2}},
        {"algorithm": {"kind": "perfedavg"}},
        {"algorithm": {"kind": "newton"}},
    ],
)
def test_what_the_guarantee_does_not_cover_is_refused_whatever_the_policy_names(changed: dict[str, Any]) -> None:
    """A driver of fedray refuses such a config before it asks anybody; a driver that lies does not."""
    wide = policy(algorithms=["flhc", "perfedavg", "newton"])
    found = objections(wide, terms(RECORD, **changed), NOON)
    assert any("no run may have this config" in str(each) for each in found)


# -- own code ------------------------------------------------------------------------------------------


def test_own_code_runs_by_its_digest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "clinicparts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = package / "losses.py"
    source.write_text("def twice(outputs, targets):\n    raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "python:clinicparts.losses:twice"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert code_digest(name) == digest
    asks = terms(PLAIN, training={"loss": name})
    listed = policy(losses=[name], code={name: digest})
    assert objections(listed, asks, NOON) == []
    other = policy(losses=[name], code={name: "0" * 64})
    assert [each.rule for each in objections(other, asks, NOON)] == ["code"]
    source.write_text("import os\nos.environ['STOLEN'] = '1'\n")
    assert [each.rule for each in objections(listed, asks, NOON)] == ["code"]
    assert "clinicparts" not in sys.modules, "a refusal must not import what it refuses"
    missing = "python:nowhere.at.all:part"
    absent = policy(losses=[missing], code={missing: digest})
    assert "installed here" in str(objections(absent, terms(PLAIN, training={"loss": missing}), NOON)[0])


def test_a_name_of_code_is_found_wherever_it_stands() -> None:
    for changed in (
        {"model": {"kind": "mlp", "hidden": ["python:os:system"]}},
        {"training": {"schedule": {"kind": "python:os:system"}}},
        {"evaluation": FEDERATED | {"metrics": ["python:os:system"]}},
        {"secure": {"kind": "python:os:system"}},
    ):
        assert "code" in {each.rule for each in objections(policy(), terms(PLAIN, **changed), NOON)}, changed


def test_own_code_in_a_list_needs_a_digest() -> None:
    with pytest.raises(ConfigError, match="policy.yaml, line 3: losses: 'python:mine:loss' is own code"):
        parse_policy("models: [softmax]\n\nlosses: ['python:mine:loss']\n")


# -- the file ------------------------------------------------------------------------------------------


def test_the_printed_policy_is_one_and_names_every_key() -> None:
    found = parse_policy(TEXT)
    assert set(found._lines) == set(Policy.model_fields)
    uniform = {"algorithm": {"kind": "fedavg", "weights": "uniform"}}
    assert objections(found, terms(RECORD, **uniform), NOON) == []
    assert {each.rule for each in objections(found, terms(PLAIN, **uniform), NOON)} == {"regimes", "unmasked"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [softmax]\nmodles: [mlp]\n", "line 2: 'modles' is no key of a policy"),
        ("delta: 2.0\n", "line 1: delta: input should be less than 1, but is 2.0"),
        ("\nhours: [25:00-26:00]\n", "line 2: hours: '25:00-26:00' should read HH:MM-HH:MM"),
        ("time_zone: Mars/Olympus\n", "'Mars/Olympus' is no time zone"),
        ("code: {'python:mine:loss': abc}\n", "line 1: code: the digest of 'python:mine:loss' should be 64 hex digits"),
        ("models: [{hidden: [3]}]\n", "line 1: models: an entry is a name, or a map with a kind"),
        ("epsilon_run: 3.0\nepsilon_total: 2.0\n", "line 1: epsilon_run: 3 is more than epsilon_total, 2"),
        ("models: [softmax]\nmodels: [mlp]\n", "stands twice"),
        ("- models\n", "should hold keys"),
        ("approval: 'no'\n", "line 1: approval"),
    ],
)
def test_a_wrong_policy_says_on_which_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_policy(text)
    assert said in str(error.value)
