"""What a secure sum goes together with, and what it is refused with: one sentence each, with a code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedray.clients.members import TRAIN, Members
from fedray.clients.messages import RoundTask
from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.exchange import Exchange, Field
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.secure.secagg import SecAgg

RAW: dict[str, Any] = {
    "name": "t",
    "rounds": 2,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}},
    "model": {"kind": "softmax"},
    "training": {"batch_size": 8, "steps": 2},
    "algorithm": {"kind": "fedavg", "weights": "uniform"},
    "secure": {"kind": "secagg"},
}
IDENTITIES: dict[str, Any] = {
    "secure": {"kind": "secagg", "identities": "/etc/fedray/identities.json", "key": "/etc/fedray/{client}.pem"},
    "clients": {"placement": "dedicated"},
}
BFV = {"kind": "bfv", "key": "/etc/fedray/consortium.key"}
CLIENT = {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-2}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"algorithm": {"kind": "scaffold"}},
        {"bound": {"kind": "norm", "norm": 1.0}},
        {
            "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-4},
            "training": {"sampling_rate": 0.1, "steps": 2, "expected_batch": 8.0},
        },
        {"privacy": {**CLIENT, "regime": "distributed"}, "cohort": {"kind": "all", "min_clients": 5}},
        {"privacy": CLIENT, "cohort": {"kind": "fixed", "size": 6}},
        {"privacy": {**CLIENT, "ledger": "ledgers"}, "cohort": {"kind": "all"}, **IDENTITIES},
        IDENTITIES,
        {"privacy": {**CLIENT, "regime": "local", "noise_multiplier": 9.0}},
    ],
)
def test_what_goes_together_is_accepted(sections: dict[str, Any]) -> None:
    prepare(build_config({**RAW, **sections}))


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"aggregation": {"kind": "median"}}, "aggregation"),
        ({"pacing": {"kind": "fedbuff", "buffer": 2, "concurrency": 3}}, "asynchronous"),
        ({"pacing": {"kind": "semi_synchronous"}, "cohort": {"kind": "fixed", "size": 4}}, "asynchronous"),
        ({"compression": {"kind": "topk", "share": 0.1}}, "compression"),
        ({"compression": {"kind": "sign"}}, "compression"),
        ({"privacy": CLIENT, "cohort": {"kind": "poisson", "fraction": 0.5}}, "secret_cohort"),
        ({"privacy": {**CLIENT, "ledger": "ledgers"}, "cohort": {"kind": "fixed", "size": 6}, **IDENTITIES}, "secret_cohort"),
        ({"secure": IDENTITIES["secure"]}, "hosted_identities"),
    ],
)
def test_what_needs_single_updates_or_secret_cohorts_is_refused(sections: dict[str, Any], code: str) -> None:
    with pytest.raises(PrivacyRefusal) as refusal:
        check_only(build_config({**RAW, **sections}))
    assert refusal.value.code == f"privacy.incompatible.secure.{code}"
    if "secure" in sections:
        return
    for kind in ("bfv", "ckks"):
        with pytest.raises(PrivacyRefusal) as encrypted:
            check_only(build_config({**RAW, **sections, "secure": {**BFV, "kind": kind}}))
        assert encrypted.value.code == f"privacy.incompatible.encrypted.{code}"


def test_what_must_be_exact_is_refused_where_sums_are_approximate() -> None:
    sections = {**RAW, "training": {}, "algorithm": {"kind": "newton"}}
    check_only(build_config({**sections, "secure": BFV}))
    with pytest.raises(PrivacyRefusal, match="use secure.kind=bfv or secagg") as refusal:
        check_only(build_config({**sections, "secure": {**BFV, "kind": "ckks"}}))
    assert refusal.value.code == "privacy.incompatible.encrypted.exact"


@pytest.mark.parametrize("kind", ["bfv", "ckks"])
@pytest.mark.parametrize(
    ("privacy", "code"),
    [({"regime": "distributed"}, "distributed"), ({"adaptive_clip": {}}, "adaptive_clip")],
)
def test_what_one_key_for_all_clients_does_not_protect_is_refused(privacy: dict[str, Any], code: str, kind: str) -> None:
    sections = {**RAW, "secure": {**BFV, "kind": kind}, "cohort": {"kind": "all", "min_clients": 5}}
    check_only(build_config({**sections, "privacy": CLIENT}))
    with pytest.raises(PrivacyRefusal, match="secure.kind=secagg") as refusal:
        check_only(build_config({**sections, "privacy": {**CLIENT, **privacy}}))
    assert refusal.value.code == f"privacy.incompatible.encrypted.{code}"


@pytest.mark.parametrize(
    ("secure", "says"),
    [
        ({"kind": "secag"}, r"secure.kind: 'secag' is not known.*Did you mean 'secagg'"),
        ({"kind": "none", "fewest": 5}, r"secure.fewest: kind is none, so it would do nothing"),
        ({"kind": "secagg", "fewest": 2}, r"secure.fewest: should be at least 3, but is 2"),
        ({"kind": "secagg", "threshold": 0.5}, r"secure.threshold: should be above 0.5"),
        ({"kind": "secagg", "key": "/keys/{client}.pem"}, r"secure.identities: missing, though secure.key is set"),
        ({"kind": "secagg", "identities": "/keys/all.json"}, r"secure.key: missing, though secure.identities is set"),
        ({"kind": "secagg", "identities": "all.json", "key": "/k"}, r"secure.identities: 'all.json' is not absolute"),
        ({"kind": "secagg", "identities": "~/all.json", "key": "k"}, r"secure.key: 'k' is not absolute"),
        ({"kind": "secagg", "fewest": 7}, r"secure.fewest: no sum of fewer than 7 members is read, but a cohort has 6 at the most"),
        ({"kind": "bfv"}, r"secure.*key"),
        ({**BFV, "key": "consortium.key"}, r"secure.key: 'consortium.key' is not absolute"),
        ({**BFV, "fewest": 2}, r"secure.fewest: should be at least 3, but is 2"),
        ({**BFV, "patience": 0}, r"secure.patience: should be above 0, but is 0"),
        ({**BFV, "fewest": 7}, r"secure.fewest: no sum of fewer than 7 clients is opened, but a cohort has 6 at the most"),
        (
            {"kind": "python:builtins:dict"},
            r"secure.kind: .* is not derived from fedray.secure.protocol.Protocol|what arguments dict takes",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(secure: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare(build_config({**RAW, "secure": secure}))


def test_an_actor_has_members_for_one_attempt_only_and_none_that_were_not_asked() -> None:
    members = Members(lambda client: SecAgg(fewest=3).member, "job", 3, Exchange((Field("model", 4),)))
    first, second, weights = RoundTask(0, 1.0), RoundTask(0, 1.0, attempt=1), np.zeros(4, dtype=np.float32)
    keys = members.consult(first, "keys", {7: (0, b"")})
    assert isinstance(keys[7], bytes)
    assert "holds no keys" in members.ready(first, [8], weights)[8]
    assert "before the others' messages came" in members.ready(first, [7], weights)[7]
    again = members.consult(first, "keys", {7: (0, b"")})
    assert isinstance(again[7], str)  # no phase is answered twice
    anew = members.consult(second, "keys", {7: (0, b"")})
    assert isinstance(anew[7], bytes)
    assert anew != keys
    for phase in ("keys", TRAIN):
        assert isinstance(members.consult(first, phase, {7: (0, b"")})[7], str)  # an attempt that is over stays over
    other = RoundTask(0, 1.0, plan="another plan", attempt=2)
    assert other.agreed(Exchange((Field("model", 4),))) != first.agreed(Exchange((Field("model", 4),)))
