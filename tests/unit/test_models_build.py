"""build_model: determinism, users' factories, what is refused."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedray.choices import ModelChoice
from fedray.errors import ConfigError
from fedray.models.build import build_model, evaluating
from fedray.parameters import Layout, fingerprint, get_vector

USER = """
import random
import numpy as np
import torch
from torch import nn

seen = {}

def own(outputs, width: int = 3):
    seen["own"] = outputs
    return nn.Sequential(nn.Linear(6, width), nn.Linear(width, outputs))

def neither():
    return nn.Linear(6, 4)

def drawn(input_shape, outputs):
    model = nn.Linear(input_shape[0], outputs)
    with torch.no_grad():
        model.weight.fill_(np.random.rand() + random.random())
    return model

def lazy(outputs): return nn.LazyLinear(outputs)

class Net(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.out = nn.Linear(input_shape[0], outputs)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x):
        return self.norm(self.out(x))

class Tokens(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embed = nn.Embedding(20, 5)
        self.out = nn.Linear(5, outputs)

    def forward(self, x):
        return self.out(self.embed(x).mean(1))

def nothing(): return None
def frozen(outputs): return nn.Linear(6, outputs).requires_grad_(False)
def double(outputs): return nn.Linear(6, outputs).double()
def broken(): raise KeyError("weights")
def column(): return nn.Linear(6, 1)
def flat(): return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
class Pair(nn.Linear):
    def forward(self, x): return (x, x)
def pair(): return Pair(6, 4)
value = 3
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_models_for_test.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models_for_test", raising=False)
    return "python:my_models_for_test:"


def prints(model: nn.Module) -> str:
    return fingerprint(get_vector(model, Layout.of(model)))


def test_same_seed_same_bytes_in_another_process_and_other_seed_other_bytes() -> None:
    part = ModelChoice(kind="mlp", hidden=[7])
    torch.manual_seed(123)
    here = prints(build_model(part, (6,), 4, seed=5))
    torch.manual_seed(124)
    assert prints(build_model(part, (6,), 4, seed=5)) == here
    assert prints(build_model(part, (6,), 4, seed=6)) != here
    code = (
        "from fedray.config import ModelChoice; from fedray.models.build import build_model; from fedray.parameters import *;"
        "m = build_model(ModelChoice(kind='mlp', hidden=[7]), (6,), 4, seed=5); print(fingerprint(get_vector(m, Layout.of(m))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert other.stdout.strip() == here


def test_global_generators_are_left_alone(user: str) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    build_model(ModelChoice(kind=user + "drawn"), (6,), 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])


def test_users_factories_take_what_they_name(user: str) -> None:
    model = build_model(ModelChoice(kind=user + "own", width=9), (6,), 4, seed=0)
    assert model[0].out_features == 9
    assert sys.modules["my_models_for_test"].seen == {"own": 4}
    assert build_model(ModelChoice(kind=user + "neither"), (6,), 4, seed=0)(torch.zeros(1, 6)).shape == (1, 4)
    one, two = (prints(build_model(ModelChoice(kind=user + "drawn"), (6,), 4, seed=3)) for _ in range(2))
    assert one == two
    assert build_model(ModelChoice(kind=user + "lazy"), (6,), 4, seed=0).weight.shape == (4, 6)
    tokens = build_model(ModelChoice(kind=user + "Tokens"), (11,), 4, seed=0, dtype=torch.int64)
    assert tokens(torch.zeros(3, 11, dtype=torch.int64)).shape == (3, 4)


def test_the_trial_run_leaves_modes_and_statistics_as_they_were(user: str) -> None:
    model = build_model(ModelChoice(kind=user + "Net"), (6,), 4, seed=0)
    assert model.training
    assert model.norm.training
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.norm.running_var, torch.ones(4))


@pytest.mark.parametrize("name", ["column", "flat"])
def test_one_output_may_be_a_column_or_flat(user: str, name: str) -> None:
    build_model(ModelChoice(kind=user + name), (6,), 1, seed=0)


@pytest.mark.parametrize(
    ("part", "outputs", "words"),
    [
        (ModelChoice(kind="mpl"), 4, "Did you mean 'mlp'"),
        (ModelChoice(kind="mlp", hiden=[3]), 4, "model.hiden.*Did you mean 'hidden'"),
        (ModelChoice(kind="mlp", hidden="wide"), 4, "model.hidden"),
        (ModelChoice(kind="mlp", activation="rely"), 4, "model.activation"),
        (ModelChoice(kind="mlp", outputs=3), 4, "model.outputs: unknown"),
        (ModelChoice(kind="lenet"), 4, r"\(6,\)"),
    ],
)
def test_wrong_sections_are_refused(part: ModelChoice, outputs: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(part, (6,), outputs, seed=0)


@pytest.mark.parametrize(
    ("name", "outputs", "words"),
    [
        ("neither", 10, r"gives outputs of shape \(2, 4\) for 2 records, but the data has 10 classes"),
        ("neither", 1, r"\(2, 4\).*one output a record"),
        ("nothing", 4, "made a NoneType"),
        ("frozen", 4, "no trainable parameters"),
        ("double", 4, "failed on a batch of float32 records"),
        ("broken", 4, "failed with KeyError: 'weights'"),
        ("pair", 4, "returns a tuple"),
        ("value", 4, "is a int"),
        ("absent", 4, "has no 'absent'"),
    ],
)
def test_models_that_do_not_fit_are_refused(user: str, name: str, outputs: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build_model(ModelChoice(kind=user + name), (6,), outputs, seed=0)
    assert str(caught.value).startswith("model.kind: ")
    assert "\n" not in str(caught.value)


def test_records_of_the_wrong_shape_are_named(user: str) -> None:
    with pytest.raises(ConfigError, match=r"float32 records of shape \(7,\) with RuntimeError"):
        build_model(ModelChoice(kind=user + "neither"), (7,), 4, seed=0)


def test_evaluating_restores_each_modules_own_mode() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())

    def interrupted() -> None:
        with evaluating(model):
            assert not model[0].training
            assert not torch.is_grad_enabled()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        interrupted()
    assert torch.is_grad_enabled()
    assert [m.training for m in model] == [True, False]
