"""Which engine a run uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from fedray import components
from fedray.config import Part
from fedray.errors import ConfigError
from fedray.models.build import build_model
from fedray.training.choose import choose_engine, suits_ghost
from fedray.training.plain import plain


def test_without_privacy_it_is_the_plain_engine() -> None:
    assert choose_engine("auto", False, nn.Linear(2, 2)) == ("plain", plain)
    assert choose_engine("plain", False, nn.Linear(2, 2)) == ("plain", plain)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    table = {name: (lambda *_, name=name: name) for name in ("plain", "hooks", "ghost")}
    find = components.find
    monkeypatch.setattr(components, "find", lambda room, name: table[name] if room == components.ENGINES else find(room, name))
    return table


def test_under_privacy_large_models_are_ghost_clipped_and_others_hooked(engines: dict[str, object]) -> None:
    small = build_model(Part(kind="opacus_cnn"), (1, 28, 28), 10, seed=0)
    large = build_model(Part(kind="fedavg_cnn"), (1, 28, 28), 10, seed=0)
    assert choose_engine("auto", True, small) == ("hooks", engines["hooks"])
    assert choose_engine("auto", True, large) == ("ghost", engines["ghost"])
    assert choose_engine("hooks", True, large) == ("hooks", engines["hooks"])
    assert choose_engine("ghost", True, small) == ("ghost", engines["ghost"])


def test_shared_parameters_and_unsupported_layers_rule_ghost_out() -> None:
    plain_layers = nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.LayerNorm(600), nn.Linear(600, 2))
    assert suits_ghost(plain_layers)
    tied = nn.Sequential(nn.Embedding(600, 600), nn.Linear(600, 600, bias=False))
    assert suits_ghost(tied)
    tied[1].weight = tied[0].weight
    assert not suits_ghost(tied)
    assert not suits_ghost(nn.Sequential(nn.LSTM(300, 300), nn.Linear(300, 2)))

    class OwnLinear(nn.Linear):
        pass

    assert not suits_ghost(OwnLinear(600, 600))

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(600, 600)
            self.scale = nn.Parameter(self.inner.weight.detach().clone())

    assert not suits_ghost(Bare())
    frozen = nn.Sequential(nn.LSTM(300, 300).requires_grad_(False), nn.Linear(300, 900))
    assert suits_ghost(frozen)
    assert not suits_ghost(nn.Linear(600, 600).requires_grad_(False))


@pytest.mark.parametrize(
    ("name", "private", "words"),
    [
        ("plain", True, "gives no record-level privacy"),
        ("python:os.path:join", True, "gives no record-level privacy"),
        ("hooks", False, "privacy.regime is none"),
        ("ghost", False, "privacy.regime is none"),
        ("plan", False, "Did you mean 'plain'"),
    ],
)
def test_engines_that_do_not_go_with_the_regime_are_refused(name: str, private: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        choose_engine(name, private, nn.Linear(2, 2))
    assert str(caught.value).startswith("training.engine: ")


def test_a_users_engine_runs_without_privacy() -> None:
    name, engine = choose_engine("python:fedray.training.plain:plain", False, nn.Linear(2, 2))
    assert name.startswith("python:")
    assert engine is plain


def test_runs_without_privacy_do_not_import_opacus() -> None:
    code = (
        "import sys; from torch import nn; from fedray.training.choose import choose_engine;"
        "choose_engine('auto', False, nn.Linear(2, 2)); assert not any(m.startswith(('opacus', 'sklearn')) for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
