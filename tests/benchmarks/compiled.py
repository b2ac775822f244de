"""Whether compiling a client's step pays: ``torch.compile`` against the plain engine, in turn in the same process.

``python -m tests.benchmarks.compiled [--repeats 31]``. One thread, plain SGD without privacy, batches as small as federated clients
have. What is compiled is the forward and backward pass with the loss; the step moves all parameters in one call.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedray.choices import ModelChoice
from fedray.clients.memory import keep_freed_memory
from fedray.config import Training
from fedray.models.build import build_model
from fedray.training.engine import LocalJob
from fedray.training.losses import cross_entropy
from fedray.training.plain import plain
from tests.benchmarks.__main__ import RESULTS, machine

#: Name: model, record shape, batch.
WORK: dict[str, tuple[str, tuple[int, ...], int]] = {
    "mlp": ("2nn", (1, 28, 28), 10),
    "cnn": ("opacus_cnn", (1, 28, 28), 64),
    "fedavg_cnn": ("fedavg_cnn", (1, 28, 28), 10),
    "lstm": ("lstm", (28, 28), 10),
    "resnet18": ("resnet18_gn", (3, 32, 32), 20),
}
#: Batches of a client.
BATCHES = 6
LR = 0.01


def in_turn(ways: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Median milliseconds of a step in each of some ways, without the first three passes over the batches."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(3 + repeats):
        for train, found in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            train()
            found.append(time.perf_counter() - began)
    return [float(1e3 * np.median(found[3:]) / BATCHES) for found in seconds]


def measure(name: str, repeats: int) -> dict[str, float]:
    """Milliseconds of a step by either, and the seconds that compiling took."""
    kind, shape, batch = WORK[name]
    x, y = torch.randn((batch * BATCHES, *shape)), torch.randint(0, 10, (batch * BATCHES,))
    ours, theirs = (build_model(ModelChoice(kind=kind), shape, 10, 0) for _ in range(2))
    training = Training(lr=LR, batch_size=batch, epochs=1)
    images = x.dim() == 4
    if images:
        theirs = theirs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    records = x.contiguous(memory_format=torch.channels_last) if images else x
    step, parameters = _compiled(theirs), list(theirs.parameters())

    def compiled() -> None:
        for start in range(0, len(x), batch):
            step(records[start : start + batch], y[start : start + batch]).backward()
            with torch.no_grad():
                torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-LR)
            for p in parameters:
                p.grad = None

    began = time.perf_counter()
    compiled()
    compiling = time.perf_counter() - began
    usual, other = in_turn([lambda: _plain(ours, x, y, training), compiled], repeats)
    return {"plain_ms": usual, "compiled_ms": other, "speed": usual / other, "compiling_s": compiling}


def _compiled(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(lambda x, y: functional.cross_entropy(model(x), y))
    return compiled


def _plain(model: nn.Module, x: Tensor, y: Tensor, training: Training) -> None:
    plain(model, x, y, LocalJob(training, LR, cross_entropy, np.random.default_rng(0), None, None))


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    keep_freed_memory()  # as client actors do
    figures = {}
    with tempfile.TemporaryDirectory() as folder:  # or what an earlier run has compiled would be found again
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for name in WORK:
            figures[name] = measure(name, repeats if name != "resnet18" else 5)
            print(name, {key: round(value, 2) for key, value in figures[name].items()}, flush=True)
    path = RESULTS / "compiled.json"
    path.write_text(json.dumps(machine() | {"models": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
