"""CPU seconds and peak memory of the local engines, in turn in the same run: each private one over training without privacy.

``python -m tests.benchmarks.engines [--repeats 5] [--models mlp cnn ...]``. One thread, 256 synthetic records in every step,
plain SGD; CPU time, which a busy machine distorts less, and the least of the repeats. A step is measured whole, with the DP noise
from the cryptographic generator, and with that noise left out (its time is the same for every engine and grows with the
parameters alone).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import fedray
from fedray.choices import ModelChoice
from fedray.clients.memory import keep_freed_memory
from fedray.config import Training
from fedray.models.build import build_model
from fedray.privacy.csprng import Csprng
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import DpStep, Engine, LocalJob
from fedray.training.losses import cross_entropy
from fedray.training.plain import plain
from tests.benchmarks.work import ROOT

BATCH = 256
#: Name: model, record shape, records in memory at once, steps in one measurement.
WORK: dict[str, tuple[str, tuple[int, ...], int, int]] = {
    "mlp": ("2nn", (1, 28, 28), 256, 20),
    "cnn": ("opacus_cnn", (1, 28, 28), 256, 5),
    "fedavg_cnn": ("fedavg_cnn", (1, 28, 28), 256, 2),
    "resnet18": ("resnet18_gn", (3, 32, 32), 32, 1),
}
ENGINES: dict[str, Engine] = {"plain": plain, "book": book, "ghost": ghost, "hooks": hooks}
RESULTS = Path(__file__).parent / "results"


class Silence:
    """Coins that draw every record, and noise that costs nothing."""

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)


def seconds_a_step(engine: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor, physical: int, steps: int, noise: Any) -> float:
    """One measurement: ``steps`` steps of every record."""
    times: list[float] = []
    rates: dict[str, Any] = {"sampling_rate": 1.0, "expected_batch": float(BATCH)} if engine != "plain" else {"batch_size": BATCH}
    training = Training(lr=0.01, steps=steps + 1, physical_batch=physical, **rates)
    adjust = lambda model: times.append(time.process_time())  # noqa: E731 - after the gradients of each step
    job = LocalJob(training, 0.01, cross_entropy, np.random.default_rng(0), noise, DpStep(1.0, 1.0), adjust)
    ENGINES[engine](model, x, y, job)
    return (times[-1] - times[0]) / steps


def prepared(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A workload's model and records."""
    kind, shape, _, _ = WORK[name]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand((BATCH, *shape), generator=generator), torch.randint(0, 10, (BATCH,), generator=generator)
    return build_model(ModelChoice(kind=kind), shape, 10, 0), x, y


def high_water() -> int:
    """KiB that this process held at most; ``getrusage`` would count its parent's, from before it ran this program."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def peak_mib(name: str, engine: str) -> float:
    """Resident memory that two steps need at most, above what there was before, in a process of its own."""
    code = (
        "import torch; from tests.benchmarks.engines import *; torch.set_num_threads(1)\n"
        f"model, x, y = prepared({name!r}); model(x[:1]).sum().backward(); model.zero_grad()\n"
        "before = high_water()\n"
        f"seconds_a_step({engine!r}, model, x, y, WORK[{name!r}][2], 1, Silence())\n"
        "print((high_water() - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout.split()[-1])


def measure(name: str, repeats: int) -> dict[str, Any]:
    """The least of ``repeats`` measurements of each engine, taken in turn, and their ratios to the plain one."""
    kind, _, physical, steps = WORK[name]
    model, x, y = prepared(name)
    whole: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    silent: dict[str, list[float]] = {engine: [] for engine in ENGINES if engine != "plain"}
    for _ in range(repeats):
        for engine in ENGINES:
            whole[engine].append(seconds_a_step(engine, model, x, y, physical, steps, Csprng()))
            if engine in silent:
                silent[engine].append(seconds_a_step(engine, model, x, y, physical, steps, Silence()))
    seconds = {engine: min(found) for engine, found in whole.items()}
    without = {engine: min(found) for engine, found in silent.items()}
    return {
        "model": kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": BATCH,
        "physical_batch": physical,
        "threads": 1,
        "repeats": repeats,
        "peak_mib_over_start": {engine: peak_mib(name, engine) for engine in ENGINES},
        "seconds_a_step": seconds,
        "seconds_a_step_without_noise": without,
        "ratio_to_plain": {engine: value / seconds["plain"] for engine, value in seconds.items()},
        "ratio_to_plain_without_noise": {engine: value / seconds["plain"] for engine, value in without.items()},
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=list(WORK), default=list(WORK))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as client actors do
    path = RESULTS / "engines.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    figures |= {
        "machine": {"processor": platform.processor() or platform.machine()},
        "versions": {"fedray": fedray.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.models:
        figures[name] = measure(name, arguments.repeats)
        ratios = {key: {e: round(r, 2) for e, r in figures[name][key].items()} for key in figures[name] if key.startswith("ratio")}
        print(name, "MiB over start:", {e: round(m) for e, m in figures[name]["peak_mib_over_start"].items()})
        print(name, json.dumps(ratios), f"plain {figures[name]['seconds_a_step']['plain'] * 1e3:.2f} ms", flush=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
