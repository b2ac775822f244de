"""McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, on MNIST.

Table 2 and its text: with C = 0.1 and IID clients the 2NN (E = 1, B = 10) reaches 97 % test accuracy
in 87 rounds, the CNN (E = 5, B = 10) 99 % in 20 rounds. The curves of the last run are kept in ``curves/``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT
from published import curve, keep

import fedray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


def rounds_to(accuracies: list[float], target: float) -> int | None:
    return next((i + 1 for i, a in enumerate(accuracies) if a >= target), None)


@pytest.mark.parametrize(
    ("name", "target", "within", "settings"),
    [
        ("mnist-2nn", 0.97, 87, ["rounds=87"]),
        ("mnist-cnn", 0.99, 40, ["rounds=40", "model.kind=fedavg_cnn", "training.epochs=5"]),
    ],
)
def test_rounds_to_accuracy(name: str, target: float, within: int, settings: list[str], real_data: Path, tmp_path: Path) -> None:
    overrides = [f"data.source=npz:{real_data / 'mnist.npz'}", "ray.address=local", *settings]
    result = fedray.run(ROOT / "configs" / "mnist.yaml", overrides=overrides, output=str(tmp_path / "run"))
    accuracies = curve(result, "eval/accuracy")
    reached = rounds_to(accuracies, target)
    keep(name, result, {"target": target, "paper_rounds": {"mnist-2nn": 87, "mnist-cnn": 20}[name], "rounds_to_target": reached})
    assert reached is not None, f"best was {max(accuracies):.4f}"
    assert reached <= within
