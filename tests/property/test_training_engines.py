"""Every private engine against brute force, a gradient a record, over generated architectures: it gives the same, or it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import DEVICE, there
from everyone import Everyone
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fedray import rng
from fedray.config import Training
from fedray.errors import FedrayError
from fedray.training.bookkeeping import book
from fedray.training.choose import choose_engine
from fedray.training.dploop import clip_factors
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import Clipping, DpStep, LocalJob
from fedray.training.losses import cross_entropy
from fedray.training.preflight import TOLERANCE, sensitivity_check

ENGINES = {"book": book, "hooks": hooks, "ghost": ghost}
N, CLASSES = 4, 3
#: Of the largest of the expected gradients. Everything is computed in float64; clipping aims 1e-6 below the norm, and norms of sums
#: that are made anew leave a margin of some more times float32's rounding, 6e-8 times the square root of the positions.
NEAR = 1e-5


pytestmark = pytest.mark.usefixtures("one_thread")


class Of(nn.Module):
    """A forward pass over some layers and parameters, as a function of (module, x)."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], *layers: nn.Module, **parameters: Tensor) -> None:
        super().__init__()
        self.layers, self.how = nn.ModuleList(layers), forward
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def engine_sum(name: str, model: nn.Module, x: Tensor, y: Tensor, dp: DpStep) -> list[Tensor]:
    taken: list[list[Tensor]] = []

    def take(net: nn.Module) -> None:
        taken.append([(torch.zeros_like(p) if p.grad is None else p.grad.clone()).cpu() for p in net.parameters() if p.requires_grad])

    section = Training(lr=1.0, sampling_rate=1.0, steps=1, expected_batch=1.0)
    there(ENGINES[name])(model, x, y, LocalJob(section, 0.0, cross_entropy, rng.generator(0, "batches"), Everyone(), dp, take))
    return taken[0]


def brute_sum(model: nn.Module, x: Tensor, y: Tensor, dp: DpStep) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    for i in range(len(x)):
        found = torch.autograd.grad([cross_entropy(model(x[i : i + 1]), y[i : i + 1]).sum()], parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        factors, _ = clip_factors([g.norm()[None] for g in gradients], len(parameters), dp)
        for total, gradient, factor in zip(sums, gradients, factors, strict=True):
            total += gradient * factor[0]
    return sums


def refuses_or_is_right(name: str, make: Callable[[], nn.Module], x: Tensor, seed: int) -> bool:
    """Whether the engine takes the model; what it takes must be right."""
    torch.manual_seed(seed)
    model = make().double().train()
    x = x.double() if x.is_floating_point() else x
    y = torch.arange(len(x)) % CLASSES
    clippings: list[Clipping] = ["flat"] if name == "ghost" else ["flat", "per_layer"]
    for clip, clipping in ((c, k) for k in clippings for c in (0.02, 1e6)):
        dp = DpStep(0.0, clip, clipping)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sums = engine_sum(name, model, x, y, dp)
        except (FedrayError, RuntimeError, TypeError, ValueError, IndexError):  # what Opacus raises itself the pre-flight test words
            return False
        expected = brute_sum(model, x, y, dp)
        largest = max(float(e.norm()) for e in expected)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        for parameter, found, wanted in zip(names, sums, expected, strict=True):
            assert float((found - wanted).norm()) <= NEAR * largest, (name, parameter, clip, clipping, model)
    return True


# -- generated architectures -------------------------------------------------------------------------

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Callable[[], nn.Module], Tensor]:
    """One or two convolutions of any padding, stride, dilation and groups, a norm perhaps, and a head."""
    d = draw(st.integers(1, 3))
    space = tuple(draw(st.lists(st.integers(5, 7), min_size=d, max_size=d)))
    layers: list[Callable[[], nn.Module]] = []
    channels = 2
    for _ in range(draw(st.integers(1, 2))):
        stride = draw(st.integers(1, 2))
        padding = draw(st.sampled_from([0, 1, 2, "valid", *(["same"] if stride == 1 else [])]))
        arguments = {
            "kernel_size": tuple(draw(st.lists(st.integers(1, 3), min_size=d, max_size=d))),
            "stride": stride,
            "padding": padding,
            "dilation": draw(st.integers(1, 2)) if padding != 0 else 1,
            "groups": draw(st.sampled_from([1, 2])),
            "bias": draw(st.booleans()),
            "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        }
        layers.append(lambda kind=CONVOLUTIONS[d], c=channels, a=arguments: kind(c, 4, **a))
        channels = 4
        norm = draw(
            st.sampled_from([None, lambda: nn.GroupNorm(2, 4), {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[d]])
        )
        if norm is not None:
            layers.append(norm if not isinstance(norm, type) else lambda kind=norm: kind(4, affine=True))
        layers.append(draw(st.sampled_from([nn.Tanh, nn.Identity, nn.PReLU])))
    x = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).standard_normal((N, 2, *space)))

    def make() -> nn.Module:
        body = nn.Sequential(*(layer() for layer in layers), nn.Flatten()).double()
        return nn.Sequential(body, nn.Linear(body(x).shape[1], CLASSES))

    return make, x


@st.composite
def features(draw: st.DrawFn) -> tuple[Callable[[], nn.Module], Tensor]:
    """Layers on features, some with parameters of their own, used once or twice, by layers or by functions."""
    width = draw(st.integers(2, 5))
    kinds: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(width, width),
        "no bias": lambda: nn.Linear(width, width, bias=False),
        "frozen": lambda: nn.Linear(width, width).requires_grad_(False),
        "norm": lambda: nn.LayerNorm(width),
        "norm without bias": lambda: nn.LayerNorm(width, bias=False),
        "rms": lambda: nn.RMSNorm(width),
        "slope": lambda: nn.PReLU(width),
        "scalar": lambda: Of(lambda m, x: x * m.scale, scale=torch.tensor(1.5)),
        "raw": lambda: Of(lambda m, x: x @ m.matrix + m.shift, matrix=torch.randn(width, width), shift=torch.zeros(width)),
        "both": lambda: Of(lambda m, x: m.layers[0](x) * m.scale, nn.Linear(width, width), scale=torch.tensor(0.5)),
        "by function": lambda: Of(lambda m, x: m.layers[0](functional.linear(x, m.layers[0].weight * 2)), nn.Linear(width, width)),
        "twice": lambda: Of(lambda m, x: m.layers[0](m.layers[0](x).tanh()), nn.Linear(width, width)),
        "residual": lambda: Of(lambda m, x: x + m.layers[0](x).tanh(), nn.Linear(width, width)),
        "detached": lambda: Of(lambda m, x: x + m.layers[0](x).detach(), nn.Linear(width, width)),
        "unused": lambda: Of(lambda m, x: x, nn.Linear(width, width)),
        "tanh": nn.Tanh,
    }
    chosen = [kinds[name] for name in draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=4))]
    sequence = draw(st.booleans())
    shape = (N, 3, width) if sequence else (N, width)
    x = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape))

    def make() -> nn.Module:
        flat = 3 * width if sequence else width
        return nn.Sequential(*(layer() for layer in chosen), nn.Flatten(), nn.Linear(flat, CLASSES))

    return make, x


@st.composite
def tokens(draw: st.DrawFn) -> tuple[Callable[[], nn.Module], Tensor]:
    """An embedding with or without a padding token, then a recurrent layer or a mean, and a head that may share the table."""
    words, width = draw(st.integers(3, 6)), draw(st.integers(CLASSES, 4))
    padding = draw(st.sampled_from([None, 0, words - 1]))
    middle = draw(st.sampled_from(["mean", "lstm", "gru"]))
    shared = draw(st.booleans())
    x = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).integers(0, words, (N, 5)))

    def make() -> nn.Module:
        table = nn.Embedding(words, width, padding_idx=padding)
        rest: list[nn.Module] = [] if middle == "mean" else [(nn.LSTM if middle == "lstm" else nn.GRU)(width, width, batch_first=True)]

        def forward(m: Any, x: Tensor) -> Tensor:
            h = m.layers[0](x)
            h = m.layers[2](h)[0] if rest else h
            return functional.linear(h.mean(1), m.layers[0].weight)[:, :CLASSES] if shared else m.layers[1](h.mean(1))

        return Of(forward, table, nn.Linear(width, CLASSES), *rest)

    return make, x


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(case=st.one_of(convolutions(), features(), tokens()), seed=st.integers(0, 99))
def test_a_private_engine_is_right_or_refuses(name: str, case: tuple[Callable[[], nn.Module], Tensor], seed: int) -> None:
    make, x = case
    try:
        make().to(torch.float64)(x)
    except (RuntimeError, ValueError):  # a kernel may be larger than what it is laid on
        assume(False)
    refuses_or_is_right(name, make, x, seed)


# -- what must be taken, and what must not -----------------------------------------------------------

SEQUENCES, IMAGES, WORDS, FLAT = (N, 2, 7), (N, 2, 6, 5), (N, 5), (N, 6)


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(6, CLASSES))


TAKEN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        f"{mode}, {padding}": (
            lambda m=mode, p=padding: nn.Sequential(nn.Conv1d(2, 4, 3, padding=p, padding_mode=m), nn.Flatten(), nn.LazyLinear(3)),
            SEQUENCES,
        )
        for mode in ("zeros", "reflect", "replicate", "circular")
        for padding in (1, "same")
    },
    "images": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=2, padding_mode="circular"), nn.Flatten(), nn.LazyLinear(3)), IMAGES),
    "padding token": (lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(20, 3)), WORDS),
    "scalar": (lambda: Of(lambda m, x: m.layers[0](x) * m.scale, nn.Linear(6, 3), scale=torch.tensor(1.0)), FLAT),
    "tied": (tied, FLAT),
    "twice": (lambda: Of(lambda m, x: m.layers[1](m.layers[0](m.layers[0](x).tanh())), nn.Linear(6, 6), nn.Linear(6, 3)), FLAT),
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "by function": (
        lambda: Of(lambda m, x: m.layers[1](functional.linear(m.layers[0](x), m.layers[0].weight)), nn.Linear(6, 6), nn.Linear(6, 3)),
        FLAT,
    ),
    "by function alone": (
        lambda: Of(lambda m, x: functional.linear(m.layers[0](x), m.layers[1].weight), nn.Linear(6, 6), nn.Linear(6, 3)),
        FLAT,
    ),
    "table as head": (
        lambda: Of(lambda m, x: functional.linear(m.layers[0](x).mean(1), m.layers[0].weight)[:, :3], nn.Embedding(5, 4)),
        WORDS,
    ),
    "frequencies": (lambda: nn.Sequential(nn.Embedding(5, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(20, 3)), WORDS),
    "sparse": (lambda: nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(20, 3)), WORDS),
    "largest norm": (lambda: nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Flatten(), nn.Linear(20, 3)), WORDS),
    "forward hook": (lambda: hooked(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))), FLAT),
    "hook on a gradient": (lambda: doubled(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))), FLAT),
    "TorchScript": (lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))), FLAT),
}


def hooked(net: nn.Sequential) -> nn.Module:
    net[0].register_forward_hook(lambda _m, _x, out: out * 2)
    return net


def doubled(net: nn.Sequential) -> nn.Module:
    net[0].weight.register_hook(lambda gradient: gradient * 2)  # type: ignore[no-untyped-call]
    return net


def batch(shape: tuple[int, ...], words: bool) -> Tensor:
    draws = np.random.default_rng(0)
    return torch.from_numpy(draws.integers(0, 5, shape) if words else draws.standard_normal(shape))


@pytest.mark.parametrize("case", TAKEN)
def test_hooks_takes_every_such_model_and_is_right(case: str) -> None:
    make, shape = TAKEN[case]

    def made() -> nn.Module:
        net = make()
        net(batch(shape, case == "padding token").float() if case != "padding token" else batch(shape, True))
        return net

    assert refuses_or_is_right("hooks", made, batch(shape, case == "padding token"), 1)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_an_engine_cannot_see_is_refused_by_itself_and_before_any_charge(name: str, case: str) -> None:
    make, shape = REFUSED[case]
    words = shape == WORDS
    torch.manual_seed(0)
    with pytest.raises(FedrayError):
        engine_sum(name, make(), batch(shape, words) if words else batch(shape, words).float(), torch.arange(N) % 3, DpStep(0.0, 1.0))
    with pytest.raises(FedrayError):
        sensitivity_check(ENGINES[name], make, cross_entropy, shape[1:], 3, SECTION, 1.0, vocabulary=5 if words else None, device=DEVICE)


SECTION = Training(lr=0.1, sampling_rate=0.25, steps=5, expected_batch=36.0)


def in_place(layers: nn.Module, backend: str) -> nn.Module:
    layers.compile(backend=backend)
    return layers


@pytest.mark.parametrize("name", ["auto", "hooks", "ghost"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "compiled",
    [
        lambda net, backend: torch.compile(net, backend=backend),
        in_place,
        lambda net, backend: nn.Sequential(torch.compile(net[0], backend=backend), *net[1:]),
    ],
    ids=["whole", "in place", "a part"],
)
def test_a_model_compiled_by_torch_is_clipped_as_it_was_written(name: str, backend: str, compiled: Callable[[Any, str], nn.Module]) -> None:
    """The backend ``eager`` runs the traced graph, which calls no hooks either, without a compiler of C++."""

    def plain() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))

    def wrap(net: nn.Module) -> nn.Module:
        return compiled(net, backend)

    try:
        wrap(plain())(torch.zeros(N, 6)).sum().backward()
    except Exception as error:
        pytest.skip(f"torch compiles nothing here: {str(error).splitlines()[0]}")
    _, engine = choose_engine(name, True, wrap(plain()))
    assert (
        0.99 < sensitivity_check(engine, lambda: wrap(plain()), cross_entropy, (6,), CLASSES, SECTION, 1.0, device=DEVICE) <= 1 + TOLERANCE
    )
    x, y = batch(FLAT, False).float(), torch.arange(N) % CLASSES
    name = "book" if name == "auto" else name
    sums = [engine_sum(name, net, x, y, DpStep(0.0, 0.5)) for net in (wrap(plain()), plain())]
    assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))
