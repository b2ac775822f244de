"""What the metrics of a run say: who is left out, what is best, what fits the task."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedray.clients.messages import LocalEvaluation
from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import ConfigError
from fedray.evaluationconfig import Evaluation
from fedray.planning.preparation import prepare
from fedray.rounds.quality import Quality, numbers_only, summarize
from fedray.training.evaluate import check_metrics, evaluate, find_metrics
from fedray.training.losses import Loss, find_loss
from fedray.training.metrics import lower_is_better

NAN = math.nan


def quality(*metrics: str) -> tuple[Quality, list[str]]:
    notes: list[str] = []
    return Quality(Evaluation(metrics=list(metrics)), lambda fault: notes.append(fault.text)), notes


def rows(**values: float) -> list[LocalEvaluation]:
    return [LocalEvaluation(name, 10 * (k + 1), {"auc": value, "accuracy": 0.5}) for k, (name, value) in enumerate(values.items())]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "quality_parts.py").write_text(
        "def cost(outputs, targets): return float(outputs.abs().sum())\ncost.lower_is_better = True\n"
        "def gain(outputs, targets): return float(outputs.sum())\n"
        "def broken(outputs, targets): raise ValueError('no such column')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "quality_parts", raising=False)
    return "python:quality_parts:"


def test_a_client_without_the_metric_is_left_out_of_its_figures_alone() -> None:
    figures = summarize(rows(a=0.9, b=0.5, c=NAN), central=False)
    assert figures["fairness/auc_mean"] == pytest.approx(0.7)
    assert figures["fairness/auc_worst"] == 0.5
    assert figures["eval/auc"] == pytest.approx((0.9 * 10 + 0.5 * 20) / 30)
    assert figures["fairness/auc_left_out"] == 1
    assert figures["fairness/accuracy_mean"] == figures["eval/accuracy"] == 0.5
    assert "fairness/accuracy_left_out" not in figures
    nobody = summarize(rows(a=NAN, b=math.inf), central=False)
    assert {k for k in nobody if "auc" in k} == {"fairness/auc_left_out"}
    assert nobody["fairness/auc_left_out"] == 2
    assert summarize([], central=False) == {}


def test_who_is_left_out_is_told_once_and_again_when_it_changes() -> None:
    found, notes = quality("auc", "accuracy")
    for number in (1, 2):
        found.at_clients(number, rows(a=0.9, b=NAN), central=True)
    assert notes == ["round 1: auc is not defined at 1 of 2 clients (b), which its figures leave out."]
    found.at_clients(3, rows(a=0.9, b=0.5), central=True)
    found.at_clients(4, rows(**{f"c{k}": NAN for k in range(30)}), central=True)
    assert notes[1:] == ["round 4: auc is not defined at 30 of 30 clients (c0, c1, c2, ...), which its figures leave out."]
    broken = [LocalEvaluation("a", 3, {"mine": NAN}, {"mine": "evaluation.metrics: 'mine' failed with ValueError: no."})]
    found.at_clients(5, broken, central=True)
    assert notes[2].endswith("leave out: evaluation.metrics: 'mine' failed with ValueError: no.")


def test_rows_hold_numbers_only_and_say_what_was_not_one() -> None:
    found, notes = quality("auc", "loss")
    row = found.finished(
        {"round": 1, "time": 1.0, "metrics": {"eval/auc": NAN, "eval/loss": np.float32(math.inf), "train/lr": 0.1, "x": None}}
    )
    assert json.loads(json.dumps(row, allow_nan=False)) == {
        "round": 1,
        "time": 1.0,
        "metrics": {"train/lr": 0.1},
        "not_finite": {"eval/auc": "nan", "eval/loss": "inf"},
    }
    assert found.best == {}
    found.finished({"round": 2, "metrics": {"eval/auc": NAN, "eval/loss": math.inf}})
    assert [n.partition(",")[0] for n in notes] == ["round 1: eval/auc came out as nan", "round 1: eval/loss came out as inf"]
    found.finished({"round": 3, "metrics": {"eval/auc": 0.75, "eval/loss": 1.0}})
    found.finished({"round": 4, "metrics": {"eval/auc": NAN, "eval/loss": 1.0}})
    assert len(notes) == 3
    assert found.best == {"eval/auc": 0.75, "round": 3}


@pytest.mark.parametrize(("name", "best"), [("gain", 3.0), ("cost", 1.0)])
def test_own_metrics_are_judged_by_and_say_which_way_is_better(own: str, name: str, best: float) -> None:
    section = Evaluation(metrics=[own + name, "accuracy"])
    assert section.headline == f"eval/{name}"
    found = Quality(section, print)
    for number, value in enumerate((2.0, 1.0, 3.0, 2.5), 1):
        found.finished({"round": number, "metrics": {f"eval/{name}": value}})
    assert found.best == {f"eval/{name}": best, "round": [2.0, 1.0, 3.0, 2.5].index(best) + 1}
    at_clients = [LocalEvaluation(c, 1, {name: v}) for c, v in (("a", 1.0), ("b", 3.0))]
    assert found.at_clients(1, at_clients, central=True)[f"fairness/{name}_worst"] == (3.0 if name == "cost" else 1.0)


def test_built_in_metrics_say_which_way_is_better() -> None:
    names = ["accuracy", "loss", "balanced_accuracy", "f1", "precision", "binary_f1", "auc", "average_precision", "calibration_error"]
    names += ["mae", "rmse", "r2"]
    assert [n for n, m in find_metrics(names).items() if lower_is_better(m)] == ["loss", "calibration_error", "mae", "rmse"]


def test_an_own_metric_that_fails_costs_that_metric_alone(own: str) -> None:
    metrics, failed = find_metrics([own + "broken", "accuracy"]), dict[str, str]()
    arguments = nn.Identity(), torch.eye(2), torch.arange(2), metrics, find_loss("cross_entropy")
    values = evaluate(*arguments, failed=failed)
    assert math.isnan(values["broken"])
    assert values["accuracy"] == 1.0
    assert failed == {
        "broken": "evaluation.metrics: 'broken' failed with ValueError: no such column (quality_parts.py, line 4, in broken)."
    }
    with pytest.raises(ConfigError, match="'broken' failed with ValueError: no such column"):
        evaluate(*arguments)


@pytest.mark.parametrize(
    ("metrics", "loss", "classes", "outputs", "expected"),
    [
        (["auc"], "cross_entropy", 10, 10, "auc is for two classes, but the data has 10"),
        (["accuracy"], "mse", None, 1, "accuracy is for classes, but the data has real-valued targets; use rmse"),
        (["loss", "f1"], "mae", 2, 1, "f1 is for classes, but training.loss=mae fits a number"),
        (["rmse"], "cross_entropy", 3, 3, "rmse is for regressions, but the run tells 3 classes apart"),
        (["mae"], "binary_cross_entropy", 2, 1, "mae is for regressions, but the run tells 2 classes apart"),
        (["accuracy"], "python:x:one", 4, 1, "accuracy is for an output a class, but the model has one output for 4 classes"),
        (["auc", "accuracy", "loss"], "binary_cross_entropy", 2, 1, None),
        (["auc", "f1", "balanced_accuracy"], "cross_entropy", 2, 2, None),
        (["rmse", "mae", "r2", "loss"], "mse", 5, 1, None),
        (["rmse"], "python:x:own", None, 1, None),
        (["c_index", "loss"], "cox", None, 1, None),
        (["micro_f1", "mean_auroc", "loss"], "bce", None, 4, None),
        (["rmse"], "cox", None, 1, "rmse is for one target a record, but training.loss=cox takes several; use c_index or loss"),
        (["accuracy"], "bce", None, 4, "accuracy is for one target a record, but training.loss=bce takes several; use micro_f1"),
        (["c_index"], "bce", None, 4, "c_index is for times of events, but training.loss=bce is for others"),
        (["micro_f1"], "cross_entropy", 3, 3, "micro_f1 is for several labels a record"),
    ],
)
def test_metrics_that_do_not_fit_the_task_are_refused(
    metrics: list[str], loss: str, classes: int | None, outputs: int, expected: str | None
) -> None:
    found = Loss(functional.mse_loss, loss) if loss.startswith("python:") else find_loss(loss)
    if expected is None:
        check_metrics(find_metrics(metrics), found, classes, outputs)
        return
    with pytest.raises(ConfigError, match=f"evaluation.metrics: {expected}"):
        check_metrics(find_metrics(metrics), found, classes, outputs)


def config(**sections: object) -> Config:
    raw = {
        "name": "q",
        "rounds": 1,
        "data": {"source": "sklearn:wine", "partition": {"kind": "iid", "clients": 3}},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 8, "epochs": 1},
    }
    return build_config(raw | sections)


def data(**holdout: object) -> dict[str, object]:
    return {"source": "sklearn:wine", "partition": {"kind": "iid", "clients": 3}, "holdout": holdout}


def test_metrics_are_checked_before_any_work() -> None:
    with pytest.raises(ConfigError, match="auc is for two classes, but the data has 3"):
        prepare(config(evaluation={"metrics": ["auc"]}))


def test_metrics_that_nobody_would_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"only the clients hold test records.*evaluation\.federated=true or data\.holdout\.at=driver"):
        prepare(config(data=data(at="clients")))
    with pytest.raises(ConfigError, match=r"no test records are held out.*or evaluation\.metrics=\[\] to train without"):
        prepare(config(data=data(fraction=0.0), evaluation={"metrics": ["loss"]}))
    with pytest.raises(ConfigError, match="evaluation.federated: the clients hold no test records"):
        prepare(config(evaluation={"federated": True}))
    assert prepare(config(data=data(at="clients"), evaluation={"federated": True})).config.evaluation.metrics == ["accuracy", "loss"]
    assert prepare(config(data=data(at="clients"), evaluation={"metrics": []})).warnings == []


def test_a_config_that_holds_nothing_out_trains_without_metrics_and_says_so() -> None:
    prepared = prepare(config(data=data(fraction=0.0)))
    assert prepared.config.evaluation.metrics == []
    assert any("The model is not evaluated: no test records are held out" in w for w in prepared.warnings)


def test_rows_are_numbers_before_they_are_checkpointed() -> None:
    row = numbers_only({"round": 1, "metrics": {"train/loss_mean": NAN, "a": 1}})
    assert row == {"round": 1, "metrics": {"a": 1.0}, "not_finite": {"train/loss_mean": "nan"}}
    row["metrics"] |= {"eval/loss": math.inf, "eval/accuracy": 0.5}
    found, notes = quality("accuracy")
    assert found.finished(row) == {
        "round": 1,
        "metrics": {"a": 1.0, "eval/accuracy": 0.5},
        "not_finite": {"train/loss_mean": "nan", "eval/loss": "inf"},
    }
    assert len(notes) == 2
    assert found.best == {"eval/accuracy": 0.5, "round": 1}
