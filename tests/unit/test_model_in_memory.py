"""How often the global model lies in memory: once in the object store between rounds, from where the command has put it on."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from virtualray import Ref, VirtualRay, drive

from fedray.aggregation.rule import make_rule
from fedray.algorithms.algorithm import make_server
from fedray.config import Config
from fedray.configfile import build_config
from fedray.experiment import wiring
from fedray.experiment.listener import Events
from fedray.experiment.wiring import Wiring
from fedray.holder import Holder
from fedray.planning.preparation import prepare
from fedray.rounds import broadcast
from fedray.rounds.broadcast import Broadcast
from fedray.runfiles import RunFiles


def config(**sections: Any) -> Config:
    """A model of 4 MB, above a million weights, whose updates are added up without being made whole."""
    raw = {
        "name": "t",
        "rounds": 4,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}, "holdout": {"fraction": 0.0}},
        "model": {"kind": "mlp", "hidden": [14_000]},
        "training": {"lr": 0.1, "batch_size": 10, "steps": 1},
        "evaluation": {"metrics": []},
        "tracking": {"enabled": False},
    }
    return build_config({**raw, **sections})


class Weighed(VirtualRay):
    """Notes what is in memory whenever something is put into the store: bytes that were allocated since the first time, and their peak."""

    held: list[tuple[int, int]]

    def put(self, value: Any) -> Ref:
        if not tracemalloc.is_tracing():
            self.held = []
            tracemalloc.start()
        else:
            self.held.append(tracemalloc.get_traced_memory())
        tracemalloc.reset_peak()
        return super().put(value)


def test_new_globals_are_put_into_the_store_when_no_others_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Weighed] = []

    def start(seconds: Any) -> Weighed:
        made.append(Weighed(seconds))
        return made[0]

    try:
        model = drive(config(), tmp_path, lambda client: 1.0, 1, monkeypatch, start)[2]
    finally:
        tracemalloc.stop()
    held, most = np.array(made[0].held).T / model.nbytes
    assert len(held) == 4
    assert held.max() < 1.1  # the new ones
    assert most.max() < 1 + 2 + 2 + 0.5  # the globals, an actor's sum, and the driver's own, which is empty


@pytest.mark.parametrize("kind", ["fedavg", "fedprox"])  # whose only field is the model
def test_the_first_globals_stay_where_the_command_has_put_them(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = VirtualRay(lambda client: 1.0)
    for module in (wiring, broadcast):
        monkeypatch.setattr(module, "ray", ray)
    chosen = config(algorithm={"kind": kind})
    prepared = prepare(chosen)
    model = prepared.model
    assert model is not None
    there = ray.put(model.weights.take())
    parts = Wiring(prepared, [], Holder(there), cast(Any, None), RunFiles(tmp_path), Events(), threading.Event())
    begin = parts._begin(None, model, make_server(chosen.server), make_rule(chosen.aggregation))
    sent = Broadcast(0, begin.globals, begin.in_store)
    sent.share(0)
    assert sent.newest is there
    assert np.shares_memory(sent.globals, there.value)
