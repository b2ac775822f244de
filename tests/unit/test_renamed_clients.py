"""Records that a folder's books were charged for are known again, whatever the client that brings them is called or where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedray.clients.recognition import commit_federation, commit_silo
from fedray.config import Config
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import LedgerError
from fedray.privacy.account import Account
from fedray.privacy.ledger.location import subject_path
from fedray.privacy.recordplan import RecordPlan, plan_record
from fedray.stores.object_path import Location, location

NAMES = ["a", "b", "c"]


@pytest.fixture(params=["file", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    if request.param == "file":
        yield tmp_path / "books"
        return
    import boto3
    from moto import mock_aws

    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="silo-books")
        yield location("s3://silo-books/ledgers?region=us-east-1")


@pytest.fixture
def plan() -> RecordPlan:
    training = {"sampling_rate": 0.25, "steps": 2, "expected_batch": 5}
    config: Config = build_config(
        {
            "name": "t",
            "rounds": 4,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "softmax"},
            "training": training,
            "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-3},
        }
    )
    return plan_record(config)


def records(*seeds: int) -> list[Records]:
    found = []
    for seed in seeds:
        draws = np.random.default_rng(seed)
        found.append(Records(draws.normal(size=(8, 3)).astype(np.float32), draws.integers(0, 2, 8)))
    return found


def federation(names: list[str], *seeds: int) -> Federation:
    each = records(*seeds)
    x, y = np.concatenate([r.x for r in each]), np.concatenate([r.y for r in each])
    return Federation(names, Records(x, y), np.arange(0, 8 * len(names) + 1, 8, dtype=np.int64), None, None, None, 2)


def hosted(folder: Location, plan: RecordPlan, names: list[str], *seeds: int) -> None:
    """A run of hosted clients that charges each of them once."""
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)
    data = commit_federation(folder, federation(names, *seeds), lasting=True)
    with Account.open_run(folder, dict.fromkeys(names, plan), "run/1", lasting=True, data=data) as account:
        account.authorize(0, 0, names)


def silo(folder: Location, plan: RecordPlan, name: str, seed: int) -> None:
    """A run of one silo that keeps its own book."""
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)
    data = commit_silo(folder, name, records(seed)[0])
    with Account.open_silo(folder, name, plan, "run/1", data=data) as account:
        account.authorize(0, 0, [name])


def test_a_hosted_client_with_a_new_name_is_known_by_its_records(folder: Location, plan: RecordPlan) -> None:
    hosted(folder, plan, NAMES, 1, 2, 3)
    with pytest.raises(LedgerError, match=r"the records of client 'd' were charged as those of 'b'.*give the client the name 'b' again"):
        hosted(folder, plan, ["a", "d", "c"], 1, 2, 3)
    with pytest.raises(LedgerError, match="the records of client 'a' were charged as those of 'b'"):  # two that changed places
        hosted(folder, plan, NAMES, 2, 1, 3)
    hosted(folder, plan, NAMES, 1, 2, 3)  # the book was not left locked


def test_a_silo_with_a_new_name_is_known_by_its_records(folder: Location, plan: RecordPlan) -> None:
    """Its new book would have a salt of its own."""
    silo(folder, plan, "a", 1)
    silo(folder, plan, "b", 2)
    with pytest.raises(
        LedgerError, match=r"the records of client 'd' were charged here as those of 'b', and in .*d.jsonl.* nothing of that"
    ) as found:
        silo(folder, plan, "d", 2)
    assert str(found.value).startswith(f"{subject_path(folder, 'b')}: ")
    with pytest.raises(LedgerError, match="the records of client 'a' were charged here as those of 'b'"):
        silo(folder, plan, "a", 2)
    silo(folder, plan, "b", 2)


def test_another_placement_begins_no_new_book(folder: Location, plan: RecordPlan) -> None:
    hosted(folder, plan, NAMES, 1, 2, 3)
    with pytest.raises(LedgerError, match=r"were charged here as those of 'a'.*give the client that name and clients.placement again"):
        silo(folder, plan, "a", 1)
    silo(folder, plan, "e", 5)
    with pytest.raises(LedgerError, match="the records of client 'b' were charged here as those of 'e'"):
        hosted(folder, plan, NAMES, 1, 5, 3)


def test_new_records_and_twins_are_no_renaming(folder: Location, plan: RecordPlan) -> None:
    """A client whose data changed goes on in its book; two clients may hold the same records, each charged under its own name."""
    hosted(folder, plan, NAMES, 1, 1, 3)
    hosted(folder, plan, NAMES, 1, 1, 4)
    hosted(folder, plan, [*NAMES, "d"], 1, 1, 3, 6)
    hosted(folder, plan, [*NAMES, "e"], 1, 1, 3, 1)
    with pytest.raises(LedgerError, match="the records of client 'f' were charged as those of 'a'"):
        hosted(folder, plan, ["c", "f"], 3, 1)
