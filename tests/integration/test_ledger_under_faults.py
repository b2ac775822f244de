"""Whatever is killed whenever, the ledger never says less than what was really run.

What was really run is counted from outside: the model of these tests writes down each training step.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from processes import actors
from witness import CLIENTS, steps_seen

import fedray
from fedray.errors import FedrayError
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Gaussian, Poisson, rate
from fedray.privacy.ledger.verification import verify

pytestmark = pytest.mark.usefixtures("cluster")

Q, STEPS, ROUNDS, NOISE, DELTA = 0.9, 25, 6, 3.0, 1e-3


def config(log: Path) -> dict:
    return {
        "name": "witness",
        "seed": 1,
        "rounds": ROUNDS,
        "data": {"source": "python:witness:data", "classes": 3, "holdout": {"fraction": 0.0}},
        "model": {"kind": "python:witness:model", "log": str(log)},
        "clients": {"actors": 2, "resources": {"cpu": 1.0}, "restarts": 50},
        "cohort": {"kind": "all", "retries": 5},
        "training": {"lr": 0.1, "sampling_rate": Q, "expected_batch": 50.0, "steps": STEPS},
        "privacy": {"regime": "record", "noise_multiplier": NOISE, "delta": DELTA},
        "tracking": {"enabled": False},
    }


def step_epsilon(steps: int) -> float:
    return accountant.bound({Poisson(rate(Q), Gaussian(NOISE)): steps}, DELTA)


def compare(output: Path, log: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Epsilon by client: recomputed from the ledger's entries, and of the steps that were really run."""
    claimed = verify(output / "ledger" / "records.jsonl").epsilons(DELTA)
    seen = steps_seen(log)
    return claimed, {f"silo-{k}": step_epsilon(seen[f"silo-{k}"]) for k in range(CLIENTS)}


@pytest.mark.slow
def test_nothing_killed_the_ledger_is_exact(tmp_path: Path) -> None:
    result = fedray.run(config(tmp_path / "log"), output=str(tmp_path / "run"))
    assert result.status == "completed"
    claimed, real = compare(tmp_path / "run", tmp_path / "log")
    assert steps_seen(tmp_path / "log") == {f"silo-{k}": STEPS * ROUNDS for k in range(CLIENTS)}
    assert claimed == pytest.approx(real, rel=1e-9)
    assert result.summary["privacy"]["epsilon"] <= max(claimed.values())


def killed_once(directory: Path, victim: str, draw: random.Random) -> None:
    """Run, kill ``victim`` at a random moment of training, resume until done; then compare."""
    log, output = directory / "log", directory / "run"
    began = threading.Event()
    over = threading.Event()
    killed: list[int] = []

    def killer() -> None:
        began.wait(60)
        over.wait(draw.uniform(0.0, 0.8))
        while not over.is_set():
            found = actors(victim)
            if found:
                found[draw.randrange(len(found))].kill()
                killed.append(1)
                return

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        for attempt in range(3):
            try:
                result = fedray.run(
                    config(log),
                    output=str(output),
                    resume=attempt > 0,
                    callbacks=[lambda kind, value: began.set() if kind == "started" else None],
                )
                break
            except FedrayError as error:
                assert "the driver died" in str(error)
        else:
            raise AssertionError("the run did not end")
    finally:
        over.set()
        thread.join()
    assert result.status == "completed"
    assert killed
    claimed, real = compare(output, log)
    for client, epsilon in real.items():
        assert claimed[client] >= epsilon * (1 - 1e-9), f"{client} after killing {victim}"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ClientHost", "Experiment"])
def test_killed_once(victim: str, tmp_path: Path) -> None:
    killed_once(tmp_path, victim, random.Random(victim))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", range(20))
def test_killed_at_twenty_random_moments(case: int, tmp_path: Path) -> None:
    draw = random.Random(1000 + case)
    killed_once(tmp_path, draw.choice(["ClientHost", "Experiment"]), draw)
