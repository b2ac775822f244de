"""Learning rates over rounds."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from fedray.choices import Choice
from fedray.components import SCHEDULES
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.training.schedules import learning_rate


def rates(rounds: int, /, lr: float = 1.0, **section: object) -> list[float]:
    training = Training(lr=lr, batch_size=1, epochs=1, schedule=Choice(**section))
    return [learning_rate(training, r, rounds) for r in range(rounds)]


def torchs(scheduler: type, rounds: int, **arguments: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, **arguments)
    found = []
    for _ in range(rounds):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_are_torchs() -> None:
    assert rates(5, lr=0.3, kind="constant") == [0.3] * 5
    assert rates(9, kind="step", every=3, factor=0.5) == pytest.approx(torchs(torch.optim.lr_scheduler.StepLR, 9, step_size=3, gamma=0.5))
    assert rates(9, kind="exponential", factor=0.9) == pytest.approx(torchs(torch.optim.lr_scheduler.ExponentialLR, 9, gamma=0.9))
    cosine = torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 10, T_max=10, eta_min=0.1)
    assert rates(10, kind="cosine", floor=0.1) == pytest.approx(cosine)
    falling = torchs(torch.optim.lr_scheduler.LinearLR, 10, start_factor=1.0, end_factor=0.2, total_iters=10)
    assert rates(10, kind="linear", floor=0.2) == pytest.approx(falling)


def test_warmup_rises_to_the_full_rate() -> None:
    assert rates(5, lr=2.0, kind="linear_warmup", warmup=3) == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(2, kind="linear_warmup", warmup=0) == [1.0, 1.0]
    for kind in ("cosine", "linear"):
        warm = rates(7, kind=kind, warmup=3)
        assert warm[:4] == [0.25, 0.5, 0.75, 1.0]
        assert warm[3:] == pytest.approx(rates(4, kind=kind))
        assert rates(3, kind=kind, warmup=5) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


@pytest.mark.parametrize("kind", sorted(SCHEDULES.parts()))
def test_every_schedule_stays_within_the_rate_and_ends_where_it_should_beyond_the_plan(kind: str) -> None:
    needed = {"step": {"every": 2}, "exponential": {"factor": 0.9}, "linear_warmup": {"warmup": 2}}.get(kind, {})
    training = Training(lr=0.7, batch_size=1, epochs=1, schedule=Choice(kind=kind, **needed))
    for r in range(15):
        assert 0.0 <= learning_rate(training, r, 10) <= 0.7 + 1e-12


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "cosin"}, "training.schedule.kind.*Did you mean 'cosine'"),
        ({"kind": "step"}, "training.schedule.every"),
        ({"kind": "step", "every": 0}, "training.schedule.every: 0 is below 1"),
        ({"kind": "step", "every": 1, "factor": -1.0}, "training.schedule.factor"),
        ({"kind": "exponential", "factor": math.inf}, "training.schedule.factor"),
        ({"kind": "cosine", "floor": 1.5}, "training.schedule.floor"),
        ({"kind": "linear", "warmup": -1}, "training.schedule.warmup"),
        ({"kind": "constant", "factor": 2}, "training.schedule.factor: unknown"),
        ({"kind": "cosine", "rounds": 2}, "training.schedule.rounds: unknown"),
    ],
)
def test_wrong_schedules_are_refused(section: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rates(3, **section)


def test_users_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_schedules_for_test.py").write_text(
        "def half(round, rounds, by: float): return by * (round + 1) / rounds\ndef below(round, rounds): return -1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_schedules_for_test", raising=False)
    assert rates(2, kind="python:my_schedules_for_test:half", by=0.5) == [0.25, 0.5]
    with pytest.raises(ConfigError, match="factor of -1"):
        rates(2, kind="python:my_schedules_for_test:below")
