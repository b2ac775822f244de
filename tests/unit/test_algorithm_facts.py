"""What ``fedray list algorithms`` says of an algorithm follows from its exchange, its traits and the checks of a run."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner
from torch import nn

from fedray import components
from fedray.algorithms.algorithm import Algorithm
from fedray.algorithms.bagged_trees import BaggedTrees
from fedray.cli import cli
from fedray.errors import ConfigError
from fedray.planning.algorithmfacts import algorithm_facts

FACTS = algorithm_facts()


def test_every_algorithm_has_its_facts() -> None:
    parts = components.ALGORITHMS.parts()
    assert FACTS.keys() == parts.keys()
    for name, part in parts.items():
        assert isinstance(part, type) and issubclass(part, Algorithm)
        assert FACTS[name].keeps.startswith("client") == part.traits.state
        assert (FACTS[name].reads == "nothing") == (not part.traits.reads and not part.traits.adapted)
        assert "model" in FACTS[name].down


def test_a_package_that_is_not_installed_hides_no_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    assert algorithm_facts()["bagged_trees"] == FACTS["bagged_trees"]
    with pytest.raises(ConfigError, match=r"takes the package xgboost .* pip install 'fedray\[trees\]' on all machines"):
        BaggedTrees().check_model(nn.Identity())


def test_they_say_what_travels_what_stays_and_what_a_run_may_have_beside() -> None:
    assert (FACTS["fedavg"].down, FACTS["fedavg"].up, FACTS["fedavg"].keeps) == ("model", "model", "nothing")
    assert FACTS["scaffold"].up == "model, control"
    assert FACTS["ifca"].down == "model (2 times the model's size)"
    assert FACTS["fednova"].up == "model, steps (1 value)"
    assert FACTS["fedper"].keeps == "client: its personal layers"
    assert FACTS["feddyn"].keeps == "client: vectors of its own; driver: past"
    assert "distributed with algorithm.weights=uniform" in FACTS["fedavg"].combined
    assert "record" in FACTS["fedper"].combined and "record" not in FACTS["ditto"].combined


def test_the_list_shows_them() -> None:
    table, one = (CliRunner().invoke(cli, ["list", "algorithms", *name]).output for name in ((), ("scaffold",)))
    assert all(title in table.splitlines()[1] for title in ("goes down", "comes up", "is kept", "goes with", "source"))
    assert "Comes up: model, control\n" in one and "Is kept: client: vectors of its own\n" in one
