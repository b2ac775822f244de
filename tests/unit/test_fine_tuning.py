"""Several models side by side at the clients: the one that a client predicts by, the global one, and the global one fine-tuned there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, few_shards, with_client_tests

from fedray.clientfigures import FIGURES, QUANTILES, distribution, metrics_of, models_of
from fedray.clients.messages import ClientTask, LocalEvaluation
from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.reporting.report_clients import at_clients
from fedray.rounds.quality import summarize
from fedray.tracking.terminal import Progress

FEDERATION = with_client_tests(few_shards()[0])
TUNED = {"federated": True, "fine_tune": {"epochs": 2}}


def run(kind: str = "fedavg", evaluation: dict[str, Any] | None = None, **sections: Any) -> Rehearsed:
    section = {**TUNED, **(evaluation or {})}
    training = {"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": "plain"}
    parts = {"model": {"kind": "mlp", "hidden": [16]}, "training": training, "evaluation": section}
    return Rehearsed(config_of({"kind": kind}, **{**parts, **sections}), FEDERATION)


def told(rehearsed: Rehearsed, actor: int = 0, clients: Sequence[int] = range(10)) -> list[LocalEvaluation]:
    tasks = rehearsed.states.attached([ClientTask(i, FEDERATION.names[i]) for i in clients])
    return rehearsed.host(actor).evaluate(rehearsed.globals, tasks)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.booleans())
def test_quantiles_count_from_the_worst_client_on(values: list[float], lower: bool) -> None:
    found = distribution(np.array(values), lower)
    assert tuple(found) == FIGURES
    sign = -1 if lower else 1
    ordered = [sign * found[name] for name in ("worst", *QUANTILES)]
    assert ordered == sorted(ordered)
    assert found["worst"] == (max if lower else min)(values)
    mirrored = distribution(-np.array(values), not lower)
    assert all(mirrored[name] == pytest.approx(-found[name], abs=1e-12) for name in ("mean", "worst", *QUANTILES))


def test_the_global_model_stands_beside_the_clients_own() -> None:
    fedavg, ditto = run("fedavg"), run("ditto")
    for rehearsed in (fedavg, ditto):
        rehearsed.train([range(10)])
    plain, beside = (summarize(told(rehearsed), central=True) for rehearsed in (fedavg, ditto))
    assert models_of(plain, "accuracy") == ["fairness", "fine_tuned"]
    assert models_of(beside, "accuracy") == ["fairness", "global", "fine_tuned"]
    for name in FIGURES:  # Ditto's global model is FedAvg's
        assert beside[f"global/accuracy_{name}"] == plain[f"fairness/accuracy_{name}"]
        assert beside[f"fine_tuned/loss_{name}"] == plain[f"fine_tuned/loss_{name}"]
    assert beside["fairness/accuracy_mean"] != beside["global/accuracy_mean"]
    assert beside["fine_tuned/accuracy_mean"] > plain["fairness/accuracy_mean"] + 0.1
    assert not any(name.startswith("eval/") for name in beside)


def test_clients_whose_layers_are_their_own_have_no_global_model_beside_them() -> None:
    config = config_of({"kind": "fedper", "personal": ["out"]}, model={"kind": "mlp", "hidden": [16]}, evaluation={"federated": True})
    rehearsed = Rehearsed(config, FEDERATION)
    assert set(told(rehearsed)[0].metrics) == {"accuracy", "loss"}


def test_fine_tuning_changes_no_training_and_depends_on_no_actor() -> None:
    plain, tuned = run(evaluation={"fine_tune": None}), run()
    figures = []
    for _ in range(2):
        plain.train([[0, 3], [8]])
        figures.append(told(tuned, clients=[2, 5]))
        tuned.train([[0, 3], [8]])
        assert told(tuned, clients=[2, 5]) == [*told(tuned, 2, [2]), *told(tuned, 1, [5])] != figures[-1]
    assert plain.globals.tobytes() == tuned.globals.tobytes()


@pytest.mark.parametrize("batch_size", [10, 1000])
def test_the_engines_fine_tune_alike(batch_size: int) -> None:
    training = {"lr": 0.1, "batch_size": batch_size, "physical_batch": batch_size, "epochs": 1}
    plain, lockstep = (told(run(training={**training, "engine": engine})) for engine in ("plain", "lockstep"))
    for a, b in zip(plain, lockstep, strict=True):
        assert a.metrics["fine_tuned/loss"] == pytest.approx(b.metrics["fine_tuned/loss"], abs=1e-3)
        assert a.metrics["loss"] != a.metrics["fine_tuned/loss"]


def test_length_and_rate_are_the_sections_own() -> None:
    def loss(**section: Any) -> float:
        return told(run(evaluation={"fine_tune": section}), clients=[4])[0].metrics["fine_tuned/loss"]

    assert loss(epochs=2) == loss(epochs=2, lr=0.1) != loss(epochs=2, lr=0.01)
    assert loss(steps=1) != loss(steps=2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evaluation": {"fine_tune": {"epochs": 1}}}, "evaluation.federated is false"),
        ({"evaluation": {"federated": True, "fine_tune": {}}}, "exactly one of epochs and steps"),
        ({"evaluation": {"federated": True, "fine_tune": {"epochs": 1, "steps": 1}}}, "exactly one of epochs and steps"),
        ({"training": {"sampling_rate": 0.1, "steps": 2, "expected_batch": 10}, "evaluation": TUNED}, "give steps instead"),
        (
            {
                "model": {"kind": "logistic"},
                "training": {"loss": "binary_cross_entropy"},
                "algorithm": {"kind": "newton"},
                "evaluation": TUNED,
            },
            "do not train",
        ),
    ],
)
def test_a_section_without_effect_is_refused(changes: dict[str, Any], says: str) -> None:
    base = {"name": "t", "rounds": 1, "data": {"source": "sklearn:digits"}, "model": {"kind": "softmax"}}
    training = {"training": {"batch_size": 10, "epochs": 1}}
    with pytest.raises(ConfigError, match=says):
        check_only(build_config({**base, **training, **changes}))


@pytest.mark.parametrize("regime", ["record", "client", "local", "distributed"])
@pytest.mark.parametrize("unprotected", [[], ["evaluation"]])
def test_no_regime_covers_it(regime: str, unprotected: list[str], tmp_path: Path) -> None:
    record = {"sampling_rate": 0.1, "steps": 2, "expected_batch": 10}
    config = build_config(
        {
            "name": "t",
            "rounds": 1,
            "data": {"source": "sklearn:digits", "holdout": {"fraction": 0.2, "at": "clients"}},
            "model": {"kind": "softmax"},
            "training": record if regime == "record" else {"batch_size": 10, "epochs": 1},
            "cohort": {"kind": "poisson", "rate": 0.5, "min_clients": 2} if regime != "record" else {"kind": "all"},
            "algorithm": {"kind": "fedavg", "weights": "uniform"},
            "privacy": {"regime": regime, "unprotected": unprotected, "noise_multiplier": 1.0, "clip": 1.0, "ledger": str(tmp_path)},
            "evaluation": {"federated": True, "fine_tune": {"steps": 1}},
        }
    )
    with pytest.raises(PrivacyRefusal) as refusal:
        check_only(config)
    assert refusal.value.code == f"privacy.incompatible.{regime}.fine_tune"


@pytest.mark.parametrize("algorithm", [{"kind": "fedper", "personal": ["out"]}, {"kind": "ifca"}], ids=lambda part: part["kind"])
def test_without_one_global_model_there_is_none_to_fine_tune(algorithm: dict[str, Any]) -> None:
    data = {
        "source": "sklearn:digits",
        "holdout": {"fraction": 0.2, "at": "clients"},
        "partition": {"kind": "iid", "clients": 3},
    }
    config = config_of(algorithm, model={"kind": "mlp", "hidden": [16]}, evaluation=TUNED, data=data)
    with pytest.raises(ConfigError, match="no one global model to train at each client"):
        prepare(config)


def test_terminal_and_report_show_the_models_side_by_side() -> None:
    row = {"round": 3, "time": 1.0, "metrics": {"eval/accuracy": 0.8, **summarize(told(run("ditto")), central=True)}}
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.row(row)
    metrics = row["metrics"]
    assert isinstance(metrics, dict)
    shown = [f"{label} {metrics[f'{model}/accuracy_mean']:.4f}" for label, model in (("at clients", "fairness"), ("global", "global"))]
    assert "  ".join([*shown, f"fine-tuned {metrics['fine_tuned/accuracy_mean']:.4f}"]) in stream.getvalue()
    text = "\n".join(at_clients(metrics))
    assert metrics_of(metrics) == ["accuracy", "loss"]
    assert text.count("| the global model, fine-tuned at each client |") == text.count("| the model by which a client predicts |") == 2
    assert f"{metrics['fine_tuned/accuracy_p25']:.4f}" in text
    assert list(at_clients({"eval/accuracy": 0.8})) == []
