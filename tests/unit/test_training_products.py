"""Products of large Linear layers: torch's own numbers, whichever library makes them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import gamma
from torch import Tensor
from torch.nn import functional

from fedray.training.fast.onednn_linear import linear, suits


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-30))


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3), sizes=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    bias=st.booleans(), turned=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_numbers_and_gradients_are_those_of_torch(shape: list[int], sizes: tuple[int, int], bias: bool, turned: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight, b = (torch.randn(s, generator=generator) for s in ((*shape, sizes[0]), sizes[::-1], sizes[1:]))
    if turned:
        weight = weight.t().contiguous().t()  # oneDNN is not asked then
    leaves = [v.requires_grad_() for v in (x, weight, b)[: 3 if bias else 2]]
    back = torch.randn((*shape, sizes[1]), generator=generator)
    expected = functional.linear(x, weight, b if bias else None)
    gradients = torch.autograd.grad(expected, leaves, back)
    # A sum's rounding error goes with the magnitudes that it adds, not with what is left where they cancel.
    sizes_of = [v.detach().abs().requires_grad_() for v in (x, weight, b)]
    largest = functional.linear(sizes_of[0], sizes_of[1], sizes_of[2] if bias else None)
    largest_gradients = torch.autograd.grad(largest, sizes_of[: len(leaves)], back.abs())
    found = linear(x, weight, b if bias else None, lambda: True)
    assert found.shape == expected.shape
    pairs = zip(torch.autograd.grad(found, leaves, back), gradients, largest_gradients, strict=True)
    terms = max(*sizes, len(back.flatten(0, -2))) + 1
    for ours, theirs, scale in [(found, expected, largest), *pairs]:
        assert bool(((ours - theirs).abs() <= 2 * gamma(terms) * scale).all())


def test_a_weight_that_nobody_asks_for_gets_no_gradient() -> None:
    x, weight = torch.randn(3, 40, requires_grad=True), torch.randn(50, 40, requires_grad=True)
    if not suits(weight):
        pytest.skip("torch has no oneDNN here, or the processor no AVX-512")
    linear(x, weight, None, lambda: False).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is None
    assert x.grad is not None


def test_the_output_may_be_changed_in_place() -> None:
    x, weight = torch.randn(4, 3, 40), torch.randn(50, 40, requires_grad=True)
    for records in (x, x[0]):
        found = torch.autograd.grad(functional.elu(linear(records, weight, None, lambda: True), inplace=True).sum(), weight)
        expected = torch.autograd.grad(functional.elu(functional.linear(records, weight)).sum(), weight)
        assert relative(found[0], expected[0]) < 4 * gamma(40 + 12)  # inputs forwards, rows backwards


@pytest.mark.parametrize("weight", [torch.randn(600, 500, dtype=torch.float64), torch.randn(600, 1000)[:, ::2]])
def test_other_weights_are_left_to_torch(weight: Tensor) -> None:
    assert not suits(weight)
    x = torch.randn(7, 500, dtype=weight.dtype)
    assert torch.equal(linear(x, weight, None, lambda: False), functional.linear(x, weight))
