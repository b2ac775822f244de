"""Which device an actor trains on, and that an actor ends with its device. No GPU is needed: Ray and torch are told that there is one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedray.clients import devices, measuring, trainer
from fedray.clients.devices import device_of_actor
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.rounds import evaluator

LOST, FULL = torch.AcceleratorError("CUDA error: device-side assert triggered"), torch.AcceleratorError("CUDA error: out of memory")
NAMES = ["a", "b"]


@pytest.mark.parametrize(
    ("granted", "visible", "expected"),
    [
        ([], "0,1", "cpu"),
        (["3"], "3", "cuda:0"),  # what Ray does
        (["3", "5"], "3,5", "cuda:0"),
        (["3"], "2,3", "cuda:1"),  # where Ray may not
        (["3"], None, "cuda:3"),
        (["GPU-8f2"], "GPU-11a,GPU-8f2", "cuda:1"),
    ],
)
def test_an_actor_trains_on_the_gpu_that_it_was_given(
    granted: list[str], visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": granted})
    monkeypatch.setattr(devices, "ray", SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_of_actor() == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_actor() == "cpu"


class Ended(BaseException):
    """Instead of the process' end."""


@pytest.fixture(autouse=True)
def _ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(devices.os, "_exit", end)


def fails_with(error: Exception) -> Any:
    def fails(*_: Any) -> Any:
        raise error

    return fails


def federation() -> Federation:
    draws = np.random.default_rng(0)
    records, offsets = Records(draws.standard_normal((12, 4), dtype=np.float32), draws.integers(0, 3, 12)), np.array([0, 6, 12])
    return Federation(NAMES, records, offsets, None, records, offsets, 3)


def config(engine: str) -> Any:
    return build_config(
        {
            "name": "lost",
            "rounds": 1,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 2}},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "batch_size": 3, "epochs": 1, "engine": engine},
        }
    )


@pytest.mark.parametrize("engine", ["plain", "lockstep"])
def test_an_actor_ends_with_its_device_and_not_for_want_of_memory(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = config(engine), federation()
    facts = first_model(run.model, data.shape, 3, run.seed)[1]
    host = ClientHost(make_terms(run, make_groups(run, NAMES)[0], None, facts), Site(device="cpu"), data)
    host.ready()
    net = build_model(run.model, data.shape, 3, run.seed)
    weights, task, clients = get_vector(net, Layout.of(net)), RoundTask(0, 1e3), [ClientTask(k, name) for k, name in enumerate(NAMES)]

    def fail_with(error: Exception) -> None:
        monkeypatch.setattr(host._trainer, "engine", fails_with(error))
        monkeypatch.setattr(trainer, "train_crowd", fails_with(error))
        monkeypatch.setattr(measuring, "evaluate", fails_with(error))

    fail_with(LOST)
    with pytest.raises(Ended):
        host.train(task, weights, clients)
    with pytest.raises(Ended):
        host.evaluate(weights, clients)
    fail_with(FULL)
    reports = host.train(task, weights, clients)
    assert [r.status for r in reports] == ["failed", "failed"]
    assert all(r.error.startswith(f"AcceleratorError: {FULL}") for r in reports)
    assert all(np.isnan(list(row.metrics.values())).all() for row in host.evaluate(weights, clients))


@pytest.mark.parametrize(("error", "expected"), [(LOST, Ended), (FULL, RuntimeError)])
def test_the_evaluator_ends_with_its_device(error: Exception, expected: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = config("plain"), federation()
    found = evaluator.Evaluator(run, data.train, first_model(run.model, data.shape, 3, run.seed)[1], {})
    found.ready()
    net = build_model(run.model, data.shape, 3, run.seed)
    monkeypatch.setattr(evaluator, "evaluate", fails_with(error))
    with pytest.raises(expected):
        found.evaluate(get_vector(net, Layout.of(net)))
