"""Statistics: one record changes a sum by at most its bound and by nothing else, and answers are as exact as they say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from torch import nn

from fedray.components import QUERIES
from fedray.configfile import build_config, dump_config, load_config
from fedray.data.records import Records
from fedray.errors import ConfigError, DataError, PrivacyRefusal
from fedray.privacy.account import Account
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.accounting.events import Gaussian, Poisson, SelfComposed, rate
from fedray.privacy.csprng import InsecureSeeded
from fedray.privacy.integersums import noised
from fedray.privacy.queryplan import check_query_privacy, plan_queries
from fedray.privacy.recordplan import plan_record
from fedray.queries.answertext import answer_lines
from fedray.queries.asked import asked_of, bounds_of, summed
from fedray.queries.preparedquery import prepare_query
from fedray.queries.queryanswers import finite
from fedray.queries.queryprice import price_query, price_text
from fedray.queries.statistic import GRID, NoisedSums, PublicFacts, RecordBatch, Statistic
from fedray.queryconfig import QueryConfig, dump_query, load_query
from fedray.runfiles import RunFiles
from fedray.tensorfile import write_tensors

FACTS = PublicFacts(("a", "b"), 2, ("no", "yes"))
BOUNDS = {"a": [0.0, 10.0], "b": [-1.0, 1.0]}
KINDS: dict[str, dict[str, Any]] = {
    "count": {"where": {"a": [2.0, 7.0]}},
    "histogram": {"column": "a", "bounds": [0.0, 10.0], "bins": 7},
    "mean": {"bounds": BOUNDS},
    "variance": {"bounds": BOUNDS},
    "covariance": {"bounds": BOUNDS},
    "quantiles": {"bounds": BOUNDS, "levels": 1},
    "confusion_matrix": {},
    "roc": {"bins": 8},
    "calibration": {"bins": 5},
}


def config_of(**more: Any) -> QueryConfig:
    raw = {
        "name": "asks",
        "data": {"source": "csv:none"},
        "queries": {
            kind: {"kind": kind, **arguments} for kind, arguments in KINDS.items() if kind not in ("confusion_matrix", "roc", "calibration")
        },
        "privacy": {"regime": "record", "noise_multiplier": 1.5, "delta": 1e-5},
    }
    return build_config(raw | more, QueryConfig)


def made(kind: str) -> Statistic:
    part: Statistic = QUERIES.parts()[kind](**KINDS[kind])
    return part


def test_every_kind_is_tried_here() -> None:
    assert set(QUERIES.parts()) == set(KINDS)


odd = st.floats(allow_nan=True, allow_infinity=True, width=32)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(st.data())
def test_one_record_contributes_at_most_its_bound_and_depends_on_no_other(kind, data) -> None:
    n = data.draw(st.integers(1, 6))
    x = data.draw(arrays(np.float32, (n, 2), elements=odd)).astype(np.float64)
    y = data.draw(arrays(np.int64, n, elements=st.integers(0, 1))).astype(np.float64)
    scores = data.draw(arrays(np.float64, n, elements=st.floats(0.0, 1.0)))
    batch = RecordBatch(x, y, np.stack([1 - scores, scores], axis=1))
    one = made(kind)
    rows = one.contributions(FACTS, batch, kind)
    assert rows.dtype == np.int64 and rows.shape == (n, one.size(2))
    assert all(sum(v * v for v in row) <= one.squared_sensitivity(2) for row in rows.tolist())
    for i in range(n):
        alone = RecordBatch(x[i : i + 1], y[i : i + 1], batch.probabilities[i : i + 1])
        assert (one.contributions(FACTS, alone, kind)[0] == rows[i]).all()


@pytest.mark.parametrize("kind", ["mean", "variance", "covariance"])
def test_the_bound_is_reached_and_so_not_too_large(kind) -> None:
    one = made(kind)
    rows = one.contributions(FACTS, RecordBatch(np.array([[10.0, 1.0]]), np.zeros(1)), kind)
    assert (rows**2).sum() == one.squared_sensitivity(2)


class Greedy(Statistic):
    """Contributes more than it says."""

    def size(self, classes: int | None) -> int:
        return 1

    def squared_sensitivity(self, classes: int | None) -> int:
        return GRID**2

    def contributions(self, facts, batch, where):
        return np.where(batch.x[:, :1] > 0, GRID, np.iinfo(np.int64).min).astype(np.int64)

    def answer(self, facts, noised):
        return {"value": float(noised.values[0])}


def test_a_contribution_above_its_bound_counts_as_nothing() -> None:
    config = config_of(queries={"mine": {"kind": f"python:{__name__}:Greedy"}})
    (one,) = asked_of(config)
    (limit,) = plan_queries(config, bounds_of([one], None)).sums
    records = Records(np.array([[1.0], [-1.0], [1.0]], dtype=np.float32), np.zeros(3, dtype=np.int64))
    assert summed(one, PublicFacts(("a",), None), records, limit, None).tolist() == [2 * GRID]


def exact_records() -> Records:
    draws = np.random.default_rng(3)
    x = np.stack([draws.uniform(0, 10, 400), draws.normal(0, 0.4, 400).clip(-1, 1)], axis=1).astype(np.float32)
    return Records(x, (x[:, 0] + draws.normal(size=400) > 4).astype(np.int64))


def inside(value: float, ends: list[float]) -> bool:
    return ends[0] - 1e-9 <= value <= ends[1] + 1e-9


def pairs(exact: Any, found: Any) -> list[tuple[str, bool]]:
    """Of each number with an interval in a noised answer, its name and whether the exact one lies in it."""
    held = []
    for key, value in exact.items():
        if isinstance(value, dict):
            held += [(f"{key}/{name}", ok) for name, ok in pairs(value, found[key])]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            held += [(f"{key}/{i}/{name}", ok) for i, (a, b) in enumerate(zip(value, found[key], strict=True)) for name, ok in pairs(a, b)]
        elif key == "counts" and "intervals" in found:
            held += [(f"counts/{i}", inside(v, ends)) for i, (v, ends) in enumerate(zip(value, found["intervals"], strict=True))]
        elif key == "covariance":
            wide = np.abs(np.array(value) - np.array(found[key])) <= np.array(found["margins"])
            held += [(f"covariance/{i}", bool(ok)) for i, ok in enumerate(wide.ravel())]
        elif isinstance(value, float) and (f"{key}_interval" in found or (key == "value" and "interval" in found)):
            held.append((key, inside(value, found.get(f"{key}_interval") or found["interval"])))
    return held


def test_over_1000_seeds_the_true_answers_lie_in_the_99_percent_intervals() -> None:
    """Each number's misses among 1,000 seeds exceed the band with probability below 1e-6 if its interval holds with probability 0.99."""
    config, records, seeds = config_of(), exact_records(), 1000
    asked = asked_of(config)
    plan = plan_queries(config, bounds_of(asked, 2))
    most = int(stats.binom.isf(1e-6, seeds, 0.01))
    squares, draws = 0.0, 0
    for one, limit in zip(asked, plan.sums, strict=True):
        total = summed(one, FACTS, records, limit, None)
        exact = one.statistic.answer(FACTS, NoisedSums(total / GRID, 0.0, len(records), 0.99))
        std, missed = math.sqrt(limit.variance) / GRID, dict[str, int]()
        for seed in range(seeds):
            sent = noised(total, limit.variance, InsecureSeeded(seed, 0, one.name))
            squares, draws = squares + float((((sent - total) / math.sqrt(limit.variance)) ** 2).sum()), draws + limit.size
            found = one.statistic.answer(FACTS, NoisedSums(sent / GRID, std, len(records), 0.99))
            for name, ok in pairs(exact, found):
                missed[name] = missed.get(name, 0) + (not ok)
        assert missed and max(missed.values()) <= most, (one.name, missed)
    assert stats.chi2.isf(1 - 1e-6, draws) < squares < stats.chi2.isf(1e-6, draws)  # the noise has the planned variance


def test_without_noise_answers_are_those_of_numpy() -> None:
    records, found = exact_records(), dict[str, Any]()
    x, y = records.x.astype(np.float64), records.y
    for one in asked_of(config_of()):
        total = summed(one, FACTS, records, None, None)
        found[one.name] = one.statistic.answer(FACTS, NoisedSums(total / GRID, 0.0, len(y)))
    assert found["count"]["value"] == ((x[:, 0] >= 2) & (x[:, 0] < 7)).sum()
    assert found["histogram"]["counts"] == np.histogram(x[:, 0], 7, (0, 10))[0].tolist()
    for k, column in enumerate("ab"):
        assert found["mean"]["columns"][column]["value"] == pytest.approx(x[:, k].mean(), abs=1e-5)
        assert found["variance"]["columns"][column]["std"] == pytest.approx(x[:, k].std(), abs=1e-4)
        width = (BOUNDS[column][1] - BOUNDS[column][0]) / 16
        for row in found["quantiles"]["columns"][column]:
            assert 0 <= row["value"] - np.quantile(x[:, k], row["quantile"], method="inverted_cdf") <= width + 1e-9
    assert np.allclose(found["covariance"]["covariance"], np.cov(x.T, bias=True), atol=1e-4)


def test_a_model_is_judged_one_record_at_a_time() -> None:
    torch.manual_seed(0)
    model, records = nn.Linear(2, 1).eval(), exact_records()
    config = config_of(
        judged="run", queries={k: {"kind": k, "records": "train", **KINDS[k]} for k in ("confusion_matrix", "roc", "calibration")}
    )
    seen: list[int] = []
    model.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    found = {}
    for one in asked_of(config):
        total = summed(one, PublicFacts((), 2, ("no", "yes")), records, None, model)
        found[one.name] = one.statistic.answer(PublicFacts((), 2, ("no", "yes")), NoisedSums(total / GRID, 0.0, len(records)))
    assert set(seen) == {1}
    with torch.inference_mode():
        score = torch.sigmoid(model(torch.from_numpy(records.x)))[:, 0].numpy()
    right = (score > 0.5) == records.y
    assert found["confusion_matrix"]["accuracy"] == pytest.approx(right.mean())
    assert np.array(found["confusion_matrix"]["counts"]).sum() == len(records)
    ones, zeros = score[records.y == 1], score[records.y == 0]
    area = (ones[:, None] > zeros[None]).mean()
    assert found["roc"]["auc"] == pytest.approx(area, abs=0.05)
    assert sum(found["calibration"]["counts"]) == len(records)


def test_the_printed_answers_name_their_columns_and_what_their_noise_leaves_open() -> None:
    values = {
        "count": [12.25],
        "histogram": [-1.5, *range(6)],
        "mean": [20.0, 5.0],
        "variance": [20.0, 5.0, 3.0, 2.0],
        "covariance": [20.0, 5.0, 3.0, 2.0, 1.0],
        "quantiles": [10.0] * (made("quantiles").size(2)),
        "confusion_matrix": [70.8, -7.56, 0.57, 38.7],
        "roc": [10.0] * 16,
        "calibration": [10.0, -1.0, 20.0, 30.0, 50.0, *[5.0] * 10],
    }
    assert set(values) == set(KINDS)

    def shown(std: float, noise: float | None) -> list[str]:
        found = {}
        for kind, sums in values.items():
            answer = made(kind).answer(FACTS, NoisedSums(np.array(sums, dtype=np.float64), std, 110))
            found[kind] = {"kind": kind, "of": "held_out", "records": 110, "noise_std": std, **finite(answer)}
        about = {"noise_multiplier": noise, "confidence": 0.95, "epsilon": 1.0, "delta": 1e-5, "claim": "valid", "answers": found}
        return list(answer_lines(about, {"epsilon": 2.0}))

    noised, exact = shown(3.129, 1.5), shown(0.0, None)
    at = noised.index("confusion_matrix  (confusion_matrix of 110 held-out records)")
    assert noised[at + 1 : at + 6] == [
        "       taken for no  taken for yes",
        "  no           70.8           -7.6",
        "  yes           0.6           38.7",
        "  each count +- 6.1 (noise)",
        "  accuracy 0.99545 [0.91661, 1]",
    ]
    assert any(
        "the sampling error" in line and line.endswith("Noise can make a count negative and an accuracy larger than 1.") for line in noised
    )
    text = " ".join(" ".join(noised).split())
    for words in (
        "confidence in records mean confidence accuracy [0, 0.2) 10.0 0.500 0.500 [0.2, 0.4) -1.0 - -",
        "each number of records +- 6.1 (noise)",
        "covariance a b a 12.36 +- 2.4 0.04959 +- 0.44 b",
        "mean of a 5.9091, mean of b 0.045455",
        "bin records interval [0, 1.42857) -1.5 [0, 4.6327]",
        "a: mean 5.9091 [",
        "a: quantile 0.25, value ",
        "auc 0.5 [",
    ):
        assert words in text, text
    assert exact[-1].startswith("NOT PRIVATE")
    assert not any("+-" in line or "sampling" in line for line in exact)


def test_a_query_whose_data_differ_from_the_judged_runs_does_not_fit(tmp_path: Path) -> None:
    data = {"source": "sklearn:digits", "holdout": {"at": "clients"}, "partition": {"kind": "iid", "clients": 2}}
    config = config_of(data=data, judged=str(tmp_path), queries={"c": {"kind": "confusion_matrix"}}, privacy={})
    found = price_query(prepare_query(config))
    assert f"note: judged: {tmp_path} holds no finished run yet" in price_text(found)
    trained = build_config(
        {"name": "t", "rounds": 1, "data": data, "model": {"kind": "softmax"}, "training": {"batch_size": 8, "epochs": 1}}
    )
    files = RunFiles(tmp_path)
    files.config.write_text(dump_config(trained))
    write_tensors(files.model, {"w": np.zeros(1, dtype=np.float32)}, {})
    assert not any(text.startswith("judged") for text in prepare_query(config).warnings)
    for change in ({"seed": 1}, {"data": data | {"partition": {"kind": "iid", "clients": 3}}}):
        with pytest.raises(ConfigError, match=f"judged: the run in .* has another section '{next(iter(change))}'"):
            prepare_query(config_of(**{**config.model_dump(exclude_unset=True), **change}))


def test_a_query_and_a_training_run_share_one_budget(tmp_path: Path) -> None:
    config = config_of()
    query = plan_queries(config, bounds_of(asked_of(config), 2))
    training = build_config(
        {
            "name": "trains",
            "rounds": 4,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "sampling_rate": 0.1, "expected_batch": 8, "steps": 5},
            "privacy": {"regime": "record", "noise_multiplier": 1.2, "delta": 1e-5, "budget": 4.0},
        }
    )
    plan = plan_record(training)
    with Account.open_run(tmp_path / "book", {"a": plan}, "train-1/1") as account:
        for round_ in range(4):
            assert account.authorize(round_, 0, ["a"]).granted
        before = account.figures()[0].epsilon

    def asks(budget: float) -> Account:
        return Account.open_run(tmp_path / "book", {"a": replace(query, budget=budget)}, "query-1/1")

    steps = {SelfComposed(5, Poisson(rate(0.1), Gaussian(1.2))): 4}
    joint = bound({**steps, Gaussian(1.5): 1}, 1e-5)
    with asks(joint * 0.999) as account:
        refused = account.check(["a"]).refused
        assert "this query would bring it to" in str(refused["a"])
        assert account.authorize(0, 0, ["a"]).granted == []
        assert account.figures()[0].epsilon == before
    with asks(joint * 1.001) as account:
        assert account.authorize(0, 0, ["a"]).granted == ["a"]
        assert account.figures()[0].epsilon == pytest.approx(joint)
        assert account.check(["a"]).granted == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rounds": 3}, "rounds: belongs to training"),
        ({"queries": {}}, "queries"),
        ({"queries": {"a b": {"kind": "count"}}}, "letters, digits"),
        ({"queries": {"a": {"kind": "cont"}}}, "Did you mean 'count'"),
        ({"queries": {"a": {"kind": "mean", "bounds": {"a": [3, 1]}}}}, "queries.a.bounds: of 'a'"),
        ({"queries": {"a": {"kind": "mean", "bounds": {"a": [0, math.inf]}}}}, "queries.a.bounds: of 'a'"),
        ({"queries": {"a": {"kind": "histogram", "column": "a"}}}, "bins that depend on the records"),
        ({"queries": {"a": {"kind": "roc"}}}, "judged=RUN_DIR"),
        ({"judged": "run"}, "judged: no statistic"),
        ({"queries": {"a": {"kind": "quantiles", "bounds": {"a": [0, 1]}, "quantiles": [0.0]}}}, "between 0 and 1"),
    ],
)
def test_wrong_configs_are_refused_with_the_key(change, said) -> None:
    with pytest.raises(ConfigError, match="(?s)" + said.replace("(", r"\(").replace("[", r"\[")):
        asked_of(config_of(**change))


@pytest.mark.parametrize("regime", ["client", "local", "distributed"])
def test_whole_clients_are_refused(regime) -> None:
    config = config_of(privacy={"regime": regime, "noise_multiplier": 1.0, "delta": 1e-5})
    with pytest.raises(PrivacyRefusal) as refused:
        check_query_privacy(config.privacy)
    assert refused.value.code == f"privacy.incompatible.{regime}.queries"


def test_persons_are_refused() -> None:
    person = {"kind": "bounded", "records": 2}
    config = config_of(privacy={"regime": "record", "noise_multiplier": 1.0, "delta": 1e-5, "person": person})
    with pytest.raises(PrivacyRefusal) as refused:
        check_query_privacy(config.privacy)
    assert refused.value.code == "privacy.incompatible.person.queries"


def test_private_statistics_and_settings_of_training_are_refused() -> None:
    data = {"source": "sklearn:digits", "holdout": {"at": "clients"}, "partition": {"kind": "iid", "clients": 2}}
    ask = {"n": {"kind": "count"}}
    with pytest.raises(PrivacyRefusal, match="statistics over private records"):
        prepare_query(config_of(data={**data, "normalize": {"kind": "standardize_client"}}, queries=ask))
    with pytest.raises(ConfigError, match=r"privacy\.clip: belongs to training"):
        prepare_query(config_of(data=data, queries=ask, privacy={"regime": "record", "noise_multiplier": 1.0, "delta": 1e-5, "clip": 2.0}))
    with pytest.raises(PrivacyRefusal, match="more than 1 / "):
        prepare_query(config_of(data=data, queries=ask, privacy={"regime": "record", "noise_multiplier": 1.0, "delta": 0.01}))
    assert prepare_query(config_of(data=data, queries=ask, privacy={})).plan is None


def test_a_missing_column_is_refused_before_anything_is_charged() -> None:
    (one, *_) = asked_of(config_of(queries={"m": {"kind": "mean", "bounds": {"agee": [0, 1]}}}))
    with pytest.raises(DataError, match=r"queries\.m: the records have no column 'agee'.*Did you mean 'age'"):
        one.statistic.contributions(PublicFacts(("age",), 2), RecordBatch(np.zeros((1, 1)), np.zeros(1)), one.where)


def test_a_config_of_a_query_is_read_back_and_is_none_of_training(tmp_path: Path) -> None:
    path = tmp_path / "asks.yaml"
    path.write_text(dump_query(config_of()))
    again = load_query(path)
    assert again.queries == config_of().queries and dump_query(again) == path.read_text()
    with pytest.raises(ConfigError, match="use fedray query"):
        load_config(path)
