"""Book-keeping: every layer's norms and clipped sums against a loop over records in float64, and what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import there
from everyone import Everyone
from rounding import gamma, terms_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedray.choices import ModelChoice
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.models.build import build_model
from fedray.training import recordgrads
from fedray.training.bookkeeping import book, unsupported
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import DpStep, LocalJob
from fedray.training.losses import cross_entropy, mse

book, ghost, hooks = there(book), there(ghost), there(hooks)

CLIPPING = pytest.mark.parametrize("clipping", ["flat", "per_layer"])
#: Kept gradients, or norms that are taken from products or inner products and sums that are computed anew.
MEMORY = pytest.mark.parametrize("keep", [recordgrads.KEEP, 0], ids=["kept", "anew"])


pytestmark = pytest.mark.usefixtures("one_thread")


def clipped_sum(
    model: nn.Module, x: Tensor, y: Tensor, clip: float, clipping: Any = "flat", loss: Any = cross_entropy, engine: Any = book
) -> Tensor:
    taken: list[Tensor] = []

    def take(model: nn.Module) -> None:
        taken.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]).cpu())

    one = Training(lr=1.0, sampling_rate=1.0, steps=1, expected_batch=1.0)
    engine(model, x, y, LocalJob(one, 0.0, loss, np.random.default_rng(0), Everyone(), DpStep(0.0, clip, clipping), take))
    return taken[0]


def reference(model: nn.Module, x: Tensor, y: Tensor, clip: float, clipping: str = "flat", loss: Any = cross_entropy) -> Tensor:
    """One record after the other, in float64."""
    model = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for i in range(len(x)):
        found = torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters, materialize_grads=True)
        if clipping == "flat":
            gradient = torch.cat([g.flatten() for g in found])
            total += gradient * min(1.0, clip / max(float(gradient.norm()), 1e-30))
        else:
            share = clip / len(parameters) ** 0.5
            total += torch.cat([g.flatten() * min(1.0, share / max(float(g.norm()), 1e-30)) for g in found])
    return total


def assert_equal(make: Callable[[], nn.Module], x: Tensor, clipping: str, classes: int = 3) -> None:
    """Against the reference; a record that is left out or clipped otherwise changes one part in ``len(x)``."""
    y = torch.arange(len(x)) % classes
    torch.manual_seed(0)
    model = make()
    tolerance = 4 * gamma(terms_of(model, x.numel()))
    assert tolerance < 0.1 / len(x)
    for clip in (0.05, 1e4):
        expected = reference(model, x, y, clip, clipping)
        assert float(expected.norm()) > 0
        assert float((clipped_sum(model, x, y, clip, clipping) - expected).norm() / expected.norm()) < tolerance


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


BUILT_IN = [
    ("softmax", (8,)),
    ("mlp", (8,)),
    ("2nn", (28, 28)),
    ("lenet", (28, 28)),
    ("lstm", (1, 12, 10)),
    ("opacus_cnn", (1, 28, 28)),
    ("fedavg_cnn", (1, 28, 28)),
    ("resnet18_gn", (3, 16, 16)),
]


@CLIPPING
@MEMORY
@pytest.mark.parametrize(
    ("kind", "shape"), [pytest.param(*part, id=part[0], marks=[pytest.mark.slow] if part[0] == "resnet18_gn" else []) for part in BUILT_IN]
)
def test_built_in_models(kind: str, shape: tuple[int, ...], keep: int, clipping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordgrads, "KEEP", keep)
    x = values(5, *shape)
    x[2] *= 10 if kind == "lstm" else 1e4  # of gates that are all but shut, float32 knows no slope to five digits
    assert_equal(lambda: build_model(ModelChoice(kind=kind), shape, 3, 0), x, clipping)


def head(*layers: nn.Module, features: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(layers), nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strided": (lambda: nn.Conv2d(2, 5, 3, stride=2, padding=1), (2, 8, 7)),
    "rows left over": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(3, 2)), (2, 9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=(0, 2), bias=False), (4, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), (3, 6, 6)),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=2), (2, 7, 7)),
    "same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=2), (2, 7, 7)),
    "valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 5, 5)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 6)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=2, stride=2, padding_mode="reflect"), (2, 6, 6)),
    "pointwise": (lambda: nn.Conv2d(4, 3, 1), (4, 5, 5)),
    "one position": (lambda: nn.Conv2d(2, 7, 5), (2, 5, 5)),
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 15)),
    "3d": (lambda: nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1), groups=2), (2, 4, 6, 5)),
}


@CLIPPING
@MEMORY
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, keep: int, clipping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordgrads, "KEEP", keep)
    make, shape = CONVOLUTIONS[name]
    features = make()(torch.zeros(1, *shape)).numel()
    for x in (values(6, *shape), values(6, *shape[1:], shape[0]).movedim(-1, 1)):  # the latter with channels last in memory
        assert_equal(head(make(), features=features), x, clipping)


@pytest.mark.parametrize("way", ["ghost", "product"])
def test_many_positions_and_chunks(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to a norm, on pieces of the batch that do not divide it."""
    monkeypatch.setattr(recordgrads, "KEEP", 0)
    monkeypatch.setattr(recordgrads, "_CHUNK", 3 * 3 * 9 * 16)
    taken = {"ghost": 0, "product": 0}
    for name in taken:
        real = getattr(recordgrads, f"_{name}_norms")

        def spy(*args: Any, name: str = name, real: Any = real) -> Tensor:
            taken[name] += 1
            return real(*args)

        monkeypatch.setattr(recordgrads, f"_{name}_norms", spy)
    wide = nn.Conv2d(3, 8, 4, padding=2) if way == "product" else nn.Conv2d(3, 96, 7, stride=2)
    size = wide(torch.zeros(1, 3, 9, 9)).numel()
    assert_equal(head(wide, features=size), values(11, 3, 9, 9), "flat")
    assert taken[way] > 0
    assert taken["product" if way == "ghost" else "ghost"] == 0


class Sequence(nn.Module):
    """Tokens, positions, norms, two linear layers over positions, a mean."""

    def __init__(self, padding: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6, padding_idx=padding)
        self.inner, self.norm, self.out = nn.Linear(6, 10, bias=bias), nn.LayerNorm(10), nn.Linear(10, 4)
        self.groups, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.out(self.norm(self.inner(self.embedding(x))).tanh())
        return self.head(self.groups(hidden.flatten(1, -2).transpose(1, 2)).mean(2))


@CLIPPING
@MEMORY
@pytest.mark.parametrize("shape", [(12,), (3, 4)])
@pytest.mark.parametrize(("padding", "bias"), [(None, True), (0, False)])
def test_sequences(
    shape: tuple[int, ...], padding: int | None, bias: bool, keep: int, clipping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordgrads, "KEEP", keep)
    tokens = torch.randint(0, 9, (7, *shape), generator=torch.Generator().manual_seed(3))
    tokens[1].view(-1)[:8] = 4  # the same token eight times
    assert_equal(lambda: Sequence(padding, bias), tokens, clipping)


class Reader(nn.Module):
    """An LSTM between other layers; what it gives at every position, at the end and in its cells is all used."""

    def __init__(self, features: int, **options: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, 4, **options)
        self.out = nn.Linear(4 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        out, (h, c) = self.lstm(x if self.lstm.batch_first else x.transpose(0, 1))
        return self.out(out.tanh().mean(1 if self.lstm.batch_first else 0)) + (h * c).sum((0, 2))[:, None]


LSTMS: dict[str, dict[str, Any]] = {
    "plain": {"batch_first": True},
    "time first": {},
    "two ways, two levels": {"batch_first": True, "num_layers": 2, "bidirectional": True},
    "without bias": {"batch_first": True, "num_layers": 3, "bias": False},
}


@CLIPPING
@MEMORY
@pytest.mark.parametrize("kind", LSTMS)
def test_lstms(kind: str, keep: int, clipping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordgrads, "KEEP", keep)
    x = values(6, 9, 5)
    x[2] *= 30
    assert_equal(lambda: Reader(5, **LSTMS[kind]), x, clipping)


@pytest.mark.parametrize("frozen", ["ih", "hh", "weight", "bias", "l0", "l1"])
def test_an_lstm_of_which_a_part_is_frozen(frozen: str) -> None:
    def make() -> nn.Module:
        model = Reader(5, batch_first=True, num_layers=2)
        for name, parameter in model.lstm.named_parameters():
            parameter.requires_grad_(frozen not in name)
        return model

    assert_equal(make, values(6, 9, 5), "flat")


class Primed(nn.Module):
    """The first state is made of the record, by a layer that is trained; tokens go in."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.lstm, self.out = nn.Embedding(9, 5), nn.Linear(2, 4), nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.first(tokens[:, :2].to(self.first.weight.dtype))[None]
        return torch.as_tensor(self.out(self.lstm(self.table(tokens), (h, h.sin()))[1][1][0]))


def test_first_states_have_gradients() -> None:
    assert_equal(Primed, torch.randint(0, 9, (7, 12), generator=torch.Generator().manual_seed(3)), "flat")


@pytest.mark.parametrize("levels", [1, 2])
def test_an_lstm_is_clipped_as_opacus_clips_its_own(levels: int) -> None:
    from opacus.layers import DPLSTM

    torch.manual_seed(0)
    model = Reader(5, batch_first=True, num_layers=levels)
    theirs = copy.deepcopy(model)
    theirs.lstm = DPLSTM(5, 4, batch_first=True, num_layers=levels)
    theirs.lstm.load_state_dict(model.lstm.state_dict())
    x, y = values(8, 9, 5), torch.arange(8) % 3
    for clip in (0.05, 1e4):
        mine, expected = (
            by_name(*pair) for pair in ((model, clipped_sum(model, x, y, clip)), (theirs, clipped_sum(theirs, x, y, clip, engine=hooks)))
        )
        assert mine.keys() == expected.keys()
        for name, gradient in expected.items():
            assert float((mine[name] - gradient).norm() / gradient.norm()) < 4 * gamma(terms_of(model, x.numel())), name


def by_name(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    names, sizes = zip(*((name, p.numel()) for name, p in model.named_parameters()), strict=True)
    return dict(zip(names, vector.split(sizes), strict=True))


def test_an_lstm_is_what_it_was_afterwards_and_drops_out_between_levels() -> None:
    model = Reader(5, batch_first=True, num_layers=2, dropout=0.5)
    x, y = values(8, 9, 5), torch.arange(8) % 3
    torch.manual_seed(1)
    first = clipped_sum(model, x, y, 1e4)
    torch.manual_seed(2)
    assert not torch.allclose(first, clipped_sum(model, x, y, 1e4))
    assert "forward" not in vars(model.lstm)
    model.lstm.dropout = 0.0
    with pytest.raises(ConfigError, match="a packed sequence; pad"):
        clipped_sum(Packing(), x, y, 1.0)


class Packing(Reader):
    def __init__(self) -> None:
        super().__init__(5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 9), batch_first=True)
        return torch.as_tensor(self.out(self.lstm(packed)[1][0][0]))


def test_norm_layers_over_several_axes_and_on_features() -> None:
    shaped = nn.Sequential(nn.LayerNorm((3, 4, 5)), nn.Conv2d(3, 4, 2), nn.GroupNorm(4, 4), nn.LayerNorm(4, bias=False))
    assert_equal(head(*shaped, features=48), values(6, 3, 4, 5), "flat")
    assert_equal(head(nn.Linear(5, 8), nn.GroupNorm(2, 8), nn.LayerNorm(8), features=8), values(6, 5), "flat")


def test_frozen_parameters_are_no_part_of_it() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
        model[0].weight.requires_grad_(False)
        model[1].bias.requires_grad_(False)
        model[4].requires_grad_(False)
        return model

    for clipping in ("flat", "per_layer"):
        assert_equal(make, values(6, 1, 4, 4), clipping)


class Spare(nn.Module):
    """A layer that is not used, and one whose output is not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.lost = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.lost(x)
        return self.used(x)


@CLIPPING
def test_what_the_batch_does_not_use_has_gradient_zero(clipping: str) -> None:
    assert_equal(Spare, values(6, 5), clipping)


def test_layers_that_change_their_output_in_place() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten())
    assert_equal(lambda: nn.Sequential(*copy.deepcopy(layers), nn.Linear(36, 3), nn.ELU(inplace=True)), values(6, 2, 5, 5), "flat")


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.inner, x, use_reentrant=False))


def test_activation_checkpoints() -> None:
    assert_equal(Checkpointed, values(6, 5), "flat")


class Difference(nn.Module):
    """The mean of the first half of the positions less that of the second, times a large number."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Conv1d(64, 48, 1) if convolution else nn.Linear(64, 48)
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x.transpose(1, 2)).transpose(1, 2) if self.convolution else self.layer(x)
        half = out.shape[1] // 2
        return (out[:, :half] - out[:, half:]).mean((1, 2)) * 1e6


@MEMORY
@pytest.mark.parametrize("engine", [book, ghost])
@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("positions", [8, 128])
def test_gradients_that_cancel_over_positions_stay_below_the_clip_norm(
    keep: int, engine: Any, convolution: bool, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions whose gradients are a thousand to a million times that of the record: rounding must not lift it above the norm."""
    monkeypatch.setattr(recordgrads, "KEEP", keep)
    torch.manual_seed(0)
    model = Difference(convolution)
    half = values(4, positions // 2, 64)
    for distance in (1e-1, 1e-3, 1e-5, 0.0):
        x = torch.cat([half, half * (1 + distance)], 1)
        for i in range(len(x)):
            assert float(clipped_sum(model, x[i : i + 1], torch.ones(1), 0.5, loss=mse, engine=engine).norm()) <= 0.5 * (1 + 1e-5)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Quiet(Twice):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.layer(x)
        return x + shift


class Positions(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(torch.eye(5, device=x.device))[: len(x)].mean(0)


class InPlace(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        out = self.layer(x)
        x += 1
        return out + x


class Penalty(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer.weight.square().sum()


class Halved(Twice):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.layer(x).float()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Twice, "'layer' is used more than once"),
        (Quiet, "'layer' runs without gradients"),
        (Positions, r"sees \(5, 5\) and not \[records"),
        (InPlace, "is changed in place"),
        (Penalty, "used outside its own layer"),
        (Halved, "bfloat16"),
    ],
)
def test_uses_that_it_cannot_clip_are_refused_in_one_sentence(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        clipped_sum(make(), values(6, 5), torch.arange(6) % 3, 1.0)
    assert str(caught.value).startswith("training.engine: book cannot clip this model")
    way_out = "one row for each record" if make is Positions else "use training.engine=hooks"  # which does not take it either
    assert way_out in str(caught.value)


class OwnLinear(nn.Linear):
    pass


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    return model


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def watched() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda layer, given, output: output * 2)
    return layer


def patched() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x @ layer.weight  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (tied, "share a parameter"),
        (lambda: nn.LSTM(3, 3, proj_size=2), "proj_size"),
        (lambda: nn.GRU(3, 3), r"\(GRU\)"),
        (lambda: OwnLinear(3, 3), r"\(OwnLinear\)"),
        (lambda: nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "Parametrized"),
        (Bare, r"\(Bare\)"),
        (watched, "forward pass of its own"),
        (patched, "forward pass of its own"),
    ],
)
def test_layers_that_it_does_not_know_are_refused_before_any_record(make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    assert unsupported(model) is not None
    with pytest.raises(ConfigError, match=f"book cannot clip this model .*{words}.* use training.engine=hooks"):
        clipped_sum(model, values(6, 5), torch.zeros(6, dtype=torch.int64), 1.0)


def test_known_layers_and_frozen_others_are_supported() -> None:
    assert unsupported(nn.Sequential(nn.GRU(3, 3).requires_grad_(False), nn.Dropout(), nn.Linear(3, 3))) is None
    for kind, shape in BUILT_IN:
        assert unsupported(build_model(ModelChoice(kind=kind), shape, 3, 0)) is None


def test_it_runs_without_importing_opacus() -> None:
    code = """
import sys, numpy as np, torch
from fedray.config import Training
from fedray.training.choose import choose_engine
from fedray.training.engine import DpStep, LocalJob
from fedray.training.losses import cross_entropy
from fedray.privacy.csprng import Csprng
model = torch.nn.Linear(5, 3)
name, engine = choose_engine("auto", True, model)
training = Training(sampling_rate=0.5, steps=2, expected_batch=3.0)
engine(model, torch.zeros(6, 5), torch.arange(6) % 3, LocalJob(training, 0.1, cross_entropy, np.random.default_rng(0), Csprng(), DpStep(1.0, 1.0)))
assert name == "book" and "opacus" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
