"""Rounds of several phases through Ray: the bytes of a plain sum, members that are lost before and while they train, and new attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shortruns import SHORT, short_run

import fedray
from fedray.errors import FedrayError
from fedray.runfiles import RunFiles

CLIENTS = 6
SILOS = {"placement": "dedicated", "resources": {"cpu": 0.5}}


def run(output: Path, resume: bool = False, **sections: Any) -> fedray.Result:
    config: dict[str, Any] = {
        "rounds": 2,
        "cohort": {"kind": "all", "min_clients": 3},
        "training": {**SHORT["training"], "engine": "plain"},
        "secure": {"kind": "python:padparts:Pads"},
        "evaluation": {"every": 2, "metrics": ["accuracy"]},
    }
    return short_run(output, resume=resume, **{**config, **sections})


def rows(result: fedray.Result) -> list[dict[str, float]]:
    return [row["metrics"] for row in RunFiles(result.output).rows()]


def told(result: fedray.Result) -> str:
    return "\n".join(str(fault["what"]) for fault in RunFiles(result.output).faults())


def digest(result: fedray.Result) -> str:
    return str(result.summary["model_sha256"])


@pytest.mark.usefixtures("cluster")
class TestRuns:
    @pytest.mark.slow
    def test_the_model_has_the_bytes_of_a_plain_run(self, tmp_path: Path) -> None:
        plain = run(tmp_path / "plain", secure={"kind": "none"})
        masked = run(tmp_path / "masked")
        assert digest(masked) == digest(plain)
        assert all(row["round/clients_completed"] == CLIENTS and "train/loss_mean" not in row for row in rows(masked))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "sections",
        [
            {"training": {"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": "lockstep"}, "clients": {"actors": 3}},
            {"algorithm": {"kind": "scaffold"}},
            {"bound": {"kind": "norm", "norm": 0.5}},
            {"clients": SILOS},
        ],
        ids=["lockstep", "state", "bound", "dedicated"],
    )
    def test_so_it_has_with(self, tmp_path: Path, sections: dict[str, Any]) -> None:
        plain = run(tmp_path / "plain", **{**sections, "secure": {"kind": "none"}})
        assert digest(run(tmp_path / "masked", **sections)) == digest(plain)

    @pytest.mark.slow
    def test_so_it_has_after_a_resume(self, tmp_path: Path) -> None:
        run(tmp_path / "resumed", rounds=1)
        assert digest(run(tmp_path / "resumed", resume=True)) == digest(run(tmp_path / "whole"))

    @pytest.mark.slow
    def test_a_client_whose_actor_ends_is_lost_for_the_round_and_the_others_count(self, tmp_path: Path) -> None:
        falling = {"kind": "python:padparts:Falling", "mark": str(tmp_path / "mark")}
        lost = run(tmp_path / "lost", algorithm=falling, clients=SILOS)
        assert [row["round/clients_completed"] for row in rows(lost)] == [CLIENTS, CLIENTS - 1]
        assert rows(lost)[1]["round/retries"] == 0
        assert "no other actor has its keys" in told(lost)

    @pytest.mark.slow
    def test_where_too_few_are_left_the_round_is_begun_again_and_gives_the_same_bytes(self, tmp_path: Path) -> None:
        falling = {"kind": "python:padparts:Falling", "mark": str(tmp_path / "mark")}
        strict = {"kind": "python:padparts:Pads", "most_lost": 0}
        again = run(tmp_path / "again", algorithm=falling, clients=SILOS, secure=strict)
        assert digest(again) == digest(run(tmp_path / "calm", clients=SILOS))
        assert rows(again)[1]["round/clients_completed"] == CLIENTS
        assert "5 of 6 members are in the sum" in told(again)
        assert again.summary["faults"]["actor_deaths"] == 1

    @pytest.mark.slow
    def test_members_that_refuse_or_whose_actor_ends_before_they_train(self, tmp_path: Path) -> None:
        refusing = {"kind": "python:padparts:Pads", "refuses": 2}
        refused = run(tmp_path / "refused", secure=refusing)
        assert [row["round/clients_completed"] for row in rows(refused)] == [CLIENTS - 1] * 2
        assert "the first attempt does not suit it" in told(refused)
        strict = run(tmp_path / "strict", secure={**refusing, "most_lost": 0})
        assert [row["round/clients_completed"] for row in rows(strict)] == [CLIENTS] * 2
        ended = run(tmp_path / "ended", clients=SILOS, secure={"kind": "python:padparts:Pads", "ends": str(tmp_path / "mark")})
        assert [row["round/clients_completed"] for row in rows(ended)] == [CLIENTS - 1, CLIENTS]
        assert "did not answer in the phase number" in told(ended)

    @pytest.mark.slow
    def test_a_run_whose_sums_can_never_be_read_ends_with_the_reason(self, tmp_path: Path) -> None:
        with pytest.raises(FedrayError, match=r"lost: the secure sum could not be read: 6 of 6 members answered"):
            run(
                tmp_path / "never",
                cohort={"kind": "all", "min_clients": 6, "retries": 1},
                secure={"kind": "python:padparts:Pads", "most_lost": -1},
            )
        assert "the round is begun again with new keys" in (tmp_path / "never" / "faults.jsonl").read_text()
