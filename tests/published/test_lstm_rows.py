"""DP-SGD of an LSTM that reads MNIST's images row after row: ``book`` learns as Opacus' hooks do with its own LSTM, and is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published import curve, keep
from torch import Tensor, nn

import fedray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

HIDDEN = 64


class Theirs(nn.Module):
    """The built-in ``lstm`` with Opacus' layer."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        from opacus.layers import DPLSTM

        super().__init__()
        self.lstm, self.out = DPLSTM(input_shape[-1], HIDDEN, batch_first=True), nn.Linear(HIDDEN, outputs)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.out(self.lstm(x.reshape(len(x), *x.shape[-2:]))[0][:, -1])
        return last


def train(name: str, model: dict[str, Any], engine: str, data: Path, output: Path) -> fedray.Result:
    config = {
        "name": name,
        "seed": 1,
        "rounds": 5,
        "data": {
            "source": f"npz:{data / 'mnist.npz'}",
            "classes": 10,
            "partition": {"kind": "iid", "clients": 2},
            "normalize": {"kind": "constants", "mean": 0.1307, "std": 0.3081},
        },
        "model": model,
        "training": {"lr": 1.0, "sampling_rate": 1 / 125, "expected_batch": 240, "steps": 125, "physical_batch": 512},
        "privacy": {"regime": "record", "noise_multiplier": 1.0, "clip": 1.0, "delta": 1e-6},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 0},
        "ray": {"address": "local", "cpus": 2},
    }
    result = fedray.run(config, output=str(output))
    assert result.summary["engine"] == engine
    return result


def test_book_learns_as_hooks_do(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where actors find the model
    mine = train("mnist-lstm", {"kind": "lstm", "hidden": HIDDEN}, "book", real_data, tmp_path / "book")
    theirs = train("mnist-lstm-hooks", {"kind": "python:test_lstm_rows:Theirs"}, "hooks", real_data, tmp_path / "hooks")
    accuracies = [curve(result, "eval/accuracy")[-1] for result in (mine, theirs)]
    seconds = [sum(curve(result, "time/train_s")[1:]) for result in (mine, theirs)]
    keep(
        "mnist-lstm",
        mine,
        {"accuracy": accuracies[0], "accuracy_of_hooks": accuracies[1], "seconds": seconds[0], "seconds_of_hooks": seconds[1]},
    )
    assert accuracies[0] > 0.8  # five rounds are the beginning of the curve
    assert abs(accuracies[0] - accuracies[1]) < 0.03
    assert seconds[0] < seconds[1]
