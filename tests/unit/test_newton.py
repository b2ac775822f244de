"""Newton's method, and the exact totals that it sends."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, label_skewed
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from fedray.aggregation.exact import ExactSum
from fedray.algorithms.algorithm import Algorithm, Mean, Update, check_training
from fedray.algorithms.newton import Newton
from fedray.algorithms.totals import DIGITS, LARGEST, MOST_CLIENTS, RecordTotals, check_cohort, totals_of
from fedray.algorithms.turn import Turn
from fedray.audit.run import AuditRequest, audit
from fedray.clients.pool import RoundLog
from fedray.config import Training
from fedray.configfile import build_config, load_config
from fedray.data.records import Federation, Records, offsets_of
from fedray.errors import ConfigError, FedrayError, UpdateRejected
from fedray.parameters import Layout, set_vector
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.rounds.books import Authorization
from fedray.rounds.round_metrics import round_metrics
from fedray.rounds.steps import StepPlan

FEDERATION, _ = label_skewed()


def two_classes(n: int, width: int, seed: int) -> Records:
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((n, width)).astype(np.float32)
    return Records(x, (x @ draws.standard_normal(width) + draws.standard_normal(n) > 0).astype(np.int64))


def dealt(records: Records, sizes: list[int]) -> Federation:
    return Federation([f"c{k}" for k in range(len(sizes))], records, offsets_of(sizes), None, None, None, 2)


def newton(federation: Federation, kind: str = "logistic", **arguments: object) -> Rehearsed:
    loss = {"logistic": "binary_cross_entropy", "softmax": "cross_entropy"}[kind]
    return Rehearsed(config_of({"kind": "newton", **arguments}, model={"kind": kind}, training={"loss": loss}), federation)


@settings(max_examples=60)
@given(data=st.data(), clients=st.integers(1, 40), records=st.integers(1, 5), scale=st.integers(-36, 18))
def test_totals_are_exact_sums_of_contributions_that_were_rounded_once(data: st.DataObject, clients: int, records: int, scale: int) -> None:
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = draws.standard_normal((clients, 3, records)) * 2.0**scale
    total = ExactSum.zero(18, float(clients), 0, clients)
    for own in values:
        totals = RecordTotals(3)
        totals.add(0, own[:2].copy())
        totals.add(2, own[2:].copy())
        total.add(np.concatenate([totals.digits(0, 1), totals.digits(1, 3)]))
    mean = total.mean()
    found = [*totals_of(mean[:6], clients), *totals_of(mean[6:], clients)]
    grid = [sum(round(Fraction(float(v)) * 2**32) for v in values[:, k].ravel()) for k in range(3)]
    assert found == [float(Fraction(whole, 2**32)) for whole in grid]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("clients", [1, 3, 1000, MOST_CLIENTS])
def test_totals_up_to_their_bound_are_carried(sign: int, clients: int) -> None:
    own = sign * ((2**61 - 1) // clients >> 9) / 2.0**23  # below the bound, and a float64
    totals = RecordTotals(1)
    totals.add(0, np.array([[own]]))
    total = ExactSum.zero(6, float(clients), 0, clients)
    total.add_many(np.tile(totals.digits(0, 1), (clients, 1)), [1.0] * clients)
    assert totals_of(total.mean(), clients) == float(totals.values[0]) * clients / 2**32


def test_totals_beyond_their_bounds_are_refused() -> None:
    totals = RecordTotals(1)
    for contributions in ([LARGEST], [-LARGEST], [np.nan], [np.inf], [LARGEST / 2] * 2):
        with pytest.raises(UpdateRejected, match="a total over records is not below"):
            totals.add(0, np.array([contributions]))
    assert totals.values.tolist() == [0]
    totals.add(0, np.array([[0.9 * LARGEST]]))
    digits = totals.digits(0, 1)
    with pytest.raises(UpdateRejected, match="a total over records is not below"):
        totals.add(0, np.array([[0.9 * LARGEST]]))
    with pytest.raises(UpdateRejected, match="a total over records is not below"):
        totals_of(digits, 2.0)
    with pytest.raises(FedrayError, match="at most 8192 take part"):
        totals_of(digits, MOST_CLIENTS + 1.0)
    with pytest.raises(FedrayError, match="is not whole"):
        totals_of(digits + np.float32(0.4), 1.0)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 1500), clients=st.integers(1, 6), kind=st.sampled_from(["logistic", "softmax"]))
def test_any_split_of_the_records_gives_the_same_bytes(seed: int, n: int, clients: int, kind: str) -> None:
    records, draws = two_classes(n, 3, seed), np.random.default_rng(seed)
    order, cuts = draws.permutation(n), sorted(draws.integers(0, n + 1, min(clients, n) - 1).tolist())
    sizes = np.diff([0, *cuts, n])
    kept = [k for k in range(len(sizes)) if sizes[k]]
    split = newton(dealt(Records(records.x[order], records.y[order]), sizes.tolist()), kind)
    whole = newton(dealt(records, [n]), kind)
    for _ in range(2):
        split.train([kept[::2], kept[1::2]])
        whole.train([[0]])
    assert split.globals.tobytes() == whole.globals.tobytes()


@pytest.mark.parametrize(("kind", "damping"), [("logistic", 1.0), ("logistic", 0.0), ("softmax", 0.5)])
def test_a_step_is_newtons(kind: str, damping: float) -> None:
    records = two_classes(300, 4, 5)
    run = newton(dealt(records, [100, 150, 50]), kind, damping=damping)
    start = run.globals.astype(np.float64)
    x, y = torch.from_numpy(records.x).double(), torch.from_numpy(records.y)

    def loss(w: torch.Tensor) -> torch.Tensor:
        outputs = run.layout.entries[0].shape[0]
        logits = x @ w[: 4 * outputs].reshape(outputs, 4).T + w[4 * outputs :]
        if kind == "logistic":
            return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y.double(), reduction="sum")
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    at = torch.from_numpy(start)
    gradient = torch.autograd.functional.jacobian(loss, at).numpy()
    hessian = torch.autograd.functional.hessian(loss, at).numpy()
    run.train([[0, 1], [2]])
    step = np.linalg.solve(hessian + damping * np.eye(len(start)), -gradient)
    np.testing.assert_allclose(run.globals, start + step, rtol=0, atol=1e-6)


def test_it_finds_the_optimum_in_a_few_steps() -> None:
    records = two_classes(400, 3, 1)
    run = newton(dealt(records, [100] * 4), damping=0.0)
    for _ in range(9):
        run.train([range(4)])
    best = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(records.x.astype(np.float64), records.y)
    np.testing.assert_allclose(run.globals, np.append(best.coef_[0], best.intercept_), rtol=1e-4, atol=1e-5)


def fitted(records: Records, kind: str, loss: str, rounds: int, **arguments: object) -> nn.Linear:
    """The layer that a federation of three has at the end."""
    n = len(records.y)
    classes = None if loss == "mse" else int(records.y.max()) + 1
    federation = Federation(["a", "b", "c"], records, offsets_of([n // 2, n // 4, n - n // 2 - n // 4]), None, None, None, classes)
    run = Rehearsed(config_of({"kind": "newton", **arguments}, model={"kind": kind, "zero": True}, training={"loss": loss}), federation)
    for _ in range(rounds):
        run.train([[0, 1], [2]])
    set_vector(run.model, run.layout, run.globals[: run.layout.size])
    assert isinstance(run.model, nn.Sequential) and isinstance(run.model.fc, nn.Linear)
    return run.model.fc


def as_scikit_learn(made: Any, layer: nn.Linear, classes: int | None = None) -> Any:
    """A linear model of scikit-learn's with the weights of a layer (docs/howto.md)."""
    made.coef_, made.intercept_ = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    if classes is not None:
        made.classes_ = np.arange(classes)
    return made


@pytest.mark.parametrize("c", [0.1, 3.0])
def test_it_is_scikit_learns_logistic_regression(c: float) -> None:
    records = two_classes(400, 3, 2)
    theirs = LogisticRegression(C=c, tol=1e-10, max_iter=2000).fit(records.x.astype(np.float64), records.y)
    ours = as_scikit_learn(LogisticRegression(), fitted(records, "logistic", "binary_cross_entropy", 8, damping=0.0, l2=1 / c), 2)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(records.x), theirs.predict_proba(records.x), rtol=0, atol=1e-5)


def test_it_is_scikit_learns_logistic_regression_of_several_classes() -> None:
    x, y = load_iris(return_X_y=True)
    theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(x, y)
    layer = fitted(Records(x.astype(np.float32), y), "softmax", "cross_entropy", 12, damping=1e-3, l2=0.5)
    ours = as_scikit_learn(LogisticRegression(), layer, 3)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_it_is_scikit_learns_ridge_regression_after_one_round(alpha: float) -> None:
    x, y = load_diabetes(return_X_y=True)
    x = (x / x.std(0)).astype(np.float32)
    theirs = Ridge(alpha=alpha).fit(x.astype(np.float64), y)
    layer = fitted(Records(x, y.astype(np.float32)), "linear", "mse", 1, damping=0.0, l2=2 * alpha)
    ours = as_scikit_learn(Ridge(), layer)
    np.testing.assert_allclose(ours.coef_[0], theirs.coef_, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ours.predict(x).ravel(), theirs.predict(x), rtol=1e-4)


def test_a_singular_hessian_is_said() -> None:
    records = Records(np.zeros((4, 2), dtype=np.float32), np.array([0, 1, 0, 1]))
    with pytest.raises(FedrayError, match="is singular; set the damping above 0"):
        newton(dealt(records, [4]), damping=0.0).train([[0]])


class Rectified(nn.Module):
    """Looks like one linear layer, and is not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).relu()


@pytest.mark.parametrize(
    "layers", [[nn.Linear(3, 3), nn.Linear(3, 2)], [nn.Conv2d(1, 2, 3)], [nn.BatchNorm1d(3), nn.Linear(3, 2)], [nn.Flatten()]]
)
def test_a_model_of_other_layers_is_refused(layers: list[nn.Module]) -> None:
    with pytest.raises(ConfigError, match="one linear layer of the features"):
        Newton().exchange(Layout.of(nn.Sequential(*layers)))


def test_a_model_without_a_bias_is_trained() -> None:
    fields = Newton().exchange(Layout.of(nn.Linear(3, 2, bias=False))).up
    assert {name: s.stop - s.start for name, s in fields.items()} == {"gradient": 6 * DIGITS, "hessian": 21 * DIGITS}


@pytest.mark.parametrize("width", [3, 4])
def test_a_model_that_only_looks_linear_is_refused_by_its_outputs(width: int) -> None:
    torch.manual_seed(0)
    model, records = Rectified(), two_classes(20, width, 0)
    layout = Layout.of(model)
    weights = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    rows = torch.from_numpy(records.x), torch.from_numpy(records.y)
    turn = Turn(0, 0.1, Training(), lambda *_: None, 0, 20, {"model": weights}, model, layout, rows=lambda: rows)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="one linear layer of the features"):
        Newton().local(turn)


class Unsaid(Algorithm):
    """Reads records without saying so."""

    def local(self, turn: Turn) -> Update:
        turn.rows()
        return super().local(turn)


def test_records_are_for_those_who_declare_it() -> None:
    run = Rehearsed(config_of({"kind": "python:test_newton:Unsaid"}), FEDERATION)
    with pytest.raises(AssertionError, match=r"asks for a client's records, which its traits do not declare; add reads=\{'records'\}"):
        run.train([[0]])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"training": {"loss": "cross_entropy", "lr": 0.1}}, "training.lr: has no effect"),
        ({"training": {"batch_size": 8, "epochs": 1}}, "training.batch_size: has no effect"),
        ({"training": {"loss": "focal"}}, "training.loss: newton knows the Hessian of"),
        ({"training": {}, "algorithm": {"kind": "newton", "damping": -1}}, "algorithm.damping: -1"),
        ({"training": {}, "algorithm": {"kind": "newton", "l2": -1}}, "algorithm.l2: -1"),
        ({"training": {}, "algorithm": {"kind": "fedavg"}}, "training.batch_size: give batch_size"),
        ({"training": {}, "aggregation": {"kind": "median"}}, "is no plain sum, which 'newton' needs"),
    ],
)
def test_settings_that_mean_nothing_are_refused(sections: dict[str, object], words: str) -> None:
    base = {"name": "t", "rounds": 1, "data": {"source": "sklearn:digits"}, "model": {"kind": "softmax"}, "algorithm": {"kind": "newton"}}
    with pytest.raises(ConfigError, match=words):
        check_only(build_config({**base, **sections}))


def test_more_clients_than_totals_can_be_added_up_of_are_refused_at_once() -> None:
    for fits in (1, MOST_CLIENTS):
        check_cohort("newton", fits)
    with pytest.raises(ConfigError, match="up to 8193 clients would take part in a round.*of at most 8192"):
        check_cohort("newton", MOST_CLIENTS + 1)


def test_who_trains_must_say_how_much() -> None:
    check_training(Newton(), Training())
    with pytest.raises(ConfigError, match="give batch_size with epochs or steps"):
        check_training(Algorithm(), Training(lr=0.1))


def test_of_one_client_the_mean_is_its_own() -> None:
    totals = RecordTotals(2)
    totals.add(0, np.array([[0.5, 0.25], [-3.0, 1e-3]]))
    mean = Mean({"x": totals.digits(0, 2)}, 1.0, 1.0)
    np.testing.assert_allclose(totals_of(mean.values["x"], mean.clients), [0.75, -2.999], rtol=0, atol=2**-31)


def without_training(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(
        "{name: t, rounds: 2, data: {source: 'sklearn:breast_cancer', partition: {kind: iid, clients: 4}}, model: {kind: logistic}, "
        "training: {loss: binary_cross_entropy}, algorithm: {kind: newton}}"
    )
    return path


def test_a_run_without_training_claims_no_engine_and_no_learning_rate(tmp_path: Path) -> None:
    prepared = prepare(load_config(without_training(tmp_path)))
    assert prepared.model is not None and prepared.model.engine is None
    found = round_metrics(prepared.config, 0, Authorization(0, []), RoundLog(), 0, StepPlan([]), False)
    assert not any(name.startswith("train/") for name in found)


def test_an_audit_that_looks_for_records_in_models_is_refused(tmp_path: Path) -> None:
    path = without_training(tmp_path)
    with pytest.raises(ConfigError, match="its clients send no model, in which an audit could look for records"):
        audit(AuditRequest(path, attack="canaries"))
