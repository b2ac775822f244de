"""The root set through Ray: the same bytes with other actors and after a resume, and after its actor has died."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
from shortruns import SHORT, short_run

from fedray.configfile import build_config
from fedray.planning.preparation import prepare
from fedray.rounds.roots import Roots

SECTIONS = {"aggregation": {"kind": "fltrust"}, "root": {"share": 0.3, "public": True}, "attack": {"kind": "sign_flip", "fraction": 0.3}}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_with_a_root_set_ends_the_same_with_other_actors_and_after_a_resume(tmp_path: Path) -> None:
    calm = short_run(tmp_path / "calm", **SECTIONS)
    short_run(tmp_path / "resumed", **SECTIONS | {"rounds": 2, "clients": {"actors": 1}})
    resumed = short_run(tmp_path / "resumed", resume=True, **SECTIONS)
    assert resumed.summary["model_sha256"] == calm.summary["model_sha256"]
    assert calm.summary["final"]["eval/accuracy"] > 0.7


@pytest.mark.usefixtures("cluster")
def test_another_actor_gives_the_same_update_when_the_first_has_died() -> None:
    prepared = prepare(build_config({**SHORT, **SECTIONS}))
    assert prepared.root is not None
    assert prepared.model is not None
    roots = Roots(prepared.config, prepared.root, prepared.model.facts, len(prepared.names), {})
    roots.wait_ready()
    globals_ = ray.put(prepared.model.weights.take())
    expected = roots.begin(0, globals_).update()
    ray.kill(roots._actor)
    np.testing.assert_array_equal(roots.begin(0, globals_).update(), expected)
