"""Receipts of every form in which an update leaves, and of runs whose processes are killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from objectstore import object_store
from processes import kill
from remotesilos import silos
from securekeys import identities
from shortruns import short_run
from signedruns import both, make_keys, signed_run

from fedray.cli import cli
from fedray.reporting.verifiedrun import verify_run
from fedray.secure.bfv import BfvScheme
from fedray.secure.consortium import make_consortium_key
from fedray.secure.signedlines import read_signed

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]

NAMES = [f"client-{k:04d}" for k in range(4)]


def receipts_in(path: Path) -> list[dict[str, Any]]:
    return [dict(found.body) for line in path.read_bytes().splitlines() if (found := read_signed(line)).body["kind"] == "receipt"]


def kinds(folder: Path) -> dict[str, tuple[dict[str, Any], str, bool]]:
    make_consortium_key(BfvScheme(), folder / "bfv.key")
    return {
        "sums": ({}, "int64", False),
        "secagg": (
            {"secure": {"kind": "secagg", "fewest": 3, **identities(folder / "keys", 4)}, "cohort": {"kind": "all", "min_clients": 3}},
            "int64",
            True,
        ),
        "bfv": (
            {"secure": {"kind": "bfv", "key": str(folder / "bfv.key"), "fewest": 3}, "cohort": {"kind": "all", "min_clients": 3}},
            "sealed",
            True,
        ),
        "median": ({"aggregation": {"kind": "median"}}, "float32", False),
        "topk": ({"compression": {"kind": "topk", "share": 0.1}}, "int64", False),
        "fedbuff": ({"pacing": {"kind": "fedbuff", "buffer": 2, "concurrency": 3}}, "int64", False),
    }


@pytest.mark.parametrize("kind", ["sums", "secagg", "bfv", "median", "topk", "fedbuff"])
def test_receipts_are_of_what_leaves_in_each_form(tmp_path: Path, kind: str) -> None:
    sections, form, hidden = kinds(tmp_path)[kind]
    clients = {"placement": "dedicated", "resources": {"cpu": 0.5}, "signing": make_keys(tmp_path, NAMES)}
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}
    result = short_run(tmp_path / "run", data=data, clients=clients, **sections)
    assert result.status == "completed"
    found = receipts_in(tmp_path / "run" / "receipts.jsonl")
    assert {one["client"] for one in found} == set(NAMES) and {one["update"]["form"] for one in found} == {form}
    assert len({one["update"]["sha256"] for one in found}) == len(found)
    assert both(tmp_path / "run", tmp_path / "public") == ([], [])
    said = verify_run(tmp_path / "run", tmp_path / "public").not_covered
    assert any("masked or sealed" in sentence for sentence in said) == hidden


def test_silos_outside_the_cluster_sign_by_the_keys_of_their_identities(tmp_path: Path) -> None:
    make_keys(tmp_path, [])
    digits = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}
    with silos(tmp_path, dict.fromkeys(NAMES, digits)) as outside:
        clients = outside.clients | {"start_timeout": 600.0, "signing": {"driver": str(tmp_path / "private" / "driver.pem")}}
        data = {"source": f"silos:{','.join(NAMES)}", "classes": 10, "holdout": {"fraction": 0.2, "at": "clients"}}
        about: dict[str, Any] = {"data": data, "clients": clients, "evaluation": {"metrics": []}}
        assert short_run(tmp_path / "run", rounds=2, **about).status == "completed"
        outside.kill(NAMES[0])
        outside.start(NAMES[0])
        assert short_run(tmp_path / "run", rounds=4, resume=True, **about).status == "completed"
    keys = outside.coordinator / "silos"
    shutil.copyfile(tmp_path / "public" / "driver.pub", keys / "driver.pub")
    assert both(tmp_path / "run", keys) == ([], [])
    found = receipts_in(tmp_path / "run" / "receipts.jsonl")
    assert sorted((one["client"], one["round"], one["number"]) for one in found) == [(name, k, k + 1) for name in NAMES for k in range(4)]
    kept = receipts_in(tmp_path / NAMES[0] / "state" / "receipts")
    assert kept == [one for one in found if one["client"] == NAMES[0]]


def test_a_run_in_an_object_store_is_verified_from_there(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_WORK", str(work))
    with object_store() as (address, _):
        output = address.replace("/ledgers", "/signed")
        assert signed_run(tmp_path, output=output, rounds=2).status == "completed"
        assert signed_run(tmp_path, output=output, rounds=3, resume=True).status == "completed"
        verified = CliRunner().invoke(cli, ["verify", output, "--keys", str(tmp_path / "public")])
    assert verified.exit_code == 0, verified.output
    assert "7 lines signed by the driver" in verified.output and "6 updates are in models" in verified.output


def test_receipts_stay_whole_while_clients_and_driver_are_killed(tmp_path: Path) -> None:
    def listen(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] in (2, 5, 8):
            kill("ray::ClientHost")
        if kind == "row" and value["round"] == 4:
            kill("ray::Experiment")

    result = signed_run(tmp_path, listen=listen, rounds=10, training={"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 10, "steps": 200})
    assert result.status == "completed"
    assert result.summary["faults"]["driver_restarts"] == 1 and result.summary["faults"]["actor_deaths"] >= 1
    run = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    kept = [one for name in ("north", "south") for one in receipts_in(tmp_path / "private" / f"{name}.receipts") if one["run"] == run]
    key = lambda one: (one["client"], one["number"])  # noqa: E731
    assert sorted(receipts_in(tmp_path / "run" / "receipts.jsonl"), key=key) == sorted(kept, key=key)
    assert both(tmp_path / "run", tmp_path / "public") == ([], [])
