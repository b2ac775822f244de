"""What compression costs on MNIST: how accurate a model is after as many rounds as with whole updates, and how many bytes an update takes.

Ten dedicated clients, each of which sends a part of its own, train the 2NN of McMahan et al. 2017 for one epoch a round. Papers: Stich et al.
2018 (topk, randk), Karimireddy et al. 2019 (sign), Alistarh et al. 2017 (qsgd), Vargaftik et al. 2021 (drive), Caldas et al. 2018 (the way down).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from published import curve, keep

import fedray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

ROUNDS = 40
PARAMETERS = 199_210
SETTINGS: dict[str, Any] = {
    "rounds": ROUNDS,
    "data.partition.clients": 10,
    "clients.placement": "dedicated",
    "clients.resources.cpu": 0.1,
    "clients.node_sums": "false",
    "cohort.fraction": 1.0,
    "training.batch_size": 100,
    "training.lr": 0.2,
    "evaluation.every": 10,
    "tracking.enabled": "false",
    "ray.address": "local",
}


@dataclass(frozen=True)
class Case:
    """A stage, and what it must reach.

    Attributes:
        kind: of the stage.
        points: accuracy that it may cost, as a share.
        times: how many times fewer bytes an update takes.
        keys: the stage's arguments.
        parts: how many times fewer bytes travel as parts of one client each.
    """

    kind: str
    points: float
    times: float
    keys: dict[str, Any] = field(default_factory=dict)
    parts: float = 1.0


CASES = {
    "topk": Case("topk", 0.01, 50, {"share": 0.01}, parts=50),
    "randk": Case("randk", 0.01, 10, {"share": 0.1}, parts=6.6),
    "randk-feedback": Case("randk", 0.02, 10, {"share": 0.1, "feedback": "true"}, parts=6.6),
    "sign": Case("sign", 0.01, 30),
    "qsgd": Case("qsgd", 0.005, 7.8, {"bits": 4}),
    "drive": Case("drive", 0.01, 30),
    "half": Case("half", 0.002, 2),
    "half-bfloat16": Case("half", 0.002, 2, {"format": "bfloat16"}),
}


#: What the model may be coded in on its way down.
DOWN = {
    "half": Case("half", 0.002, 2),
    "qsgd-8-bits": Case("qsgd", 0.002, 3.9, {"bits": 8}),
    "qsgd-4-bits": Case("qsgd", 0.01, 7.8, {"bits": 4}),
}


def trained(data: Path, output: Path, case: Case | None = None, section: str = "compression") -> fedray.Result:
    """A run with what a case names in a section, or with whole updates and models."""
    named = {} if case is None else {"kind": case.kind, **case.keys}
    overrides = {
        "data.source": f"npz:{data / 'mnist.npz'}",
        **SETTINGS,
        **{f"{section}.{key}": value for key, value in named.items()},
    }
    return fedray.run(ROOT / "configs" / "mnist.yaml", overrides=[f"{key}={value}" for key, value in overrides.items()], output=str(output))


def check(name: str, result: fedray.Result, whole: fedray.Result) -> None:
    """Keep the figures of a case, and hold them against its bounds."""
    case = CASES[name]
    accuracy, accuracy_whole = (run.summary["final"]["eval/accuracy"] for run in (result, whole))
    parts, parts_whole = (run.summary["performance"]["bytes_up"] for run in (result, whole))
    update = round(curve(result, "traffic/sent_mb")[0] * 1e6)
    facts = {"accuracy_whole": accuracy_whole, "bytes_up": parts, "bytes_up_whole": parts_whole, "bytes_of_an_update": update}
    keep(f"mnist-{name}", result, facts)
    assert accuracy > accuracy_whole - case.points
    assert parts <= parts_whole / case.parts  # as they travelled
    assert update <= parts_whole / 2 / (10 * ROUNDS) / case.times  # an update has half the bytes of a part


@pytest.fixture(scope="module")
def whole(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> fedray.Result:
    """The run with whole updates."""
    return trained(real_data, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", CASES)
def test_fewer_bytes_cost_little_accuracy(name: str, whole: fedray.Result, real_data: Path, tmp_path: Path) -> None:
    check(name, trained(real_data, tmp_path, CASES[name]), whole)


def check_down(name: str, result: fedray.Result, accuracy_whole: float) -> None:
    """Keep the figures of a coded model, and hold them against its bounds: accuracy, and the bytes that travelled."""
    down, whole = result.summary["performance"]["bytes_down"], 4 * ROUNDS * PARAMETERS
    keep(f"mnist-down-{name}", result, {"accuracy_whole": accuracy_whole, "bytes_down": down, "bytes_down_whole": whole})
    assert result.summary["final"]["eval/accuracy"] > accuracy_whole - DOWN[name].points
    assert down <= whole / DOWN[name].times


@pytest.mark.parametrize("name", DOWN)
def test_a_coded_model_costs_little_accuracy(name: str, whole: fedray.Result, real_data: Path, tmp_path: Path) -> None:
    assert whole.summary["performance"]["bytes_down"] == 4 * ROUNDS * PARAMETERS
    check_down(name, trained(real_data, tmp_path, DOWN[name], "download"), whole.summary["final"]["eval/accuracy"])
