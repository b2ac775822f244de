"""Encrypted sums through Ray: the bytes of a plain run whoever drops out, after a resume, and what a driver gets to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_phases import SILOS, digest, rows, told
from test_phases import run as phases

import fedray
from fedray.errors import ConfigError
from fedray.secure.bfv import BfvScheme
from fedray.secure.ckks import CkksScheme
from fedray.secure.consortium import make_consortium_key
from fedray.tensorfile import read_tensors

pytest.importorskip("tenseal", reason="the extra 'encrypted' is not installed")


@pytest.fixture(scope="module")
def bfv(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config's section, with a new key."""
    path = tmp_path_factory.mktemp("keys") / "bfv"
    make_consortium_key(BfvScheme(), path)
    return {"kind": "bfv", "key": str(path), "fewest": 3}


@pytest.fixture(scope="module")
def ckks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config's section for the approximate scheme."""
    path = tmp_path_factory.mktemp("keys") / "ckks"
    make_consortium_key(CkksScheme(), path)
    return {"kind": "ckks", "key": str(path), "fewest": 3}


def weights(result: fedray.Result) -> np.ndarray:
    """All weights of the run's model."""
    return np.concatenate([array.ravel() for _, array in sorted(read_tensors(Path(result.output) / "model.safetensors")[0].items())])


def plain(output: Path, **sections: Any) -> fedray.Result:
    return phases(output, **{**sections, "secure": {"kind": "none"}})


@pytest.mark.usefixtures("cluster")
class TestRuns:
    @pytest.mark.slow
    def test_the_model_has_the_bytes_of_a_plain_run_and_the_driver_sees_no_single_figure(self, tmp_path: Path, bfv: dict[str, Any]) -> None:
        encrypted = phases(tmp_path / "encrypted", secure=bfv)
        assert digest(encrypted) == digest(plain(tmp_path / "plain"))
        row = rows(encrypted)[0]
        assert "train/loss_mean" not in row
        assert row["traffic/sent_mb"] > 4 * 8 * 650 / 1e6  # no less than a whole ciphertext of 4096 slots

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "sections",
        [
            {"training": {"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": "lockstep"}, "clients": {"actors": 3}},
            {"algorithm": {"kind": "scaffold"}},
            {"algorithm": {"kind": "fednova"}},
            {"bound": {"kind": "norm", "norm": 0.5}},
            {"clients": SILOS},
        ],
        ids=["lockstep", "state", "several fields", "bound", "dedicated"],
    )
    def test_so_it_has_with(self, tmp_path: Path, bfv: dict[str, Any], sections: dict[str, Any]) -> None:
        assert digest(phases(tmp_path / "encrypted", secure=bfv, **sections)) == digest(plain(tmp_path / "plain", **sections))

    @pytest.mark.slow
    def test_under_ckks_it_is_within_a_ten_thousandth(self, tmp_path: Path, ckks: dict[str, Any]) -> None:
        near, whole = (weights(run) for run in (phases(tmp_path / "near", secure=ckks), plain(tmp_path / "plain")))
        assert 0.0 < np.abs(near - whole).max() <= 1e-4 * np.abs(whole).max()

    @pytest.mark.slow
    def test_so_it_has_after_a_resume(self, tmp_path: Path, bfv: dict[str, Any]) -> None:
        phases(tmp_path / "resumed", rounds=1, secure=bfv)
        assert digest(phases(tmp_path / "resumed", resume=True, secure=bfv)) == digest(plain(tmp_path / "whole"))

    @pytest.mark.slow
    def test_a_silo_that_dies_in_its_turn_drops_out_and_the_others_are_summed(self, tmp_path: Path, bfv: dict[str, Any]) -> None:
        falling = {"kind": "python:padparts:Falling", "mark": str(tmp_path / "mark")}
        lost = phases(tmp_path / "lost", algorithm=falling, clients=SILOS, secure=bfv)
        assert [row["round/clients_completed"] for row in rows(lost)] == [6, 5]
        assert "no other actor has its keys" in told(lost)

    @pytest.mark.slow
    def test_a_round_with_too_few_left_is_begun_again(self, tmp_path: Path, bfv: dict[str, Any]) -> None:
        falling = {"kind": "python:padparts:Falling", "mark": str(tmp_path / "mark")}
        again = phases(tmp_path / "again", algorithm=falling, clients=SILOS, secure={**bfv, "fewest": 6})
        assert digest(again) == digest(plain(tmp_path / "calm", clients=SILOS))
        assert "of 6 members 5 were left after the phase 'training', and it takes 6" in told(again)

    @pytest.mark.slow
    def test_noise_for_whole_clients_is_added_to_the_same_sum_and_the_statement_says_what_is_trusted(
        self, tmp_path: Path, bfv: dict[str, Any]
    ) -> None:
        privacy = {"regime": "client", "noise_multiplier": 2.0, "delta": 1e-2, "insecure_seed": 5}
        sections: dict[str, Any] = {"privacy": privacy, "algorithm": {"kind": "fedavg", "weights": "uniform"}}
        encrypted = phases(tmp_path / "encrypted", secure=bfv, **sections)
        assert digest(encrypted) == digest(plain(tmp_path / "plain", **sections))
        said = json.loads((Path(encrypted.output) / "privacy_statement.json").read_text())["guarantee"]
        assert "all clients hold one secret key, and the driver holds none" in said["trust"]
        assert "only rehearses the protocol" in said["trust"]

    @pytest.mark.slow
    def test_a_silo_without_the_key_ends_the_run_with_one_sentence(self, tmp_path: Path, bfv: dict[str, Any]) -> None:
        key = tmp_path / "key"
        key.write_bytes(Path(bfv["key"]).read_bytes())
        key.chmod(0o644)
        for path, says in (
            (key, "has the mode 0644; set it to 0600"),
            (tmp_path / "none", "cannot be read where the process runs that needs it"),
        ):
            with pytest.raises(ConfigError, match=f"secure.key: .*{says}"):
                phases(tmp_path / "refused", clients=SILOS, secure={**bfv, "key": str(path)})
