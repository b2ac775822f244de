"""Whatever a client's training does to the model, what leaves the client is within the clip norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import stillparts

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.privacy.clientplan import plan_clients
from fedray.privacy.release import Release

CLIENTS, CLIP, GRID = 10, 0.25, 40


def part_of(client: int, privacy: dict[str, Any]) -> tuple[np.ndarray, Release]:
    """What one client of ``stillparts`` sends after the wildest training, alone in a part."""
    data = stillparts.data(CLIENTS)
    names = list(data)
    x, y = (np.concatenate([data[n][i] for n in names]) for i in (0, 1))
    offsets = np.arange(CLIENTS + 1, dtype=np.int64) * 30
    federation = Federation(names, Records(x, y), offsets, None, None, None, 10)
    config = build_config(
        {
            "name": "wild",
            "rounds": 1,
            "data": {"source": "python:stillparts:data"},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": "python:stillparts:wild"},
            "algorithm": {"kind": "fedavg", "weights": "uniform"},
            "cohort": {"kind": "all", "min_clients": 2},
            "privacy": {"noise_multiplier": 2.0, "delta": 1e-3, "clip": CLIP, "insecure_seed": 1, **privacy},
        }
    )
    model = build_model(config.model, (100,), 10, 0)
    layout = Layout.of(model)
    release = Release(plan_clients(config, CLIENTS, layout.size, GRID), 1)
    release.begin(0)
    task = RoundTask(0, 1.0, release.stages(0), release.plan.sha256)
    host = ClientHost(
        make_terms(config, make_groups(config, names)[0], None, first_model(config.model, (100,), 10, config.seed)[1]), Site(), federation
    )
    host.ready()
    (report,) = host.train(task, get_vector(model, layout), [ClientTask(client, names[client])])
    assert report.status == "done", report.error
    assert report.records == 0  # their number is the client's own
    assert report.loss is None
    part = host.collect(task)
    return part.total.values.astype(np.float64) / 2.0**part.total.bits, release


@pytest.mark.parametrize("client", range(5))
def test_a_client_adds_at_most_the_clip_norm(client: int) -> None:
    sent, release = part_of(client, {"regime": "client", "adaptive_clip": {"bit_noise": 5.0}})
    assert np.linalg.norm(sent[:-1]) <= CLIP
    assert abs(sent[-1]) == 0.5
    tiny = client == 2
    assert (sent[-1] == 0.5) == tiny  # all but the tiny update were above the clip norm, or not finite
    if client in (0, 1):
        assert np.linalg.norm(sent[:-1]) > 0.99 * CLIP
    assert release.plan.clip == CLIP


@pytest.mark.parametrize("client", range(5))
def test_an_integer_update_is_a_clipped_one_with_noise(client: int) -> None:
    sent, release = part_of(client, {"regime": "distributed", "noise_multiplier": 1e-3, "mechanism": {"kind": "ddg", "scale": 1e4}})
    values = release._driver.release(sent.astype(np.int64), 0, 0.0, None)  # type: ignore[union-attr, arg-type]
    noise = 1e-3 * CLIP / np.sqrt(2)  # of one share; 6 standard deviations of its norm, and the rounding's
    rounding = np.sqrt(len(values)) / 1e4
    assert np.linalg.norm(values) <= np.hypot(CLIP + rounding, noise * (np.sqrt(len(values)) + 6))
