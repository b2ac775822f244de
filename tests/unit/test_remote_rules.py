"""What a run with silos outside the cluster may not ask for."""

from __future__ import annotations

from typing import Any

import pytest

from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only

REMOTE = {"placement": "remote", "gateway": {"listen": "localhost:7443", "identity": "federation"}}
RECORD = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3}
STEPS = {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 20, "steps": 2}


def checked(**sections: Any) -> None:
    raw: dict[str, Any] = {
        "name": "remote",
        "rounds": 2,
        "data": {"source": "silos:a,b", "classes": 2},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.5, "batch_size": 16, "epochs": 1},
        "clients": REMOTE,
    }
    check_only(build_config(raw | sections))


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"data": {"source": "sklearn:digits"}}, "data.source"),
        ({"data": {"source": "silos:a,b", "classes": 2, "partition": {"kind": "iid", "clients": 2}}}, "data.partition"),
        ({"clients": {**REMOTE, "actors": 2}}, "clients.actors"),
        ({"clients": {**REMOTE, "resources": {"cpu": 1.0}}}, "clients.resources"),
        ({"clients": {**REMOTE, "node_sums": True}}, "clients.node_sums"),
        ({"clients": {**REMOTE, "groups": [{"name": "g", "clients": ["a"], "ledger": "here"}]}}, "clients.groups"),
        ({"agreed": {"registration": "agreed.json"}}, "agreed.registration"),
        ({"algorithm": {"kind": "scaffold"}}, "algorithm.kind"),
        ({"compression": {"kind": "topk", "share": 0.1}}, "algorithm.kind"),
        ({"model": {"kind": "python:provided:model"}}, "model.kind"),
        ({"clients": {"placement": "dedicated"}}, "data.source"),
        ({"clients": {}}, "data.source"),
        ({"clients": {"placement": "remote"}}, "gateway"),
        ({"clients": {**REMOTE, "placement": "dedicated"}}, "gateway"),
        ({"attack": {"kind": "sign_flip", "fraction": 0.5}}, "attack.kind"),
    ],
)
def test_what_is_the_silos_or_needs_the_cluster_is_refused_by_its_key(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        checked(**sections)


@pytest.mark.parametrize(
    ("ledger", "placement", "good"),
    [("silos", "remote", True), ("run", "remote", False), ("/books", "remote", False), ("silos", "dedicated", False)],
)
def test_silos_charge_their_own_ledgers(ledger: str, placement: str, good: bool) -> None:
    clients = REMOTE if placement == "remote" else {"placement": placement}
    data = (
        {"source": "silos:a,b", "classes": 2}
        if placement == "remote"
        else {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 2}}
    )
    sections: dict[str, Any] = {
        "clients": clients,
        "data": {**data, "holdout": {"fraction": 0.0}},
        "training": STEPS,
        "evaluation": {"metrics": []},
    }
    if good:
        checked(**sections, privacy={**RECORD, "ledger": ledger})
        return
    with pytest.raises(PrivacyRefusal, match="ledger"):
        checked(**sections, privacy={**RECORD, "ledger": ledger})


def test_the_driver_keeps_its_own_book_of_whole_clients() -> None:
    client, uniform = {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-3}, {"kind": "fedavg", "weights": "uniform"}
    checked(privacy=client, algorithm=uniform)
    with pytest.raises(PrivacyRefusal, match="kept by the driver"):
        checked(privacy={**client, "ledger": "silos"}, algorithm=uniform)
