"""Figures of a round do not depend on which actor trained whom, or on who was done first."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientReport, ClientTask, RoundTask
from fedray.clients.pool import RoundLog
from fedray.clients.terms import Site, make_terms
from fedray.config import Config
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.rounds.books import Authorization
from fedray.rounds.round_metrics import mean_over_records, round_metrics
from fedray.rounds.steps import StepPlan

CLIENTS = 12


def config_of(engine: str) -> Config:
    return build_config(
        {
            "name": "m",
            "rounds": 1,
            "data": {"source": "python:nowhere:data"},
            "model": {"kind": "mlp", "hidden": [9]},
            "training": {"lr": 0.1, "batch_size": 8, "epochs": 3, "engine": engine},
        }
    )


def test_the_mean_loss_has_the_same_bits_in_any_order() -> None:
    draws = np.random.default_rng(0)
    config = config_of("plain")
    reports = [
        ClientReport(k, f"c{k}", "done", records=int(draws.integers(1, 500)), loss=float(draws.lognormal(0, 3))) for k in range(CLIENTS * 4)
    ]
    found = set()
    for _ in range(20):
        order = [reports[k] for k in draws.permutation(len(reports))]
        found.add(round_metrics(config, 0, Authorization(0, []), RoundLog(order), len(order), StepPlan([]), False)["train/loss_mean"])
    assert len(found) == 1
    right = sum(r.records * (r.loss or 0.0) for r in reports) / sum(r.records for r in reports)
    assert found.pop() == pytest.approx(right, rel=1e-12)


def test_a_mean_that_is_not_defined_is_no_error() -> None:
    assert math.isnan(mean_over_records([(1.0, 3), (math.inf, 2), (-math.inf, 2)]))
    assert math.isnan(mean_over_records([(1.0, 0)]))


@pytest.mark.parametrize("engine", ["plain", "lockstep"])
def test_a_clients_loss_has_the_same_bits_whoever_it_is_trained_beside(engine: str) -> None:
    draws = np.random.default_rng(1)
    sizes = draws.integers(3, 40, CLIENTS)
    x, y = draws.normal(size=(sizes.sum(), 7)).astype(np.float32), draws.integers(0, 3, sizes.sum())
    names = [f"c{k}" for k in range(CLIENTS)]
    federation = Federation(names, Records(x, y), np.concatenate([[0], np.cumsum(sizes)]), None, None, None, 3)
    config = config_of(engine)
    model = build_model(config.model, (7,), 3, 0)
    weights = get_vector(model, Layout.of(model))
    seen: list[dict[str, float | None]] = []
    for share in (1, 2, 5, CLIENTS):  # clients that an actor is given at once
        host = ClientHost(
            make_terms(config, make_groups(config, names)[0], None, first_model(config.model, (7,), 3, config.seed)[1]),
            Site(device="cpu"),
            federation,
        )
        host.ready()
        order = draws.permutation(CLIENTS)
        losses: dict[str, float | None] = {}
        for start in range(0, CLIENTS, share):
            tasks = [ClientTask(int(k), names[k]) for k in order[start : start + share]]
            losses |= {r.name: r.loss for r in host.train(RoundTask(0, float(sizes.sum())), weights, tasks)}
        seen.append(losses)
    assert all(losses == seen[0] for losses in seen[1:])
    assert all(loss is not None and math.isfinite(loss) for loss in seen[0].values())
