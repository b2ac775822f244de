"""The floor: federated averaging as a user would write it by hand, one process, one thread, no framework.

``python -m tests.benchmarks.plain_loop W1 --rounds 13 [--device cuda]`` writes a line after each round. All records lie on the device from the start.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.benchmarks.work import WORKS, Work, records, simple_cnn


def make_model(work: Work, shape: tuple[int, ...]) -> nn.Module:
    """The network, its first weights from seed 0."""
    torch.manual_seed(0)
    if work.model == "simple_cnn":
        return simple_cnn(shape, 10)
    if work.model == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 10))
    if work.model == "opacus_cnn":
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, work: Work) -> nn.Module:
    """One client's pass."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    for xb, yb in zip(x.split(work.batch), y.split(work.batch), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        optimizer.step()
    return model


def train_privately(model: nn.Module, x: torch.Tensor, y: torch.Tensor, work: Work) -> nn.Module:
    """One client's pass of DP-SGD, by Opacus."""
    from opacus import PrivacyEngine

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=work.batch)
    wrapped, optimizer, loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=work.noise, max_grad_norm=work.clip
    )
    for xb, yb in loader:
        optimizer.zero_grad()
        F.cross_entropy(wrapped(xb), yb).backward()
        optimizer.step()
    return wrapped._module


def main() -> None:
    """Train, with a line after each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=list(WORKS))
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    work = WORKS[arguments.work]
    torch.set_num_threads(1)
    x, y = (torch.from_numpy(a).to(arguments.device) for a in records(arguments.work))
    xs, ys = x.reshape(work.clients, work.records, *x.shape[1:]), y.reshape(work.clients, work.records)
    model = make_model(work, tuple(x.shape[1:])).to(arguments.device)
    for number in range(arguments.rounds):
        total: dict[str, torch.Tensor] | None = None
        for k in np.random.RandomState(number).choice(work.clients, work.cohort, replace=False):
            trained = (train if work.noise is None else train_privately)(copy.deepcopy(model), xs[k], ys[k], work).state_dict()
            if total is None:
                total = {name: value.clone() for name, value in trained.items()}
            else:
                for name, value in trained.items():
                    total[name] += value
        assert total is not None
        model.load_state_dict({name: value / work.cohort for name, value in total.items()})
        if x.is_cuda:
            torch.cuda.synchronize()  # a round ends with its work, and not with its being asked for
        print("ROUND", flush=True)


if __name__ == "__main__":
    main()
