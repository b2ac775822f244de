"""The built-in models: parameter counts, shapes, gradients, independence of records."""

from __future__ import annotations

import inspect

import pytest
import torch

from fedray import components
from fedray.components import MODELS
from fedray.errors import ConfigError

IMAGES = {"fedavg_cnn": (1, 28, 28), "lenet": (1, 28, 28), "opacus_cnn": (1, 28, 28), "resnet18_gn": (3, 32, 32)}
ALL = {
    "softmax": (64,),
    "logistic": (30,),
    "linear": (30,),
    "mlp": (8, 8),
    "2nn": (1, 28, 28),
    "lstm": (9, 5),
    "transformer": (9,),
    **IMAGES,
}


def make(name: str, shape: tuple[int, ...], outputs: int | None = None, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.parts()[name](shape, outputs if outputs is not None else 1 if name == "logistic" else 10, **arguments)


def test_every_built_in_model_is_tested_here() -> None:
    assert set(MODELS.parts()) == {*ALL, "late_fusion", "trees"}  # of which tests/unit/test_histogram_trees.py has its own


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("softmax", (1, 28, 28), 7_850),
        ("logistic", (30,), 31),
        ("mlp", (64,), 64 * 64 + 64 + 650),
        ("2nn", (1, 28, 28), 199_210),
        ("lstm", (28, 28), 4 * 128 * (28 + 128 + 2) + 1_290),
        ("fedavg_cnn", (1, 28, 28), 1_663_370),
        ("fedavg_cnn", (28, 28), 1_663_370),
        ("transformer", (9,), 10 * 128 + 9 * 128 + 2 * (12 * 128 * 128 + 13 * 128) + 2 * 128 + 1_290),
        ("lenet", (1, 28, 28), 61_706),
        ("lenet", (3, 32, 32), 62_006),
        ("opacus_cnn", (1, 28, 28), 26_010),
        ("resnet18_gn", (3, 32, 32), 11_173_962),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, shape: tuple[int, ...], count: int) -> None:
    assert sum(p.numel() for p in make(name, shape).parameters()) == count


@pytest.mark.parametrize("name", sorted(set(ALL) - {"transformer"}))  # of which tests/unit/test_next_token.py has its own
def test_every_parameter_gets_a_gradient_and_no_record_touches_another(name: str) -> None:
    model = make(name, ALL[name])
    x = torch.randn(3, *ALL[name], requires_grad=True)
    out = model(x)
    assert out.shape == (3, 1 if name == "logistic" else 10)
    (of_first,) = torch.autograd.grad(out[0].square().sum(), x, retain_graph=True)
    assert of_first[0].abs().max() > 0
    assert of_first[1:].abs().max() == 0
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_built_in_model_has_state_or_in_place_layers(name: str) -> None:
    model = make(name, ALL[name])
    assert list(model.named_buffers()) == []
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("side", [14, 15, 16, 17, 22, 28, 31, 32, 40])
@pytest.mark.parametrize("name", ["fedavg_cnn", "lenet", "opacus_cnn"])
def test_cnns_compute_their_own_feature_sizes(name: str, side: int) -> None:
    assert make(name, (2, side, side + 3), outputs=7)(torch.zeros(2, 2, side, side + 3)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_grey_images_without_a_channel_axis_give_the_same_network(name: str) -> None:
    x = torch.randn(2, 28, 28)
    with torch.no_grad():
        assert torch.equal(make(name, (28, 28))(x), make(name, (1, 28, 28))(x[:, None]))


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "words"),
    [
        ("fedavg_cnn", (64,), {}, "channels, height, width"),
        ("lenet", (1, 8, 8), {}, "12 x 12"),
        ("resnet18_gn", (32, 32, 3), {}, "move the channels to the front"),
        ("softmax", (), {}, "at least one value"),
        ("mlp", (4,), {"hidden": [8, 0]}, "model.hidden"),
        ("mlp", (4,), {"dropout": 1.0}, "model.dropout"),
        ("resnet18_gn", (3, 32, 32), {"groups": 24}, "model.groups: 24"),
        ("logistic", (4,), {"outputs": 3}, "one logit"),
        ("lstm", (4,), {}, "model.tokens"),
        ("lstm", (3, 8, 8), {}, "T, features"),
        ("lstm", (8, 8), {"tokens": 9}, "with tokens"),
        ("lstm", (8, 8), {"hidden": 0}, "model.hidden"),
        ("lstm", (8, 8), {"dropout": 1.0}, "model.dropout"),
    ],
)
def test_wrong_shapes_and_arguments_are_one_sentence(name: str, shape: tuple[int, ...], arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make(name, shape, **arguments)
    assert str(caught.value).startswith("model.")
    assert str(caught.value).endswith(".")


def test_mlp_takes_layers_activation_and_dropout() -> None:
    model = make("mlp", (5,), hidden=[4, 3], activation="tanh", dropout=0.5)
    assert [type(m).__name__ for m in model] == ["Flatten", "Linear", "Tanh", "Dropout", "Linear", "Tanh", "Dropout", "Linear"]
    assert len(make("mlp", (5,), hidden=[])) == 2


def test_lstm_reads_tokens_and_rows_of_images() -> None:
    tokens = make("lstm", (12,), tokens=90, hidden=256, levels=2, outputs=90)
    assert sum(p.numel() for p in tokens.parameters()) == 90 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + 256 * 90 + 90
    assert tokens(torch.randint(0, 90, (3, 12))).shape == (3, 90)
    x = torch.randn(2, 28, 28)
    with torch.no_grad():
        assert torch.equal(make("lstm", (28, 28))(x), make("lstm", (1, 28, 28))(x[:, None]))


def test_late_fusion_takes_inputs_of_any_shape_and_lets_no_record_touch_another() -> None:
    shapes = {"image": (2, 3, 3), "table": (4,)}
    model = MODELS.parts()["late_fusion"](shapes, 5, hidden=6)
    assert sum(p.numel() for p in model.parameters()) == (18 * 6 + 6) + (4 * 6 + 6) + (12 * 5 + 5)
    inputs = {name: torch.randn(3, *shape, requires_grad=True) for name, shape in shapes.items()}
    gradients = torch.autograd.grad(model(**inputs)[0].square().sum(), list(inputs.values()))
    assert all(g[0].abs().sum() > 0 and not g[1:].any() for g in gradients)
    with pytest.raises(ConfigError, match="hidden"):
        MODELS.parts()["late_fusion"](shapes, 5, hidden=0)


def test_every_model_says_what_it_is() -> None:
    for row in components.listing(MODELS):
        assert row.summary
    assert "McMahan" in inspect.getdoc(MODELS.parts()["fedavg_cnn"])


def test_opacus_gives_the_gradient_of_each_record_through_the_residual_blocks() -> None:
    from opacus.grad_sample import GradSampleModule
    from opacus.validators import ModuleValidator

    for name in IMAGES:
        assert ModuleValidator.validate(make(name, IMAGES[name]), strict=False) == []
    model = make("resnet18_gn", (1, 16, 16), outputs=3, groups=8).double()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    for i in range(2):
        model.zero_grad()
        model(x[i : i + 1]).square().sum().backward()
        alone = [p.grad.clone() for p in model.parameters()]
        if i == 0:
            first = alone
    wrapped = GradSampleModule(model, loss_reduction="sum")
    wrapped.zero_grad()
    wrapped(x).square().sum().backward()
    for p, one, two in zip(model.parameters(), first, alone, strict=True):
        torch.testing.assert_close(p.grad_sample, torch.stack([one, two]))
