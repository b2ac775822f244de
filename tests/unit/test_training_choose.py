"""Which engine a run uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from fedray import components
from fedray.choices import ModelChoice
from fedray.errors import ConfigError
from fedray.models.build import build_model
from fedray.training.choose import choose_engine
from fedray.training.plain import plain


def test_without_privacy_it_is_the_plain_engine() -> None:
    assert choose_engine("auto", False, nn.Linear(2, 2)) == ("plain", plain)
    assert choose_engine("plain", False, nn.Linear(2, 2)) == ("plain", plain)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    table = {name: (lambda *_, name=name: name) for name in ("plain", "book", "hooks", "ghost")}
    find = components.find
    monkeypatch.setattr(components, "find", lambda room, name: table[name] if room == components.ENGINES else find(room, name))
    return table


def test_under_privacy_it_is_book_where_that_knows_the_layers_and_else_hooks(engines: dict[str, object]) -> None:
    for kind in ("opacus_cnn", "fedavg_cnn"):
        model = build_model(ModelChoice(kind=kind), (1, 28, 28), 10, seed=0)
        assert choose_engine("auto", True, model) == ("book", engines["book"])
        for name in ("book", "hooks", "ghost"):
            assert choose_engine(name, True, model) == (name, engines[name])
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    for other in (tied, nn.Sequential(nn.GRU(3, 3)), nn.Sequential(nn.InstanceNorm2d(3, affine=True))):
        assert choose_engine("auto", True, other) == ("hooks", engines["hooks"])


@pytest.mark.parametrize(
    ("name", "private", "words"),
    [
        ("plain", True, "gives no record-level privacy"),
        ("python:os.path:join", True, "gives no record-level privacy"),
        ("book", False, "privacy.regime is none"),
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


def test_neither_runs_without_privacy_nor_the_choice_of_book_import_opacus() -> None:
    code = (
        "import sys; from torch import nn; from fedray.training.choose import choose_engine;"
        "choose_engine('auto', False, nn.Linear(2, 2)); choose_engine('auto', True, nn.Linear(2, 2)); assert not any(m.startswith(('opacus', 'sklearn')) for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
