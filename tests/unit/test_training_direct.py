"""Large Linear layers that move without a gradient in memory, and images with channels last: the results of a hand-written loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedray.config import Part, Training
from fedray.models.build import build_model
from fedray.rng import generator
from fedray.training.engine import LocalJob
from fedray.training.images import channels_last, lay_out
from fedray.training.losses import find_loss
from fedray.training.plain import plain

WIDE = 600  # 600 x 600 weights are large


class Twice(nn.Module):
    """A large layer that is used twice, one whose output is changed in place, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.never, self.out = (nn.Linear(a, b) for a, b in ((WIDE, WIDE), (WIDE, WIDE), (WIDE, WIDE), (WIDE, 3)))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.enter(x), inplace=True)
        return self.out(torch.tanh(self.again(torch.tanh(self.again(h)))))


class Recomputed(nn.Module):
    """A large layer that runs again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(WIDE, 30), nn.Linear(30, 9000), nn.Linear(9000, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda v: torch.tanh(self.middle(v)), self.enter(x), use_reentrant=False)
        return self.out(h)


class Unseen(nn.Module):
    """The same, the old way: the layer runs without gradients first."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(WIDE, 30), nn.Linear(30, 9000), nn.Linear(9000, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda v: torch.tanh(self.middle(v)), self.enter(x), use_reentrant=True)
        return self.out(h)


class Borrowed(nn.Module):
    """A large layer whose weight is used outside it too."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.wide(x)) @ self.wide.weight)


class Viewed(nn.Module):
    """Images that are flattened in a way that asks for an order of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.out = nn.Conv2d(3, 8, 3), nn.Dropout(0.0), nn.Linear(8 * 14 * 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x)).view(len(x), -1))


def by_hand(model: nn.Module, x: Tensor, y: Tensor, training: Training) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=training.lr, momentum=training.momentum)
    draws = generator(1, "batches")
    model.train()
    for _ in range(training.epochs or 1):
        order = torch.from_numpy(draws.permutation(len(x)))
        for batch in order.split(training.batch_size or 1):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def both(make: object, x: Tensor, y: Tensor, training: Training) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    ours = make()  # type: ignore[operator]
    torch.manual_seed(0)
    theirs = make()  # type: ignore[operator]
    plain(ours, x, y, LocalJob(training, training.lr, find_loss("cross_entropy"), generator(1, "batches")))
    by_hand(theirs, x, y, training)
    return ours, theirs


def distance(ours: nn.Module, theirs: nn.Module, start: nn.Module) -> float:
    a, b, c = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (ours, theirs, start))
    return float((a - b).norm() / (b - c).norm())


@pytest.mark.parametrize("make", [Twice, Recomputed, Unseen, Borrowed])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_layers_move_as_by_their_gradients(make: type[nn.Module], momentum: float) -> None:
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((21, WIDE), dtype=np.float32)), torch.from_numpy(rng.integers(0, 3, 21))
    ours, theirs = both(make, x, y, Training(lr=0.05, batch_size=5, epochs=2, momentum=momentum))
    torch.manual_seed(0)
    assert distance(ours, theirs, make()) < 1e-5
    assert all(p.requires_grad for p in ours.parameters())
    assert not any(m._forward_hooks for m in ours.modules())


@pytest.mark.parametrize(("kind", "shape"), [("fedavg_cnn", (1, 28, 28)), ("fedavg_cnn", (3, 32, 32)), ("resnet18_gn", (3, 16, 16))])
def test_images_train_as_in_any_order_of_memory(kind: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((12, *shape), dtype=np.float32)), torch.from_numpy(rng.integers(0, 10, 12))

    def make() -> nn.Module:
        return build_model(Part(kind=kind), shape, 10, 0)

    ours, theirs = both(make, x, y, Training(lr=0.02, batch_size=5, epochs=1))
    assert distance(ours, theirs, make()) < (1e-5 if kind == "fedavg_cnn" else 1e-4)


def test_a_model_that_asks_for_the_usual_order_of_memory_gets_it() -> None:
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((12, 3, 16, 16), dtype=np.float32)), torch.from_numpy(rng.integers(0, 3, 12))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours, theirs = both(Viewed, x, y, Training(lr=0.02, batch_size=5, epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert ours.conv.weight.is_contiguous()  # type: ignore[union-attr, operator]
    torch.set_rng_state(before)
    assert not lay_out(Viewed(), x)
    expected = torch.get_rng_state()
    torch.set_rng_state(before)
    Viewed()
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_layer_whose_input_changes_afterwards_is_an_error_and_leaves_no_trace() -> None:
    class Spoils(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.wide = nn.Linear(4, WIDE), nn.Linear(WIDE, WIDE)

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            out = self.wide(h)
            h.add_(1.0)
            return out

    model = Spoils()
    job = LocalJob(Training(lr=0.1, batch_size=2, epochs=1), 0.1, find_loss("cross_entropy"), generator(1, "batches"))
    with pytest.raises(RuntimeError, match="changed in place"):
        plain(model, torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), job)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_keeps_every_value(channels: int) -> None:
    x = torch.arange(2 * channels * 20, dtype=torch.float32).view(2, channels, 4, 5)
    turned = channels_last(x)
    assert turned.stride() == (channels * 20, 1, channels * 5, channels)
    assert torch.equal(turned, x)
    if channels == 1:
        assert turned.data_ptr() == x.data_ptr()
