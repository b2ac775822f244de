"""Which aggregation rules go with which guarantee: decided by what a rule declares, not by its name."""

from __future__ import annotations

from typing import Any

import pytest

from fedray.aggregation.exact import ExactSum
from fedray.aggregation.mean import WeightedMean
from fedray.aggregation.median import CoordinateMedian
from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only, check_privacy


class mean(CoordinateMedian):
    """Single updates under the name of the mean."""


class median(WeightedMean):
    """The mean under another name."""


class Half(WeightedMean):
    """A rule of its own of the sum, though derived from the mean."""

    def combine(self, got: ExactSum, kept: Any) -> Any:
        return got.mean() / 2, {}


HERE = f"python:{__name__}:"
SINGLE = ["median", "trimmed_mean", f"{HERE}mean"]
SUMS = ["mean", f"{HERE}median"]


def check(regime: Any, kind: str) -> list[str]:
    clipped = {"noise_multiplier": 2.0, "delta": 1e-3, "clip": 1.0}
    privacy = {} if regime == "none" else {"regime": regime, **clipped} | ({"joint": clipped} if isinstance(regime, list) else {})
    local = {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30} if "record" in regime else {"batch_size": 10, "epochs": 1}
    raw = {
        "name": "t",
        "rounds": 3,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": local,
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "cohort": {"kind": "all", "min_clients": 2},
        "aggregation": {"kind": kind},
        "privacy": privacy,
    }
    return check_privacy(build_config(raw))


@pytest.mark.parametrize("kind", SINGLE)
def test_single_updates_are_refused_where_the_noise_is_made_for_the_sum(kind: str) -> None:
    for regime, code in (("client", "client"), ("distributed", "distributed"), (["record", "client"], "client")):
        with pytest.raises(PrivacyRefusal, match=r"one client can change its result.*; use mean, or privacy.regime=local.*\.$") as caught:
            check(regime, kind)
        assert caught.value.code == f"privacy.incompatible.{code}.aggregation"


@pytest.mark.parametrize("kind", SINGLE)
def test_single_updates_that_are_noised_already_are_allowed_with_a_warning(kind: str) -> None:
    for regime in ("record", "local"):
        (warning,) = check(regime, kind)
        assert "mostly noise" in warning
    assert check("none", kind) == []


@pytest.mark.parametrize("kind", SUMS)
def test_the_mean_goes_with_everything_whatever_it_is_called(kind: str) -> None:
    for regime in ("none", "record", "client", "distributed", "local", ["record", "client"]):
        assert check(regime, kind) == []


@pytest.mark.parametrize("algorithm", ["qfedavg", "ifca"])
def test_an_algorithm_that_divides_sums_needs_sums(algorithm: str) -> None:
    arguments = {"clusters": 2} if algorithm == "ifca" else {}
    raw = {
        "name": "t",
        "rounds": 3,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 10, "epochs": 1},
        "algorithm": {"kind": algorithm, **arguments},
    }
    check_only(build_config(raw))
    with pytest.raises(ConfigError, match="divides one sum of what clients send by another.*; use mean"):
        check_only(build_config({**raw, "aggregation": {"kind": "median"}}))


def test_a_rule_of_the_sum_that_the_mechanism_would_not_run_is_refused() -> None:
    for regime in ("client", "distributed"):
        with pytest.raises(PrivacyRefusal, match=r"would not run.*; use mean"):
            check(regime, f"{HERE}Half")
    for regime in ("none", "record", "local"):
        assert check(regime, f"{HERE}Half") == []
