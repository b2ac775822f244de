"""A run whose model goes down in fewer bytes: what travels through Ray, and what the driver keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shortruns import short_run

from fedray.runfiles import RunFiles
from fedray.tensorfile import read_tensors

WIDE = {"kind": "mlp", "hidden": [512]}
PARAMETERS = 64 * 512 + 512 + 512 * 10 + 10


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_half_of_the_bytes_go_down_and_the_model_stays_whole(tmp_path: Path) -> None:
    result = short_run(tmp_path / "run", rounds=4, model=WIDE, download={"kind": "half"})
    files = RunFiles(result.output)
    assert [row["metrics"]["traffic/downlink_mb"] for row in files.rows()] == [2 * PARAMETERS / 1e6] * 4
    assert result.summary["performance"]["bytes_down"] == 4 * 2 * PARAMETERS
    assert result.summary["final"]["eval/accuracy"] > 0.7
    tensors, _ = read_tensors(files.model)
    values = np.concatenate([tensor.reshape(-1) for tensor in tensors.values()])
    assert (values != values.astype(np.float16)).mean() > 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_other_actors_and_a_resume_give_the_same_bytes(tmp_path: Path) -> None:
    sections = {"model": WIDE, "download": {"kind": "qsgd", "bits": 8}}
    digests = [short_run(tmp_path / f"{n}", rounds=4, clients={"actors": n}, **sections).summary["model_sha256"] for n in (1, 3)]
    short_run(tmp_path / "resumed", rounds=2, **sections)
    resumed = short_run(tmp_path / "resumed", rounds=4, resume=True, **sections)
    assert {resumed.summary["model_sha256"], *digests} == {digests[0]}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_versions_in_flight_and_secure_sums_take_coded_models(tmp_path: Path) -> None:
    sections = {"model": WIDE, "download": {"kind": "half"}}
    pacing = {"kind": "fedbuff", "buffer": 2, "concurrency": 4, "arrival": "simulated"}
    assert short_run(tmp_path / "fedbuff", rounds=6, pacing=pacing, **sections).status == "completed"
    plain = short_run(tmp_path / "plain", rounds=2, **sections)
    secure = short_run(tmp_path / "secure", rounds=2, secure={"kind": "secagg"}, cohort={"kind": "all", "min_clients": 4}, **sections)
    assert plain.summary["model_sha256"] == secure.summary["model_sha256"]
