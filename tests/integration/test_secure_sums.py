"""Secure aggregation through Ray: the bytes of a plain sum whoever drops out, distributed noise under it, and what a driver gets to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from securekeys import identities
from test_phases import SILOS, digest, rows, told
from test_phases import run as phases

import fedray
from fedray.configfile import load_config
from fedray.errors import ConfigError
from fedray.planning.preparation import prepare
from fedray.runfiles import RunFiles

SECAGG = {"kind": "secagg", "fewest": 3}


def run(output: Path, **sections: Any) -> fedray.Result:
    return phases(output, **{"secure": SECAGG, **sections})


@pytest.mark.usefixtures("cluster")
class TestRuns:
    def test_the_model_has_the_bytes_of_a_plain_run_and_the_driver_sees_no_single_figure(self, tmp_path: Path) -> None:
        plain = run(tmp_path / "plain", secure={"kind": "none"}, evaluation={"every": 0})
        masked = run(tmp_path / "masked", evaluation={"every": 0})
        assert digest(masked) == digest(plain)
        assert "train/loss_mean" in rows(plain)[0]
        assert "train/loss_mean" not in rows(masked)[0]

    @pytest.mark.slow
    def test_a_silo_that_dies_in_its_turn_drops_out_and_the_others_are_summed(self, tmp_path: Path) -> None:
        falling = {"kind": "python:padparts:Falling", "mark": str(tmp_path / "mark")}
        lost = run(tmp_path / "lost", algorithm=falling, clients=SILOS, secure={**SECAGG, "threshold": 0.6})
        assert [row["round/clients_completed"] for row in rows(lost)] == [6, 5]
        assert "no other actor has its keys" in told(lost)

    @pytest.mark.slow
    def test_a_round_with_too_few_left_is_begun_again_with_new_keys(self, tmp_path: Path) -> None:
        falling = {"kind": "python:padparts:Falling", "mark": str(tmp_path / "mark")}
        again = run(tmp_path / "again", algorithm=falling, clients=SILOS, secure={**SECAGG, "fewest": 6})
        assert digest(again) == digest(run(tmp_path / "calm", clients=SILOS))
        assert "of 6 members 5 were left after the phase 'training', and it takes 6" in told(again)

    @pytest.mark.slow
    @pytest.mark.parametrize(("clients", "least", "every"), [(10, 7, 5), (100, 80, 10)])
    @pytest.mark.parametrize("kind", ["ddg", "skellam"])
    def test_distributed_noise_adds_up_as_in_the_clear_whoever_drops_out(
        self, tmp_path: Path, kind: str, clients: int, least: int, every: int
    ) -> None:
        """In each round other clients drop out, with their noise; epsilon is that of the plan, which counts on the fewest."""
        sections: dict[str, Any] = {
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": clients}},
            "privacy": {"regime": "distributed", "mechanism": {"kind": kind}, "noise_multiplier": 2.0, "delta": 1e-3, "insecure_seed": 5},
            "cohort": {"kind": "all", "min_clients": least},
        }

        def dropping(name: str, secure: str) -> fedray.Result:
            mark = tmp_path / f"dropped-{name}"
            mark.mkdir()
            algorithm = {"kind": "python:dropparts:Dropping", "weights": "uniform", "every": every, "mark": str(mark)}
            result = run(tmp_path / name, secure={"kind": secure}, algorithm=algorithm, **sections)
            assert len(list(mark.iterdir())) == 2 * clients // every
            return result

        plain, masked = dropping("plain", "none"), dropping("masked", "secagg")
        assert digest(masked) == digest(plain)
        plan = prepare(load_config(RunFiles(masked.output).config)).client_plan
        assert plan is not None
        assert plan.facts.rounds == plan.participations == 2
        assert masked.summary["privacy"]["epsilon"] == plain.summary["privacy"]["epsilon"] == pytest.approx(plan.planned_epsilon, rel=1e-9)
        said = [json.loads((Path(r.output) / "privacy_statement.json").read_text())["guarantee"] for r in (plain, masked)]
        assert "makes no secure sum" in said[0]["trust"]
        assert "not the driver" in said[0]["against"]
        assert "could read single updates" in said[1]["trust"]
        assert "only rehearses the protocol" in said[1]["trust"]
        assert said[1]["against"].startswith("the driver, which reads nothing but sums")

    @pytest.mark.slow
    def test_silos_with_identities_sum_alike_and_a_wrong_key_ends_the_run_before_its_first_round(self, tmp_path: Path) -> None:
        places = identities(tmp_path / "keys", 6)
        signed: dict[str, Any] = {"clients": SILOS, "secure": {**SECAGG, **places}, "rounds": 1}
        named = run(tmp_path / "named", **signed)
        assert digest(named) == digest(run(tmp_path / "plain", secure={"kind": "none"}, rounds=1))
        (tmp_path / "keys" / "client-0003.pem").chmod(0o644)
        with pytest.raises(ConfigError, match=r"secure.key: .*client-0003.pem has the mode 0644; nobody but its owner may use it"):
            run(tmp_path / "open", **signed)
        assert not RunFiles(tmp_path / "open").rows()
