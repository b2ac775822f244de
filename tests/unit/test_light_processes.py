"""What an actor's process must not load: it costs every actor of a node a second and tens of MiB."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import torch
from fedray.choices import Choice, ModelChoice
from fedray.config import Training
from fedray.models.build import build_model
from fedray.privacy.csprng import Csprng
from fedray.rng import generator
from fedray.training.bookkeeping import book
from fedray.training.engine import DpStep, LocalJob
from fedray.training.lockstep import lockstep
from fedray.training.losses import find_loss
from fedray.training.plain import plain

x, y, loss = torch.randn(6, 1, 28, 28), torch.arange(6), find_loss("focal")
shuffled, coins = Training(batch_size=3, epochs=1), Training(sampling_rate=0.5, steps=2, expected_batch=3.0)
cnn, mlp = (build_model(ModelChoice(kind=kind), (1, 28, 28), 10, 0) for kind in ("fedavg_cnn", "2nn"))
plain(cnn, x, y, LocalJob(shuffled, 0.1, loss, generator(0, "x")))
lockstep(mlp, x, y, LocalJob(shuffled, 0.1, loss, generator(0, "x")))
book(cnn, x, y, LocalJob(coins, 0.1, loss, generator(0, "x"), Csprng(), DpStep(1.0, 1.0, "flat")))
print(*[name for name in ("sympy", "opacus", "mlflow", "pandas", "sklearn", "torchvision") if name in sys.modules])
"""


def test_training_loads_no_symbolic_algebra_and_nothing_else_that_is_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
