"""Constants of a normalizer from a query's answers: whose they are, who has paid, and which runs may use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedray.config import Config
from fedray.configfile import resolve_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.privacy.account import Account
from fedray.privacy.queriedrules import check_queried
from fedray.privacy.queryplan import plan_queries
from fedray.queriedconstants import queried_from, said_of_queried

ROW = {"mean": 5.0, "std": 2.0, "std_interval": [1.0, 3.0], "bounds": [0.0, 10.0]}
FLAT = {"mean": 0.5, "std": 0.0, "std_interval": [0.0, 0.8], "bounds": [-1.0, 1.0]}


def config_of(folder: Path, private: bool = True, privacy: dict[str, Any] | None = None, **changes: Any) -> Config:
    told = {
        "query": "q",
        "run": "q-1",
        "private": private,
        "claim": "valid",
        "epsilon": 0.5,
        "delta": 1e-5,
        "ledger": "books",
        "source": "s",
    }
    answers = {"scale": {"kind": "variance", "columns": {"b": ROW, "c": FLAT}}}
    (folder / "answers.json").write_text(
        json.dumps({**told, "normalize": "none", "columns": ["a", "b", "c"], "answers": answers, **changes})
    )
    raw = {
        "name": "n",
        "rounds": 1,
        "data": {"source": "sklearn:digits", "normalize": {"kind": "constants", "from": str(folder)}},
        "model": {"kind": "softmax"},
        "training": {"sampling_rate": 0.1, "expected_batch": 5, "steps": 1},
        "privacy": privacy or {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5},
    }
    return resolve_config(raw)


def test_the_resolved_config_holds_the_numbers_and_where_they_come_from(tmp_path: Path) -> None:
    section = config_of(tmp_path).data.normalize
    assert section.arguments["mean"] == [0.0, 5.0, 0.5]
    assert section.arguments["std"] == [1.0, 2.0, 0.4]  # noise has made one 0, which its interval corrects
    queried = queried_from(section.arguments)
    assert queried is not None and (queried["run"], queried["columns"], len(queried["sha256"])) == ("q-1", ["b", "c"], 64)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answers": {}}, "no statistic of kind variance"),
        ({"normalize": "unit_norm"}, "normalised by 'unit_norm'"),
        ({"columns": None}, "cannot be read"),
    ],
)
def test_other_answers_are_refused(tmp_path: Path, changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, **changes)


def test_a_claim_of_privacy_refuses_constants_that_it_does_not_cover(tmp_path: Path) -> None:
    check_queried(config_of(tmp_path))
    for private, regime, code in ((False, "record", "record.exact_constants"), (True, "client", "client.queried_constants")):
        with pytest.raises(PrivacyRefusal) as refused:
            check_queried(config_of(tmp_path, private, {"regime": regime, "noise_multiplier": 2.0, "delta": 1e-5}))
        assert refused.value.code == f"privacy.incompatible.{code}"


def test_the_statement_says_whether_the_ledgers_hold_the_charge(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    plan, queried = plan_queries(config, [("scale", 2, 100, 1.0)]), queried_from(config.data.normalize.arguments)
    assert queried is not None
    with Account.open_run(tmp_path / "books", {"x": plan, "y": plan}, "q-1/1") as account:
        assert account.authorize(0, 0, ["x"]).granted == ["x"]
    with Account.open_run(tmp_path / "books", {"x": plan, "y": plan}, "trains-1/1") as account:
        assert account.lacking("q-1") == ["y"] and account.lacking("q-2") == ["x", "y"]
        assert "ledgers of 1 clients of this run do NOT hold" in said_of_queried(queried, len(account.lacking("q-1")))
    assert "hold that charge, so the figures here contain it" in said_of_queried(queried, 0)
