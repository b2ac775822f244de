"""MOON: turns written out, which layer is looked at, and losses that an algorithm adds."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rehearsed import Rehearsed, config_of, label_skewed
from torch import Tensor, nn
from torch.nn import functional

from fedray.algorithms.moon import Moon
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector, set_vector
from fedray.planning.preparation import prepare
from fedray.rng import Keyed, generator
from fedray.training.engine import LocalJob
from fedray.training.losses import find_loss
from fedray.training.plain import batches, plain

FEDERATION, _ = label_skewed()
MLP = {"kind": "mlp", "hidden": [8]}


@pytest.mark.parametrize("layer", [None, "out", "fc1"])
def test_three_turns_are_algorithm_1(layer: str | None) -> None:
    """Of one client, and of one that comes between; the term as the paper writes it."""
    mu, temperature = 2.0, 0.5
    config = config_of(
        {"kind": "moon", "mu": mu, "temperature": temperature, "layer": layer},
        model=MLP,
        training={"lr": 0.1, "batch_size": 20, "epochs": 2, "momentum": 0.5, "physical_batch": 7},
    )
    run = Rehearsed(config, FEDERATION)
    model, facts = first_model(config.model, (64,), 10, config.seed)
    common = get_vector(model, facts.layout)
    last: dict[int, np.ndarray] = {}

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        at = {None: "out", "out": "out", "fc1": "fc1"}[layer]
        z: list[Tensor] = []
        module = model.get_submodule(at)
        handle = module.register_forward_hook(lambda m, args, out: z.append(args[0] if layer is None else out))
        try:
            return model(x), z[0]
        finally:
            handle.remove()

    for number, k in enumerate((4, 7, 4, 4)):
        rows = slice(*FEDERATION.offsets[k : k + 2])
        x, y = (torch.from_numpy(v[rows]) for v in (FEDERATION.train.x, FEDERATION.train.y))
        fixed = []
        for vector in (common, last.get(k, common)):
            set_vector(model, facts.layout, vector)
            fixed.append(parts(x)[1].detach())
        set_vector(model, facts.layout, common)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        for batch in batches(len(y), config.training, Keyed(config.seed, "batches", number)(k)):
            outputs, z = parts(x[batch])
            towards, away = (torch.exp(functional.cosine_similarity(z, f[batch], dim=1) / temperature) for f in fixed)
            loss = functional.cross_entropy(outputs, y[batch]) - mu * torch.log(towards / (towards + away)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        common = last[k] = get_vector(model, facts.layout)
        run.train([[k]])
        np.testing.assert_allclose(run.globals, common, rtol=0, atol=2e-5)


def test_what_a_layer_makes_of_digits_stays_with_the_global_model() -> None:
    """Cosine to the global model's representation less that to the client's last local one, after a client's second turn: -0.43 and 0.61."""
    x = torch.from_numpy(FEDERATION.train.x[slice(*FEDERATION.offsets[4:6])])
    found = []
    for part in ({"kind": "fedavg"}, {"kind": "moon", "mu": 5.0}):
        run = Rehearsed(config_of(part, model={"kind": "mlp", "hidden": [32]}), FEDERATION)
        first = run.globals
        run.train([[4]])
        last, run.globals = run.globals, first  # as if the others had moved the model back
        run.train([[4]])
        z = []
        for vector in (run.globals, first, last):
            set_vector(run.model, run.layout, vector)
            with torch.no_grad():
                z.append(run.model[:-1](x))
        common, before = (float(functional.cosine_similarity(z[0], other).mean()) for other in z[1:])
        found.append(common - before)
    assert found[1] > found[0] + 0.5


def test_hooks_and_copies_leave_no_trace() -> None:
    run = Rehearsed(config_of({"kind": "moon"}, model=MLP), FEDERATION)
    for _ in range(2):
        run.train([[0, 3]])
    model = run.host(0)._trainer.model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    training = {"lr": 0.1, "batch_size": 10, "epochs": 2, "engine": "plain"}
    usual, first = (Rehearsed(config_of({"kind": kind}, model=MLP, training=training), FEDERATION) for kind in ("fedavg", "moon"))
    for one in (usual, first):
        one.train([[0, 3]])
    assert first.globals.tobytes() == usual.globals.tobytes()  # no last model, no term


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"mu": 0}, "mu: 0.0 is not above 0"), ({"temperature": -1}, "temperature: -1.0 is not above 0")],
)
def test_strengths_that_mean_nothing_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Rehearsed(config_of({"kind": "moon", **arguments}), FEDERATION)


def test_a_layer_that_the_model_lacks_is_refused_before_the_run() -> None:
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}
    with pytest.raises(ConfigError, match="algorithm.layer: the model has no layer 'fc9'; it has .*out"):
        prepare(config_of({"kind": "moon", "layer": "fc9"}, model=MLP, data=data))
    with pytest.raises(ConfigError, match="no linear layer whose input would be the representation; name one of a"):
        Moon().check_model(nn.Sequential(OrderedDict(a=nn.Flatten())))


@pytest.mark.parametrize("settings", [{"batch_size": 5, "epochs": 2}, {"sampling_rate": 0.2, "steps": 6, "expected_batch": 4.0}])
def test_an_extra_loss_is_the_same_as_one_of_the_run(settings: dict[str, Any]) -> None:
    """A quarter of the loss as the run's and the rest as the algorithm's, over parts of batches."""
    x, y = torch.randn(23, 4, generator=torch.Generator().manual_seed(0)), torch.arange(23) % 3
    labels = {tuple(row.tolist()): int(label) for row, label in zip(x, y, strict=True)}
    outputs: list[Tensor] = []

    def part(share: float, out: Tensor, target: Tensor) -> Tensor:
        return share * functional.cross_entropy(out, target, reduction="none")

    def extra(records: Tensor) -> Tensor:
        return part(0.75, outputs[-1], torch.tensor([labels[tuple(row.tolist())] for row in records]))

    found = []
    for share, more in ((1.0, None), (0.25, extra)):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        model.register_forward_hook(lambda m, args, out: outputs.append(out))
        training = Training(lr=0.1, momentum=0.9, physical_batch=2, **settings)
        result = plain(model, x, y, LocalJob(training, 0.1, partial(part, share), generator(0, "b"), extra=more))
        found.append((get_vector(model, Layout.of(model)), result.loss or 0.0))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=1e-6)
    assert found[1][1] == pytest.approx(0.25 * found[0][1], rel=1e-4)  # the run's own part alone


def test_an_extra_loss_has_one_value_a_record() -> None:
    x, y = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    training = Training(lr=0.1, batch_size=3, epochs=1)
    job = LocalJob(training, 0.1, find_loss("cross_entropy"), generator(0, "b"), extra=lambda records: records.sum())
    with pytest.raises(ConfigError, match=r"its extra loss has shape \(\) for 3 records; return one value for each"):
        plain(nn.Linear(4, 3), x, y, job)
