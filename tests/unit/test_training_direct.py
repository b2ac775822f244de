"""Large Linear layers that move without a gradient in memory, and images with channels last: the results of a hand-written loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from elsewhere import there
from rounding import apart, steps_apart, terms_of
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedray.choices import ModelChoice
from fedray.config import Training
from fedray.errors import Stopped
from fedray.models.build import build_model
from fedray.rng import generator
from fedray.training.engine import LocalJob
from fedray.training.fast.channels_last import channels_last, lay_out
from fedray.training.fast.sequential import forward_of, layers_of, pooled_first
from fedray.training.losses import find_loss
from fedray.training.plain import plain

plain = there(plain)

WIDE = 600  # 600 x 600 weights are large


class Twice(nn.Module):
    """A large layer that is used twice, one whose output is changed in place, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.never, self.out = (nn.Linear(a, b) for a, b in ((WIDE, WIDE), (WIDE, WIDE), (WIDE, WIDE), (WIDE, 3)))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.elu(self.enter(x), inplace=True)
        return self.out(torch.tanh(self.again(torch.tanh(self.again(h)))))


class Recomputed(nn.Module):
    """A large layer that runs again in the backward pass."""

    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(WIDE, 30), nn.Linear(30, 9000), nn.Linear(9000, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda v: torch.tanh(self.middle(v)), self.enter(x), use_reentrant=self.reentrant)
        return self.out(h)


class Unseen(Recomputed):
    """The same, the old way: the layer runs without gradients first."""

    reentrant = True


class Borrowed(nn.Module):
    """A large layer whose weight is used outside it too."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.wide(x)) @ self.wide.weight)


def chain() -> nn.Module:
    """Large layers that nobody else can read: their steps are remembered."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(WIDE, WIDE), nn.ELU(inplace=True)), nn.Linear(WIDE, WIDE, bias=False), nn.Tanh(), nn.Linear(WIDE, 3)
    )


def sequences() -> nn.Module:
    """The same for records of five tokens each, so that a step has five times as many rows."""
    return nn.Sequential(nn.Unflatten(1, (5, WIDE)), nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Flatten(), nn.Linear(5 * WIDE, 3))


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


@pytest.mark.parametrize("make", [Twice, Recomputed, Unseen, Borrowed])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_layers_move_as_by_their_gradients(make: type[nn.Module], momentum: float) -> None:
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((21, WIDE), dtype=np.float32)), torch.from_numpy(rng.integers(0, 3, 21))
    ours, theirs = both(make, x, y, Training(lr=0.05, batch_size=5, epochs=2, momentum=momentum))
    torch.manual_seed(0)
    start = make()
    assert apart(ours, theirs) <= steps_apart(start, theirs, terms_of(start, records=5), steps=10)
    assert all(p.requires_grad for p in ours.parameters())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in ours.modules())


@pytest.mark.parametrize("batch", [1, 5, 20, 40])
@pytest.mark.parametrize(("make", "features"), [(chain, WIDE), (sequences, 5 * WIDE)])
def test_steps_that_are_remembered_are_taken(make: Callable[[], nn.Module], features: int, batch: int) -> None:
    """More rows than are remembered, and steps too large for that."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((41, features), dtype=np.float32)), torch.from_numpy(rng.integers(0, 3, 41))
    ours, theirs = both(make, x, y, Training(lr=0.02, batch_size=batch, epochs=3))
    torch.manual_seed(0)
    start = make()
    assert apart(ours, theirs) <= steps_apart(start, theirs, terms_of(start, records=5 * batch), steps=3 * -(-41 // batch))
    assert not any(m._forward_hooks for m in ours.modules())


def test_a_run_that_is_stopped_leaves_no_hooks_and_no_step_behind() -> None:
    model = chain()
    x, y = torch.zeros(9, WIDE), torch.zeros(9, dtype=torch.int64)
    answers = iter([False, False, True])
    job = LocalJob(
        Training(lr=0.1, batch_size=3, epochs=2),
        0.1,
        find_loss("cross_entropy"),
        generator(1, "batches"),
        should_stop=lambda: next(answers),
    )
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(Stopped):
        plain(model, x, y, job)
    assert not any(m._forward_hooks for m in model.modules())
    assert any(not torch.equal(a, b.cpu()) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("inplace", [False, True])
def test_pooling_before_relu_changes_no_bit(inplace: bool) -> None:
    """Ties, zeros and a value that is no number included."""
    layers: list[nn.Module] = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace), nn.MaxPool2d(3, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers)
    found = layers_of(model)
    assert found is not None
    order = pooled_first(found)
    assert [type(m) for m in order] == [nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.MaxPool2d, nn.ReLU]
    x = torch.randint(-3, 4, (6, 2, 14, 15), generator=torch.Generator().manual_seed(0)).float()
    x[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-1, 2, model[0].weight.shape).float())  # type: ignore[operator]
        model[0].bias.zero_()  # type: ignore[operator]
    results = []
    for forward in (model, forward_of(model, found)):
        inputs = x.clone().requires_grad_()
        out = forward(inputs)
        gradients = torch.autograd.grad([(out.nan_to_num() ** 2).sum() + out.sum()], [inputs, *model.parameters()])
        results.append([out.detach(), *gradients])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_what_may_be_more_than_a_chain_is_none() -> None:
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    own = nn.Sequential(nn.Linear(2, 2))
    own[0].forward = lambda x: x  # type: ignore[method-assign]

    class Mine(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    for model in (hooked, own, Mine(nn.Linear(2, 2)), nn.Sequential(Twice()), nn.TransformerEncoderLayer(4, 2)):
        assert layers_of(model) is None
    assert layers_of(nn.Linear(2, 2)) is not None


def test_bfloat16_convolutions_are_close_and_everything_else_is_float32() -> None:
    """A step's update is off by the rounding of eight bits, and by no more; float32 was not touched."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((40, 1, 28, 28), dtype=np.float32)), torch.from_numpy(rng.integers(0, 10, 40))

    def make() -> nn.Module:
        return build_model(ModelChoice(kind="fedavg_cnn"), (1, 28, 28), 10, 0)

    ours, theirs = both(make, x, y, Training(lr=0.05, batch_size=10, epochs=1, precision="bf16_convolutions"))
    start = make()
    # bfloat16 keeps eight bits, so a product is off by 2**-8 at the most. Terms of either sign and the corners of ReLU make more of it.
    assert 2.0**-13 < apart(ours, theirs) / apart(theirs, start) < 0.3
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    assert not any("forward" in vars(m) for m in ours.modules())


@pytest.mark.parametrize(("kind", "shape"), [("fedavg_cnn", (1, 28, 28)), ("fedavg_cnn", (3, 32, 32)), ("resnet18_gn", (3, 16, 16))])
def test_images_train_as_in_any_order_of_memory(kind: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((12, *shape), dtype=np.float32)), torch.from_numpy(rng.integers(0, 10, 12))

    def make() -> nn.Module:
        return build_model(ModelChoice(kind=kind), shape, 10, 0)

    ours, theirs = both(make, x, y, Training(lr=0.02, batch_size=5, epochs=1))
    start = make()
    assert apart(ours, theirs) <= steps_apart(start, theirs, terms_of(start, records=5 * shape[1] * shape[2]), steps=3)


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
    with pytest.raises(RuntimeError, match="changed in place|modified by an inplace"):
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
