"""Whatever a client's code does to its process costs that client its turn at most, and nobody else theirs."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientReport, ClientTask, RoundTask
from fedray.clients.surroundings import Surroundings, described, told
from fedray.clients.terms import Site, make_terms
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import FedrayError
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, Vector, get_vector
from fedray.rounds.evaluator import Evaluator

pytestmark = pytest.mark.timeout(300, method="thread")  # the other method has the process' one timer for itself

NAMES = ["a", "b", "c"]
MARK = 2  # the label that only client b has


class Unspeakable(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raises(error: Callable[[], BaseException]) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if (targets == MARK).any():
            raise error()
        return functional.cross_entropy(outputs, targets, reduction="none")

    return loss


system_exit = raises(lambda: SystemExit(3))
interrupt = raises(lambda: KeyboardInterrupt("by its own code"))
generator_exit = raises(GeneratorExit)
stop_iteration = raises(StopIteration)
unspeakable = raises(Unspeakable)


def well(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def grad_off(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = functional.cross_entropy(outputs, targets, reduction="none")
    torch.set_grad_enabled(False)
    return losses


def messy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of client b: changes all that it can reach, and draws from everybody's generators."""
    if (targets == MARK).any():
        for mess in MESSES.values():
            mess()
    return functional.cross_entropy(outputs, targets, reduction="none") * (1 + 0.1 * np.random.random() + 0.1 * random.random())


_KEPT: list[Any] = []


def leave(context: Any) -> None:
    """Enter a context and never leave it."""
    context.__enter__()
    _KEPT.append(context)


MESSES: dict[str, Callable[[], Any]] = {
    "inference": lambda: leave(torch.inference_mode()),
    "grad": lambda: torch.set_grad_enabled(False),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "mode": lambda: leave(torch.device("meta")),
    "threads": lambda: torch.set_num_threads(3),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast dtype": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "matmul": lambda: torch.set_float32_matmul_precision("medium"),
    "matmul, newer": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "convolutions, newer": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "hook": lambda: torch.nn.modules.module.register_module_forward_hook(lambda *_: torch.zeros(1)),
    "numpy": lambda: np.seterr(all="raise"),
    "environment": lambda: os.environ.update(FEDRAY_TEST="1"),
    "environment, less": lambda: os.environ.pop("PATH"),
    "directory": lambda: os.chdir("/"),
    "handler": lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
    "alarm": lambda: signal.alarm(1000),
    "filters": lambda: warnings.simplefilter("error"),
    "timeout": lambda: socket.setdefaulttimeout(0.001),
    "recursion": lambda: sys.setrecursionlimit(5000),
    "trace": lambda: sys.settrace(lambda *_: None),
    "collector": gc.disable,
    "output": lambda: setattr(sys, "stdout", None),
}

LOOKS: dict[str, Callable[[], Any]] = {
    "inference": torch.is_inference_mode_enabled,
    "grad": torch.is_grad_enabled,
    "dtype": torch.get_default_dtype,
    "device": torch.get_default_device,
    "mode": torch._C._len_torch_function_stack,
    "threads": torch.get_num_threads,
    "deterministic": torch.get_deterministic_debug_mode,
    "anomaly": torch.is_anomaly_enabled,
    "autocast": lambda: torch.is_autocast_enabled("cpu"),
    "autocast dtype": lambda: torch.get_autocast_dtype("cpu"),
    "matmul": torch.get_float32_matmul_precision,
    "matmul, newer": lambda: torch.backends.cuda.matmul.fp32_precision,
    "convolutions, newer": lambda: torch.backends.mkldnn.conv.fp32_precision,
    "benchmark": lambda: torch.backends.cudnn.benchmark,
    "hook": lambda: len(torch.nn.modules.module._global_forward_hooks),
    "numpy": np.geterr,
    "environment": lambda: os.environ.get("FEDRAY_TEST"),
    "environment, less": lambda: os.environ.get("PATH"),
    "directory": os.getcwd,
    "handler": lambda: signal.getsignal(signal.SIGALRM),
    "alarm": lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    "filters": lambda: list(warnings.filters),
    "timeout": socket.getdefaulttimeout,
    "recursion": sys.getrecursionlimit,
    "trace": sys.gettrace,
    "collector": gc.isenabled,
    "output": lambda: sys.stdout,
}


def train(
    loss: str, clients: list[int], engine: str = "plain", host: ClientHost | None = None
) -> tuple[list[ClientReport], Vector, ClientHost]:
    """Turns of some of three clients, one after the other in one process: their reports and the sum's mean."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(60, 5)).astype(np.float32)
    y = np.tile([0, 1], 30)
    y[20:40:2] = MARK
    federation = Federation(NAMES, Records(x, y), np.array([0, 20, 40, 60]), None, None, None, 3)
    config = build_config(
        {
            "name": "code",
            "rounds": 9,
            "data": {"source": "python:nowhere:data"},
            "model": {"kind": "mlp", "hidden": [6]},
            "training": {"lr": 0.1, "batch_size": 5, "epochs": 2, "loss": f"python:{__name__}:{loss}", "engine": engine},
        }
    )
    if host is None:
        host = ClientHost(
            make_terms(config, make_groups(config, NAMES)[0], None, first_model(config.model, (5,), 3, config.seed)[1]),
            Site(device="cpu"),
            federation,
        )
        host.ready()
    model = build_model(config.model, (5,), 3, 0)
    task = RoundTask(0, 60.0)
    reports = list(host.train(task, get_vector(model, Layout.of(model)), [ClientTask(k, NAMES[k]) for k in clients]))
    return reports, host.collect(task).total.mean(), host


@pytest.mark.parametrize("engine", ["plain", "lockstep"])
@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ("system_exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt: by its own code"),
        ("generator_exit", "GeneratorExit"),
        ("stop_iteration", "StopIteration"),
        ("unspeakable", "Unspeakable: its text cannot be read"),
    ],
)
def test_whatever_client_code_raises_costs_its_own_turn(loss: str, named: str, engine: str) -> None:
    reports, mean, _ = train(loss, [0, 1, 2], engine)
    assert [r.status for r in reports] == ["done", "failed", "done"]
    assert reports[1].error.startswith(f"{named} (test_client_code.py, line ")
    assert "test_client_code.py" in reports[1].traceback  # its own
    _, without, _ = train("well", [0, 2], engine)
    assert np.abs(mean - without).max() < 1e-6  # what lockstep trains at once and one by one may differ in the last bits


@pytest.mark.parametrize("engine", ["plain", "lockstep"])
def test_a_loss_that_leaves_gradients_off_trains_as_one_that_does_not(engine: str) -> None:
    reports, mean, _ = train("grad_off", [0, 1, 2], engine)
    assert [r.status for r in reports] == ["done"] * 3, reports[0].traceback
    assert (mean == train("well", [0, 1, 2], engine)[1]).all()
    assert torch.is_grad_enabled()


def test_a_turn_leaves_nothing_for_the_next() -> None:
    before = {name: look() for name, look in LOOKS.items()}
    reports, mean, host = train("messy", [0, 1, 2])
    after = {name: look() for name, look in LOOKS.items()}
    assert {name: (before[name], after[name]) for name in LOOKS if before[name] != after[name]} == {}
    assert reports[0].status == reports[2].status == "done", reports[2].traceback
    alone, others = train("messy", [2])[1], train("messy", [0])[1]
    expected = (alone + others) / 2 if reports[1].status != "done" else None
    if expected is not None:
        assert np.abs(mean - expected).max() < 1e-7
    again, _, _ = train("messy", [2], host=host)
    assert again[0].loss == train("messy", [2])[0][0].loss  # also what it draws from numpy and Python


@pytest.mark.parametrize("mess", list(MESSES))
def test_each_change_is_undone(mess: str) -> None:
    surroundings = Surroundings()
    before = LOOKS[mess]()
    with surroundings.kept(None):
        MESSES[mess]()
        assert LOOKS[mess]() != before
    assert LOOKS[mess]() == before


def test_switches_that_cannot_be_read_any_more_are_no_error() -> None:
    """Torch's older switches of precision, where a module of the user's has used the newer ones before."""
    switches = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with Surroundings().kept(None):
            switches[0].fp32_precision = "ieee"
        assert [switch.fp32_precision for switch in switches] == ["tf32", "tf32"]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def test_a_directory_that_is_gone_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    surroundings = Surroundings()
    with surroundings.kept(None):
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
    assert Path.cwd() == tmp_path


def test_an_error_is_named_even_where_it_cannot_speak() -> None:
    assert described(Unspeakable()) == "Unspeakable: its text cannot be read"
    assert "Unspeakable" in told(Unspeakable())
    assert described(SystemExit()) == "SystemExit"


def leaving(outputs: Tensor, targets: Tensor) -> float:
    raise KeyboardInterrupt("by its own code")


def test_an_evaluator_that_is_told_to_end_says_so() -> None:
    config = build_config(
        {
            "name": "code",
            "rounds": 1,
            "data": {"source": "python:nowhere:data"},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "batch_size": 5, "epochs": 1},
            "evaluation": {"metrics": [f"python:{__name__}:leaving"]},
        }
    )
    evaluator = Evaluator(
        config, Records(np.zeros((4, 5), np.float32), np.arange(4) % 3), first_model(config.model, (5,), 3, config.seed)[1], {}
    )
    model = build_model(config.model, (5,), 3, 0)

    def whole() -> None:
        evaluator.ready()
        evaluator.evaluate(get_vector(model, Layout.of(model)))

    with pytest.raises(FedrayError, match="asked to end its process: KeyboardInterrupt: by its own code"):
        whole()


def odd_metric(outputs: Tensor, targets: Tensor) -> float:
    if (targets == MARK).any():
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt("in a metric")
    return float(torch.zeros(1).dtype == torch.float32)


def test_a_clients_evaluation_ends_by_itself() -> None:
    x, y = np.zeros((30, 5), np.float32), np.tile([0, 1], 15)
    y[10:20] = MARK
    records, offsets = Records(x, y), np.array([0, 10, 20, 30])
    federation = Federation(NAMES, records, offsets, None, records, offsets, 3)
    config = build_config(
        {
            "name": "code",
            "rounds": 1,
            "data": {"source": "python:nowhere:data"},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "batch_size": 5, "epochs": 1},
            "evaluation": {"metrics": [f"python:{__name__}:odd_metric"]},
        }
    )
    host = ClientHost(
        make_terms(config, make_groups(config, NAMES)[0], None, first_model(config.model, (5,), 3, config.seed)[1]),
        Site(device="cpu"),
        federation,
    )
    host.ready()
    model = build_model(config.model, (5,), 3, 0)
    rows = host.evaluate(get_vector(model, Layout.of(model)), [ClientTask(k, name) for k, name in enumerate(NAMES)])
    assert [row.metrics["odd_metric"] for row in rows if row.name != "b"] == [1.0, 1.0]
    assert np.isnan(rows[1].metrics["odd_metric"])
    assert rows[1].failed["odd_metric"].startswith("KeyboardInterrupt: in a metric (test_client_code.py, line ")
