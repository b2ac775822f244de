"""What nothing reads is refused, whatever part it names: an argument that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from fedray.aggregation.exact import ExactSum
from fedray.aggregation.rule import Rule, make_rule
from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import ConfigError
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.traits import Wants

RAW: dict[str, Any] = {
    "name": "t",
    "rounds": 2,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 3}, "normalize": {"kind": "unit_norm"}},
    "model": {"kind": "softmax"},
    "training": {"batch_size": 8, "epochs": 1, "schedule": {"kind": "constant"}},
    "algorithm": {"kind": "fedavg", "weights": "uniform"},
    "cohort": {"kind": "all"},
    "aggregation": {"kind": "mean"},
    "server": {"kind": "sgd"},
}
PRIVATE: dict[str, Any] = {"regime": "distributed", "noise_multiplier": 2.0, "delta": 1e-3, "mechanism": {"kind": "ddg"}}


def made(path: str, value: Any) -> Config:
    """The config with one key changed."""
    raw: dict[str, Any] = {**RAW, "cohort": {"kind": "all", "min_clients": 2}, "privacy": PRIVATE} if "mechanism" in path else dict(RAW)
    node = raw
    *sections, key = path.split(".")
    for section in sections:
        node[section] = dict(node.get(section) or {})
        node = node[section]
    node[key] = value
    return build_config(raw)


SECTIONS = ["aggregation", "algorithm", "server", "model", "cohort", "training.schedule", "data", "data.partition", "data.normalize"]


def test_the_config_without_such_an_argument_is_accepted() -> None:
    prepare(made("seed", 1))


@pytest.mark.parametrize("section", [*SECTIONS, "privacy.mechanism"])
def test_an_argument_that_no_part_takes_is_refused(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{section}.foo: unknown"):
        prepare(made(f"{section}.foo", 1))


@dataclass(frozen=True)
class Halved(Rule[ExactSum]):
    """A rule with an argument of its own."""

    wants: ClassVar[Wants] = "sum"
    by: float = 2.0

    def combine(self, got: ExactSum, kept: Any) -> Any:
        return got.mean() / np.float32(self.by), {}


class Unfinished(Rule[ExactSum]):
    """A rule that lacks its half."""


class Greedy(Halved):
    """A rule that wants what there is not."""

    wants: ClassVar[Any] = "all"


def old_form(total: ExactSum) -> Any:
    """A plain function."""
    return total.mean()


def nothing() -> None:
    return None


HERE = f"python:{__name__}:"


def test_a_rule_of_ones_own_gets_its_arguments_and_no_others() -> None:
    total = ExactSum.zero(3, 1.0)
    total.add(np.array([1.0, 2.0, 4.0], dtype=np.float32), 1.0)
    config = made("aggregation", {"kind": f"{HERE}Halved", "by": 4})
    assert make_rule(config.aggregation).combine(total, {})[0].tolist() == [0.25, 0.5, 1.0]
    with pytest.raises(ConfigError, match=r"^aggregation.total: unknown argument of Halved"):
        check_only(made("aggregation", {"kind": f"{HERE}Halved", "total": 1}))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (f"{HERE}old_form", "is a function; name a class derived from fedray.aggregation.rule.Rule"),
        (f"{HERE}nothing", "is a function; name a class"),
        ("python:os:getpid", "is a builtin_function_or_method; name a class"),
        ("python:collections:Counter", "is the class Counter; name a class derived from"),
        (f"{HERE}RAW", "is a dict"),
        (f"{HERE}Unfinished", "lacks combine"),
        (f"{HERE}Greedy", "wants 'all'; set wants to 'sum' or 'each'"),
        ("medium", "is not known.*Did you mean 'median'"),
    ],
)
def test_what_is_no_rule_is_refused(kind: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^aggregation.kind: .*{words}"):
        check_only(made("aggregation.kind", kind))


def test_a_part_written_in_c_ends_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="what arguments max takes cannot be known"):
        check_only(made("model.kind", "python:builtins:max"))
