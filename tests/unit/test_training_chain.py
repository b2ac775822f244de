"""Dropout from few random bits: the law of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedray.training.fast.sequential import dropped, forward_of, layers_of

N = 400_000


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_each_value_is_dropped_by_a_coin_of_its_own(p: float) -> None:
    torch.manual_seed(0)
    out = dropped(ones(N), p).detach()
    kept = out > 0
    values = out[kept].unique()
    assert len(values) == 1
    assert float(values) == pytest.approx(1 / (1 - p), rel=2e-4)
    deviation = (p * (1 - p) / N) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * deviation  # a false alarm in 2 million
    for lag in (1, 2, 3, 4, 8):  # four values share a word of the generator
        both = (kept[lag:] & kept[:-lag]).double().mean()
        assert abs(float(both) - (1 - p) ** 2) < 5 * (3 / N) ** 0.5 * 0.5
    counts = kept[: N // 4 * 4].view(-1, 4).double().mean(0)
    assert ((counts - (1 - p)).abs() < 5 * 2 * deviation).all()


@pytest.mark.parametrize("turned", [False, True])
def test_the_gradient_goes_where_the_value_went(turned: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 4, 5, 7)
    x = (x.contiguous(memory_format=torch.channels_last) if turned else x).requires_grad_()
    out = dropped(x, 0.25)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, x * gradient)
    assert out.stride() == x.stride()
    assert sorted(gradient.unique().tolist()) == [0.0, pytest.approx(4 / 3)]


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_all_or_nothing(p: float) -> None:
    assert torch.equal(dropped(ones(50), p), ones(50) * (p < 1))


def test_others_layouts_are_torchs() -> None:
    torch.manual_seed(2)
    mine = dropped(torch.ones(6, 5).t(), 0.5)
    torch.manual_seed(2)
    assert torch.equal(mine, nn.functional.dropout(torch.ones(6, 5).t(), 0.5))


def test_only_in_training() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    forward = forward_of(model, layers_of(model))
    assert (forward(ones(1000)) == 0).any()
    assert not (forward_of(model.eval(), layers_of(model))(ones(1000)) == 0).any()
