"""The client host, the engines and the evaluator on every device there is, against the CPU.

On a machine without a GPU the device-dependent branches still run, on :mod:`standin`.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import standin
import torch
from elsewhere import DEVICE
from rounding import apart, steps_apart, terms_of
from torch import Tensor

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost, device_of_actor
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Config, Training
from fedray.configfile import build_config
from fedray.data.dataset import client_names
from fedray.data.records import Federation, Records
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, Vector, get_vector
from fedray.privacy.recordplan import plan_record
from fedray.rounds import evaluator
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import SECRET, DpStep, LocalJob, secretly_seed_torch
from fedray.training.losses import cross_entropy

STANDIN = DEVICE.type == standin.NAME
HAS_STANDIN = hasattr(standin.backend_registration, "_setup_privateuseone_for_python_backend")  # torch 2.9 and later
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
ON_STANDIN = pytest.mark.skipif(not STANDIN, reason="runs in the process of test_all_of_these_on_a_second_device")
DEVICES = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda:0", marks=GPU), pytest.param("standin:0", marks=ON_STANDIN)], ids=["cpu", "cuda", "standin"]
)
PRIVATE = pytest.mark.parametrize("engine", [book, hooks, ghost], ids=["book", "hooks", "ghost"])
CLASSES = 4


@pytest.fixture(autouse=True)
def _plain_rounding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One CPU thread, and no TF32 in the engine without privacy, which leaves that choice to torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.set_num_threads(threads)


def federation(shape: tuple[int, ...], records: int = 24, clients: int = 2) -> Federation:
    """Random records in read-only memory, as the object store gives them."""
    draws = np.random.default_rng(0)
    x = draws.standard_normal((records * clients, *shape), dtype=np.float32)
    y = draws.integers(0, CLASSES, records * clients)
    for array in (x, y):
        array.flags.writeable = False
    offsets = np.arange(clients + 1, dtype=np.int64) * records
    return Federation([f"c{k}" for k in range(clients)], Records(x, y), offsets, None, Records(x, y), offsets, CLASSES)


def settings(model: str, engine: str, **training: Any) -> Config:
    private = engine != "plain"
    steps = {"sampling_rate": 0.5, "expected_batch": 12.0} if private else {"batch_size": 8}
    return build_config(
        {
            "name": "devices",
            "seed": 5,
            "rounds": 2,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 2}},
            "model": {"kind": model, **({"groups": 8} if model == "resnet18_gn" else {})},
            "training": {"lr": 0.1, "steps": 3, "engine": engine, "physical_batch": 7, **steps, **training},
            "privacy": {"regime": "record", "noise_multiplier": 0.8, "delta": 1e-3, "insecure_seed": 3} if private else {"regime": "none"},
        }
    )


def host_on(device: str, config: Config, data: Federation | None, client: ClientTask | None = None) -> ClientHost:
    """A host that is ready, as a plain object."""
    names = data.names if data is not None else [client.name if client else ""]
    group = make_groups(config, names)[0]
    plan = plan_record(config, group.training) if config.privacy.regime == "record" else None
    shape, outputs = (data.shape, CLASSES) if data is not None else ((64,), 10)
    facts = first_model(config.model, shape, outputs, config.seed)[1]
    host = ClientHost(make_terms(config, group, plan, facts), Site(None if data else config.data, client=client, device=device), data)
    assert host.ready().device == device
    return host


def weights_of(config: Config, shape: tuple[int, ...], outputs: int = CLASSES) -> Vector:
    model = build_model(config.model, shape, outputs, config.seed)
    vector = get_vector(model, Layout.of(model))
    vector.flags.writeable = False
    return vector


def everyone(data: Federation) -> list[ClientTask]:
    return [ClientTask(k, name) for k, name in enumerate(data.names)]


def round_of(host: ClientHost, data: Federation, weights: Vector, round_: int = 0) -> npt.NDArray[np.float64]:
    """The sum of the clients' updates; every client must have ended well."""
    task = RoundTask(round_, 1e3)
    for report in host.train(task, weights, everyone(data)):
        assert report.status == "done", report.traceback or report.error
    part = host.collect(task)
    assert part.clients == list(range(len(data.names)))
    return part.total.values * 2.0**-part.total.bits


@pytest.mark.slow
@pytest.mark.skipif(STANDIN or not HAS_STANDIN, reason="is that process, or torch is too old for it")
def test_all_of_these_on_a_second_device() -> None:
    """The tests below in a process where there is one."""
    environment = os.environ | {"FEDRAY_TEST_DEVICE": standin.NAME, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "standin", str(Path(__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


#: Distance between the sums over the norm of the CPU's: the same float32 arithmetic in another order, which layers amplify.
CASES = [
    ("softmax", (8,), "plain", 1e-5),
    ("softmax", (8,), "book", 1e-5),
    ("softmax", (8,), "hooks", 1e-5),
    ("softmax", (8,), "ghost", 1e-5),
    ("mlp", (8,), "ghost", 1e-4),
    ("opacus_cnn", (1, 16, 16), "plain", 1e-4),
    ("opacus_cnn", (1, 16, 16), "book", 1e-4),
    ("opacus_cnn", (1, 16, 16), "hooks", 1e-4),
    ("opacus_cnn", (1, 16, 16), "ghost", 1e-4),
    ("resnet18_gn", (3, 16, 16), "book", 1e-3),
    ("resnet18_gn", (3, 16, 16), "ghost", 1e-3),
]


@DEVICES
@pytest.mark.parametrize(("model", "shape", "engine", "tolerance"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_a_round_gives_what_the_cpu_gives(device: str, model: str, shape: tuple[int, ...], engine: str, tolerance: float) -> None:
    large = model == "resnet18_gn"
    if large and device == "cpu":
        pytest.skip("the smaller models show that the CPU repeats itself")
    data = federation(shape, *((4, 1) if large else (24, 2)))
    config = settings(model, engine, **({"steps": 1, "lr": 0.01} if large else {}))
    weights = weights_of(config, shape)
    given = weights.copy()
    reference = round_of(host_on("cpu", config, data), data, weights)
    host = host_on(device, config, data)
    found = round_of(host, data, weights)
    assert np.linalg.norm(found - reference) <= (0.0 if device == "cpu" else tolerance * np.linalg.norm(reference))
    assert np.array_equal(weights, given)
    assert {str(p.device) for p in host._trainer.model.parameters()} == {device}


@DEVICES
def test_evaluation_at_the_clients(device: str) -> None:
    data = federation((1, 16, 16))
    config = settings("opacus_cnn", "plain")
    weights = weights_of(config, data.shape)
    expected = host_on("cpu", config, data).evaluate(weights, everyone(data))
    found = host_on(device, config, data).evaluate(weights, everyone(data))
    assert [(r.name, r.records) for r in found] == [(r.name, r.records) for r in expected]
    for row, reference in zip(found, expected, strict=True):
        assert row.metrics == pytest.approx(reference.metrics, rel=1e-4)


@DEVICES
def test_the_evaluator_evaluates_on_its_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = federation((1, 16, 16))
    config = settings("opacus_cnn", "plain")
    weights = weights_of(config, data.shape)
    figures = []
    for name in ("cpu", device):
        monkeypatch.setattr(evaluator, "device_of_actor", lambda name=name: name)
        found = evaluator.Evaluator(config, data.train, first_model(config.model, data.shape, CLASSES, config.seed)[1], {})
        found.ready()
        figures.append(found.evaluate(weights)[0])
    assert {str(p.device) for p in found._model.parameters()} == {device}
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)


@DEVICES
def test_preflight_passes_and_runs_on_the_device_that_trains(device: str) -> None:
    data = federation((4,))
    host = host_on(device, settings("softmax", "hooks"), data)
    seen, real = set(), host._trainer.engine

    def spy(model: Any, x: Tensor, y: Tensor, job: LocalJob) -> Any:
        seen.add(str(x.device))
        return real(model, x, y, job)

    host._trainer.engine = spy
    assert host.preflight() <= 1.0 + 1e-5
    assert seen == {device}


@DEVICES
def test_a_dedicated_client_moves_its_records_once(device: str) -> None:
    config = settings("softmax", "hooks")
    client = ClientTask(1, client_names(config.data, config.seed)[1])
    host = host_on(device, config, None, client)
    weights = weights_of(config, (64,), 10)
    task = RoundTask(0, 1e4)
    kept = []
    for _ in range(2):
        (report,) = host.train(task, weights, [client])
        assert report.status == "done", report.traceback or report.error
        kept.append(host._trainer._resident)
    if device == "cpu":
        assert kept == [None, None]  # it has them already
    else:
        assert kept[0] is not None
        assert kept[0] is kept[1]
        assert [str(t.device) for t in kept[0]] == [device, device]
        assert len(kept[0][0]) == report.records


@DEVICES
def test_two_hosts_share_a_device(device: str) -> None:
    data = federation((1, 16, 16))
    config = settings("opacus_cnn", "ghost", steps=2)
    weights = weights_of(config, data.shape)
    hosts = [host_on(device, config, data) for _ in range(2)]
    task = RoundTask(0, 1e3)
    for client in everyone(data):  # in turns
        for host in hosts:
            (report,) = host.train(task, weights, [client])
            assert report.status == "done", report.traceback or report.error
    totals = [host.collect(task).total for host in hosts]
    scale = np.abs(totals[0].values).max()
    assert np.abs(totals[0].values - totals[1].values).max() <= 1e-4 * scale


class Silence:
    """Every record is drawn, and the noise is zero."""

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)


def one_step(physical_batch: int = 256, expected_batch: float = 10.0) -> LocalJob:
    training = Training(lr=1.0, sampling_rate=1.0, steps=1, expected_batch=expected_batch, physical_batch=physical_batch)
    return LocalJob(training, 1.0, cross_entropy, np.random.default_rng(0), Silence(), DpStep(0.0, 1.0))


@DEVICES
@PRIVATE
def test_a_record_that_is_not_a_number_adds_nothing(device: str, engine: Any) -> None:
    config = settings("opacus_cnn", "hooks")
    data = federation((1, 16, 16), clients=1)
    x, y = torch.from_numpy(data.train.x.copy()), torch.from_numpy(data.train.y.copy())
    x[3, 0, 2, 2], x[9] = float("nan"), float("inf")
    good = [i for i in range(len(x)) if i not in (3, 9)]
    moved = []
    for keep in (list(range(len(x))), good):
        model = build_model(config.model, data.shape, CLASSES, config.seed).to(device)
        before = get_vector(model, Layout.of(model))
        engine(model, x[keep].to(device), y[keep].to(device), one_step())
        moved.append(get_vector(model, Layout.of(model)) - before)
    assert np.linalg.norm(moved[1]) > 0.1
    assert apart(moved[0], moved[1]) <= steps_apart(before, before + moved[1], terms_of(model, records=x.numel()), steps=1)


@DEVICES
@PRIVATE
@pytest.mark.parametrize("setting", ["none", "older", "newer"])
def test_private_steps_round_to_full_float32_whatever_the_model_set(device: str, engine: Any, setting: str) -> None:
    """A model's module may turn TF32 on, by torch's older switch or by its newer ones, which do not bear each other."""
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]
    seen: list[list[str]] = []

    def state() -> list[str]:
        return [place.fp32_precision for place in places]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(state())
        return cross_entropy(outputs, targets)

    data = federation((8,), clients=1)
    model = build_model(settings("softmax", "hooks").model, data.shape, CLASSES, 0).to(device)
    x, y = torch.from_numpy(data.train.x.copy()).to(device), torch.from_numpy(data.train.y.copy()).to(device)
    before, older = state(), torch.get_float32_matmul_precision()
    try:
        if setting == "older":
            torch.set_float32_matmul_precision("medium")
        elif setting == "newer":
            backends.fp32_precision = "tf32"
        given = state()
        job = one_step()
        engine(model, x, y, LocalJob(job.training, 1.0, loss, job.draws, job.noise, job.dp))
        assert state() == given
    finally:
        backends.fp32_precision = "none"
        torch.set_float32_matmul_precision(older)
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
    assert seen
    assert all(set(row) == {"ieee"} for row in seen)


@ON_STANDIN
def test_a_client_on_the_cpu_leaves_the_standin_alone() -> None:
    """Ray shows all GPUs of a node to actors that asked for none; such an actor must not so much as start their driver."""
    data = federation((4,))
    config = settings("softmax", "hooks")
    standin.CALLS.clear()
    host = host_on("cpu", config, data)
    host.preflight()
    round_of(host, data, weights_of(config, data.shape))
    host.evaluate(weights_of(config, data.shape), everyone(data))
    assert not standin.CALLS


@ON_STANDIN
def test_the_standin_refuses_to_be_mixed() -> None:
    """Else the tests on it would prove nothing."""
    there = torch.ones(3).to("standin:0")
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert (there + 1).cpu().tolist() == [2.0, 2.0, 2.0]


@ON_STANDIN
def test_a_secret_seeds_the_generators_of_whichever_device_is_trained_on() -> None:
    standin.CALLS.clear()
    secretly_seed_torch(bytes(range(256)) * (SECRET // 256 + 1), torch.device("standin:0"))
    assert standin.CALLS["manual_seed_all"] == 1


def test_outside_ray_the_device_is_the_cpu() -> None:
    assert device_of_actor() == "cpu"


@GPU
@pytest.mark.parametrize("engine", ["book", "hooks", "ghost"])
@pytest.mark.parametrize("model", ["opacus_cnn", "fedavg_cnn"])
def test_preflight_passes_with_a_gpu_s_convolutions(model: str, engine: str) -> None:
    data = federation((1, 28, 28))
    assert host_on("cuda:0", settings(model, engine), data).preflight() <= 1.0 + 1e-5


@GPU
def test_clipping_by_norms_takes_less_gpu_memory_than_a_gradient_for_each_record() -> None:
    """FedAvg's CNN: 128 gradients of 1.66 million float32 are 850 MB; the others need activations and a few gradients."""
    config = settings("fedavg_cnn", "hooks")
    data = federation((1, 28, 28), records=128, clients=1)
    x, y = torch.from_numpy(data.train.x.copy()).cuda(), torch.from_numpy(data.train.y.copy()).cuda()
    peaks = {}
    for name, engine in (("book", book), ("hooks", hooks), ("ghost", ghost)):
        model = build_model(config.model, data.shape, CLASSES, 0).cuda()
        engine(model, x[:2], y[:2], one_step())  # libraries take their workspace
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        engine(model, x, y, one_step())
        peaks[name] = torch.cuda.max_memory_allocated() - start
    assert peaks["hooks"] > 800e6
    assert max(peaks["book"], peaks["ghost"]) < 0.5 * peaks["hooks"]
