"""Boosted trees from histograms: the same bits for any split of the records, and the trees that XGBoost grows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of
from sklearn import datasets

from fedray.algorithms.bin_edges import REFINEMENTS, first_edges, refined
from fedray.algorithms.histogram_trees import HistogramTrees
from fedray.algorithms.totals import RecordTotals
from fedray.configfile import build_config, load_config
from fedray.data.records import Federation, Records, offsets_of
from fedray.errors import ConfigError, UpdateRejected
from fedray.models.trees import Trees, trees
from fedray.parameters import Layout, get_vector, set_vector
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare

LOSSES = {"binary_cross_entropy": 2, "cross_entropy": 3, "mse": None}
ROOT = Path(__file__).parents[2]


def table(n: int, width: int, loss: str, seed: int) -> Records:
    """Features of several scales, one of them with few values, and targets that depend on two of them."""
    draws = np.random.default_rng(seed)
    x = (draws.standard_normal((n, width)) * 10.0 ** np.arange(-2, width - 2)).astype(np.float32)
    x[:, 0] = draws.integers(0, 3, n)
    score = x[:, 0] - 1 + x[:, 1] / 0.1 + draws.standard_normal(n) / 2
    classes = LOSSES[loss]
    if classes is None:
        return Records(x, score.astype(np.float32))
    return Records(x, np.digitize(score, [0.0, 1.0][: classes - 1]).astype(np.int64))


def grower(records: Records, sizes: list[int], loss: str, shape: tuple[int, int] = (2, 2), **arguments: Any) -> Rehearsed:
    """A run, not yet begun, on records that are dealt in their order; ``shape`` is trees and depth."""
    model = {"kind": "trees", "trees": shape[0], "depth": shape[1]}
    config = config_of({"kind": "histogram_trees", **arguments}, model=model, training={"loss": loss})
    return Rehearsed(config, Federation([f"c{k}" for k in sizes], records, offsets_of(sizes), None, None, None, LOSSES[loss]))


def grown(run: Rehearsed, split: list[list[int]] | None = None, rounds: int | None = None) -> Trees:
    """The model after all rounds that change it."""
    most = HistogramTrees().most_rounds(run.layout, run.globals[: run.layout.size], 1, 1)
    for _ in range(most if rounds is None else rounds):
        run.train(split or [[0]])
    set_vector(run.model, run.layout, run.globals[: run.layout.size])
    assert isinstance(run.model, Trees)
    return run.model


def outputs(model: Trees, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(x)).numpy()
    return found


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 1500), clients=st.integers(1, 4), loss=st.sampled_from(sorted(LOSSES)))
def test_any_split_of_the_records_gives_the_same_bytes(seed: int, n: int, clients: int, loss: str) -> None:
    records, draws = table(n, 3, loss, seed), np.random.default_rng(seed)
    order, cuts = draws.permutation(n), sorted(draws.integers(0, n + 1, min(clients, n) - 1).tolist())
    sizes = np.diff([0, *cuts, n]).tolist()
    kept = [k for k in range(len(sizes)) if sizes[k]]
    split = grower(Records(records.x[order], records.y[order]), sizes, loss)
    whole = grower(records, [n], loss)
    grown(split, [kept[::2], kept[1::2]])
    grown(whole)
    assert split.globals.tobytes() == whole.globals.tobytes()


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("penalties", [{}, {"l2": 0.1, "min_gain": 2.0, "min_child_weight": 6.0, "lr": 0.1}])
def test_they_are_xgboosts_trees_where_bins_hold_one_value_each(loss: str, penalties: dict[str, float]) -> None:
    xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed")
    draws = np.random.default_rng(5)
    x = draws.integers(-4, 5, (400, 3)).astype(np.float32)
    y = (
        table(400, 3, loss, 5).y
        if loss == "mse"
        else (np.digitize(x @ [1.0, -2.0, 0.5] + draws.standard_normal(400), [0, 3][: LOSSES[loss] - 1]))
    )
    run = grower(Records(x, y.astype(np.float32 if loss == "mse" else np.int64)), [400], loss, (3, 3), bins=64, **penalties)
    model = grown(run)
    names = {"min_gain": "gamma", "l2": "lambda", "lr": "eta"}
    objective = {"mse": "reg:squarederror", "binary_cross_entropy": "binary:logistic", "cross_entropy": "multi:softprob"}[loss]
    given = {"max_depth": 3, "tree_method": "exact", "objective": objective, "nthread": 1} | {
        names.get(k, k): v for k, v in penalties.items()
    }
    given |= {"num_class": 3} if loss == "cross_entropy" else {}
    base = np.tile(model.base.detach().numpy(), (400, 1))
    matrix = xgboost.DMatrix(x, y, base_margin=base)
    found = xgboost.train(given, matrix, 3).predict(matrix, output_margin=True).reshape(400, -1)
    np.testing.assert_allclose(outputs(model, x), found, rtol=0, atol=2e-5)


def test_a_node_splits_where_the_gain_is_largest_and_leaves_take_newtons_step() -> None:
    records = table(300, 3, "binary_cross_entropy", 1)
    run = grower(records, [100, 200], "binary_cross_entropy", (1, 1), lr=1.0, l2=0.5)
    model = grown(run, [[0, 1]])
    p = 1 / (1 + math.exp(-model.base.item()))
    assert model.base.item() == pytest.approx(4 * (records.y.mean() - 0.5), rel=1e-5)
    edges = run.exchange.views(run.globals, "down")["edges"].reshape(3, -1)

    def leaf(rows: np.ndarray) -> tuple[float, float]:
        g, h = float((p - records.y[rows]).sum()), float(rows.sum()) * p * (1 - p)
        return g**2 / (h + 0.5), -g / (h + 0.5)

    gains = [
        [leaf(records.x[:, f] < t)[0] + leaf(records.x[:, f] >= t)[0] - leaf(np.full(300, True))[0] for t in edges[f]] for f in range(3)
    ]
    feature, edge = divmod(int(np.argmax(gains)), edges.shape[1])
    left = records.x[:, feature] < edges[feature, edge]
    assert model.feature.flatten().tolist() == [feature + 1]
    assert model.threshold.flatten().tolist() == [float(edges[feature, edge])]
    assert model.value.flatten().tolist() == pytest.approx([leaf(left)[1], leaf(~left)[1]], rel=1e-5)
    assert model.gain[feature].item() == pytest.approx(np.max(gains), rel=1e-5)


def test_a_tree_without_a_gain_does_not_split() -> None:
    records = Records(np.ones((6, 2), dtype=np.float32), np.array([0, 1] * 3))
    model = grown(grower(records, [6], "binary_cross_entropy"))
    assert not model.feature.any() and not model.gain.any()
    np.testing.assert_allclose(outputs(model, records.x), 0.0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponents=st.tuples(st.integers(-30, 30), st.integers(-3, 3)), rare=st.integers(1, 20))
def test_edges_come_to_lie_where_records_are(seed: int, exponents: tuple[int, int], rare: int) -> None:
    draws, bins = np.random.default_rng(seed), 32
    x = np.stack([draws.standard_normal(1000), np.exp(draws.standard_normal(1000)), np.arange(1000) < rare], 1)
    x = (x * 10.0 ** exponents[0] + [10.0 ** (exponents[0] + exponents[1]), 0, 0]).astype(np.float32)
    edges = first_edges(3, bins)
    for refinement in range(REFINEMENTS):
        counts = np.stack([np.bincount(np.searchsorted(e, c, side="right"), minlength=bins) for e, c in zip(edges, x.T, strict=True)])
        edges = refined(edges, counts.astype(np.float64), refinement)
    assert (np.diff(edges, axis=1) >= 0).all() and np.isfinite(edges).all()
    counts = np.stack([np.bincount(np.searchsorted(e, c, side="right"), minlength=bins) for e, c in zip(edges, x.T, strict=True)])
    assert counts[:2].max() <= 1000 * 4 / bins
    assert (edges[2][(edges[2] > 0) & (edges[2] <= x[0, 2])]).size, "no edge separates the rare value"


def test_few_bins_and_other_numbers_are_refused() -> None:
    for arguments in ({"bins": 8}, {"lr": 0.0}, {"l2": -1.0}, {"min_gain": math.inf}, {"min_child_weight": math.nan}):
        (name,) = arguments
        with pytest.raises(ConfigError, match=f"algorithm.{name}: "):
            HistogramTrees(**arguments)


def test_a_classifier_of_ten_classes() -> None:
    x, y = datasets.load_digits(return_X_y=True)
    x = x.astype(np.float32)[:, 16:48]
    config = config_of(
        {"kind": "histogram_trees", "bins": 16}, model={"kind": "trees", "trees": 2, "depth": 3}, training={"loss": "cross_entropy"}
    )
    run = Rehearsed(config, Federation(["a", "b"], Records(x[:900], y[:900]), offsets_of([300, 600]), None, None, None, 10))
    model = grown(run, [[0], [1]])
    assert (outputs(model, x[900:]).argmax(1) == y[900:]).mean() > 0.65


def test_a_model_that_has_trees_gets_more() -> None:
    records = table(300, 3, "mse", 3)
    whole = grower(records, [300], "mse", (3, 2))
    grown(whole, rounds=REFINEMENTS + 4)
    first = whole.globals[: whole.layout.size].copy()
    again = HistogramTrees().begin(whole.layout, first, lambda _: first)
    assert again["growth"].tolist() == [0, 4] and HistogramTrees().most_rounds(whole.layout, first, 1, 1) == REFINEMENTS + 2
    whole.globals = whole.exchange.joined(again, "down")
    model = grown(whole)
    assert (get_vector(model, whole.layout) == whole.globals[: whole.layout.size]).all()
    before = Layout.of(model).views(first)
    assert (model.value[:, :2].detach().numpy() == before["value"][:, :2]).all() and model.value[:, 2].any()
    last = whole.globals.copy()
    whole.train([[0]])  # the model is full
    assert whole.globals.tobytes() == last.tobytes()


def test_the_server_sets_the_model_and_keeps_its_arguments() -> None:
    run = grower(table(60, 3, "mse", 0), [60], "mse")
    before = run.globals.copy()
    kept = before.copy()
    run.train([[0]])
    assert before.tobytes() == kept.tobytes() and run.globals.tobytes() != kept.tobytes() and run.state == {}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), depth=st.integers(1, 4), number=st.integers(1, 3), wide=st.integers(1, 3))
def test_a_record_walks_down_each_tree(seed: int, depth: int, number: int, wide: int) -> None:
    draws = np.random.default_rng(seed)
    model = trees((2, 2), wide, number, depth)
    assert isinstance(model, Trees) and model.depth == depth
    features = draws.integers(0, 5, (wide, number, 2**depth - 1))
    thresholds, values, base = (
        draws.integers(-1, 2, features.shape),
        draws.standard_normal((wide, number, 2**depth)),
        draws.standard_normal(wide),
    )
    with torch.no_grad():
        for own, given in ((model.feature, features), (model.threshold, thresholds), (model.value, values), (model.base, base)):
            own.copy_(torch.from_numpy(np.asarray(given)))
    x = draws.integers(-1, 2, (7, 2, 2)).astype(np.float32)
    for record, found in zip(x, outputs(model, x), strict=True):
        for k in range(wide):
            total = np.float32(base[k])
            for tree in range(number):
                node = 0
                while node < 2**depth - 1:
                    feature = features[k, tree, node]
                    node = 2 * node + 1 + bool(feature and record.ravel()[feature - 1] >= thresholds[k, tree, node])
                total += np.float32(values[k, tree, node - 2**depth + 1])
            assert found[k] == total


def test_scattered_totals_are_those_of_the_same_contributions_in_rows() -> None:
    draws = np.random.default_rng(0)
    values, where = draws.standard_normal((1, 50)), draws.integers(0, 4, (2, 50)) + np.array([[0], [4]])
    one, other = RecordTotals(8), RecordTotals(8)
    one.scatter(where, values.copy())
    other.add(0, np.concatenate([np.where(row == k, values, 0.0) for k, row in zip(range(8), np.repeat(where, 4, 0), strict=True)]))
    assert one.values.tolist() == other.values.tolist()
    with pytest.raises(UpdateRejected, match="a total over records is not below"):
        one.scatter(where, np.full((1, 50), 2.0**28))


BASE: dict[str, Any] = {
    "name": "t",
    "rounds": 9,
    "data": {"source": "sklearn:breast_cancer", "partition": {"kind": "iid", "clients": 4}},
    "model": {"kind": "trees", "trees": 2, "depth": 2},
    "training": {"loss": "binary_cross_entropy"},
    "algorithm": {"kind": "histogram_trees"},
    "tracking": {"enabled": False},
}
TRAINING = {"lr": 0.1, "batch_size": 8, "epochs": 1, "loss": "binary_cross_entropy"}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"rounds": 10}, "rounds: after 9 rounds of 'histogram_trees' the model is full"),
        ({"server": {"kind": "adam"}}, "server: has no effect, because the driver of 'histogram_trees'"),
        ({"server": {"kind": "sgd", "lr": 0.5}}, "server: has no effect"),
        ({"model": {"kind": "logistic"}}, "model.kind: this algorithm.kind grows trees"),
        ({"model": {"kind": "trees", "trees": 0}}, "model.trees: 0 is below 1"),
        ({"model": {"kind": "trees", "depth": 13}}, "model.depth: 13 is not in 1 to 12"),
        ({"training": {"loss": "focal"}}, "training.loss: trees are grown by the derivatives of"),
        ({"training": {"loss": {"kind": "binary_cross_entropy", "positive_weight": 2.0}}}, "and not by those of"),
        ({"training": TRAINING}, "training.batch_size: has no effect"),
        ({"algorithm": {"kind": "fedavg"}, "training": TRAINING}, "model.kind: trees have no gradient, by which clients of"),
        ({"algorithm": {"kind": "newton"}}, "model.kind: newton is for a model that is one linear layer"),
        ({"aggregation": {"kind": "median"}}, "is no plain sum, which 'histogram_trees' needs"),
        ({"download": {"kind": "half"}}, "download.kind: clients of 'histogram_trees'"),
        (
            {"pacing": {"kind": "fedbuff", "buffer": 2, "concurrency": 2}},
            "algorithm.kind: the clients of 'histogram_trees' keep or exchange more",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config = build_config(BASE | sections)
        check_only(config)
        prepare(config)


def test_the_plan_of_the_config_fits_its_model() -> None:
    config = load_config(ROOT / "configs" / "breast-cancer-trees.yaml")
    made = prepare(config).model
    assert made is not None and made.engine is None
    assert config.rounds == HistogramTrees().most_rounds(made.facts.layout, made.weights.value, 4, 4)
