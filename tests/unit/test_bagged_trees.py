"""Boosted trees that clients grow with XGBoost: what becomes of them, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from rehearsed import Rehearsed, config_of
from test_histogram_trees import BASE, LOSSES, TRAINING, table

from fedray.algorithms.bagged_trees import BaggedTrees
from fedray.algorithms.forest import Shape
from fedray.configfile import build_config
from fedray.data.records import Federation, Records, offsets_of
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.models.trees import Trees
from fedray.parameters import set_vector
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare

xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed")
SIZES = [150, 50, 100]


def bagger(records: Records, loss: str, room: int = 9, **arguments: Any) -> Rehearsed:
    config = config_of({"kind": "bagged_trees", **arguments}, model={"kind": "trees", "trees": room, "depth": 3}, training={"loss": loss})
    return Rehearsed(config, Federation(["a", "b", "c"], records, offsets_of(SIZES), None, None, None, LOSSES[loss]))


def model_of(run: Rehearsed) -> Trees:
    set_vector(run.model, run.layout, run.globals[: run.layout.size])
    assert isinstance(run.model, Trees)
    return run.model


def bagged(records: Records, loss: str, rounds: int, shares: Sequence[float]) -> np.ndarray:
    """The same by XGBoost alone: margins of all records, after rounds in which each client's tree counts by its share."""
    objective = {"mse": "reg:squarederror", "binary_cross_entropy": "binary:logistic", "cross_entropy": "multi:softprob"}[loss]
    given = {"objective": objective, "eta": 1.0, "max_depth": 3, "nthread": 1, **({"num_class": 3} if loss == "cross_entropy" else {})}
    width = 3 if loss == "cross_entropy" else 1
    margins, bounds = np.zeros((300, width), dtype=np.float32), offsets_of(SIZES)
    nothing = xgboost.DMatrix(records.x, base_margin=np.zeros_like(margins))
    for _ in range(rounds):
        before = margins.copy()
        for share, a, b in zip(shares, bounds[:-1], bounds[1:], strict=True):
            booster = xgboost.train(given, xgboost.DMatrix(records.x[a:b], records.y[a:b], base_margin=before[a:b]), 1)
            margins += share * booster.predict(nothing, output_margin=True).reshape(300, width)
    return margins


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_the_model_is_the_mean_of_the_clients_boosters(loss: str, weights: str) -> None:
    records = table(300, 3, loss, 1)
    run = bagger(records, loss, weights=weights)
    for order in ([[0, 1], [2]], [[2], [0], [1]]):
        run.train(order)
    shares = np.array(SIZES) / 300 if weights == "samples" else np.full(3, 1 / 3)
    with torch.no_grad():
        found = model_of(run)(torch.from_numpy(records.x)).numpy()
    np.testing.assert_allclose(found, bagged(records, loss, 2, 0.3 * shares), rtol=0, atol=1e-5)


def test_trees_of_those_who_came_lie_one_after_the_other_until_the_model_is_full() -> None:
    records = table(300, 3, "mse", 2)
    one, other = bagger(records, "mse", 4), bagger(records, "mse", 4)
    one.train([[0], [2]])
    other.train([[2, 0]])
    assert one.globals.tobytes() == other.globals.tobytes()  # whatever actors the clients are at
    shape = Shape.of(one.layout)
    assert shape.grown(one.globals[: one.layout.size]) == 2 and model_of(one).gain.any()
    first = model_of(one).value.detach().clone()
    one.train([[0, 1, 2]])  # room for two of the three
    assert shape.grown(one.globals[: one.layout.size]) == 4
    assert (model_of(one).value[:, :2] == first[:, :2]).all()
    last = one.globals.copy()
    one.train([[1]])
    assert one.globals.tobytes() == last.tobytes()


def test_as_many_rounds_as_there_is_room_for() -> None:
    run = bagger(table(300, 3, "mse", 0), "mse", 9)
    weights = run.globals[: run.layout.size]
    assert BaggedTrees().most_rounds(run.layout, weights, 3, 3) == 3
    assert BaggedTrees().most_rounds(run.layout, weights, 2, 9) == 4
    with pytest.raises(ConfigError, match="model.trees: each of the 10 clients has a place"):
        BaggedTrees().most_rounds(run.layout, weights, 2, 10)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"rounds": 3}, "rounds: after 2 rounds of 'bagged_trees' the model is full"),
        ({"model": {"kind": "trees", "trees": 3}}, "model.trees: each of the 4 clients"),
        ({"model": {"kind": "logistic"}}, "model.kind: this algorithm.kind grows trees"),
        ({"server": {"kind": "yogi"}}, "server: has no effect, because the driver of 'bagged_trees'"),
        ({"training": TRAINING}, "training.batch_size: has no effect"),
        ({"training": {"loss": "mae"}}, "training.loss: trees are grown by the derivatives of"),
        ({"aggregation": {"kind": "median"}}, "is no plain sum"),
    ],
)
def test_settings_that_mean_nothing_are_refused(sections: dict[str, Any], words: str) -> None:
    base = {**BASE, "rounds": 2, "algorithm": {"kind": "bagged_trees"}, "model": {"kind": "trees", "trees": 8, "depth": 2}}
    with pytest.raises(ConfigError, match=words):
        config = build_config(base | sections)
        check_only(config)
        prepare(config)


def test_a_secure_sum_would_hide_nothing_and_is_refused() -> None:
    with pytest.raises(PrivacyRefusal, match="sends in a place of its own.*histogram_trees in place of bagged_trees") as refusal:
        check_only(build_config({**BASE, "algorithm": {"kind": "bagged_trees"}, "secure": {"kind": "secagg"}}))
    assert refusal.value.code == "privacy.incompatible.secure.singles"


def test_without_xgboost_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    model = {"kind": "trees", "trees": 8, "depth": 2}
    with pytest.raises(ConfigError, match=r"pip install 'fedray\[trees\]' on all machines, or use histogram_trees"):
        prepare(build_config({**BASE, "rounds": 2, "algorithm": {"kind": "bagged_trees"}, "model": model}))
