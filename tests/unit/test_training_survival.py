"""Cox's partial likelihood and the concordance index, against their definitions and through clients' turns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from survivors import survivors

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Config
from fedray.configfile import build_config
from fedray.data.dataset import load_federation
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.preparation import prepare
from fedray.training.losses import find_loss
from fedray.training.survival import c_index, cox

Records = list[tuple[bool, int, float]]
RECORDS = st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.floats(-5, 5)), min_size=1, max_size=12)


def tensors(records: Records) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = torch.tensor([[risk] for _, _, risk in records], dtype=torch.float64)
    return outputs, torch.tensor([[float(event), float(time)] for event, time, _ in records])


@given(RECORDS)
def test_cox_is_breslows_partial_likelihood(records: Records) -> None:
    terms = [math.log(sum(math.exp(r) for _, t, r in records if t >= time)) - risk for event, time, risk in records if event]
    assert float(cox(*tensors(records))) == pytest.approx(sum(terms) / len(records), abs=1e-9)


@given(RECORDS, st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(records: Records, random: Any) -> None:
    outputs, targets = tensors(records)
    outputs.requires_grad_()
    order = list(range(len(records)))
    random.shuffle(order)
    (one,) = torch.autograd.grad(cox(outputs, targets), outputs)
    (other,) = torch.autograd.grad(cox(outputs[order], targets[order]), outputs)
    torch.testing.assert_close(one, other)


def test_a_batch_without_events_pulls_nowhere() -> None:
    outputs = torch.randn(5, 1, requires_grad=True)
    loss = cox(outputs, torch.tensor([[0.0, t] for t in range(5)]))
    loss.backward()
    assert outputs.grad is not None
    assert (float(loss.detach()), float(outputs.grad.abs().max())) == (0.0, 0.0)


def test_large_outputs_have_finite_losses_and_gradients() -> None:
    outputs = torch.tensor([[900.0], [-900.0], [0.0]], requires_grad=True)
    cox(outputs, torch.tensor([[1.0, 1.0], [1.0, 2.0], [0.0, 3.0]])).backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


@given(RECORDS)
def test_concordance_is_harrells(records: Records) -> None:
    points, pairs = 0.0, 0
    for event, time, risk in records:
        for other_event, other_time, other_risk in records:
            if event and (time < other_time or (time == other_time and not other_event)):
                pairs += 1
                points += 1.0 if risk > other_risk else 0.5 if risk == other_risk else 0.0
    found = c_index(*tensors(records))
    assert found == pytest.approx(points / pairs) if pairs else math.isnan(found)


@pytest.mark.parametrize("function", [cox, c_index])
def test_columns_in_the_wrong_order_are_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"event \(0 or 1\), then time"):
        function(torch.zeros(2, 1), torch.tensor([[3.5, 1.0], [4.0, 0.0]]))


# -- clients -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("survivors")
    for k, n in enumerate((60, 40, 90)):
        survivors(n, k, shift=k / 2).to_csv(path / f"silo{k}.csv", index=False)
    return f"csv:{path}"


def config(table: str, training: dict[str, Any] | None = None, **sections: Any) -> Config:
    return build_config(
        {
            "name": "cox",
            "rounds": 3,
            "data": {"source": table, "label": ["event", "time"], "holdout": {"fraction": 0.25, "at": "clients"}},
            "model": {"kind": "mlp", "hidden": [8]},
            "training": {"lr": 0.2, "batch_size": 16, "epochs": 2, "loss": "cox", **(training or {})},
            "evaluation": {"federated": True, "metrics": ["c_index", "loss"]},
            "tracking": {"enabled": False},
        }
        | sections
    )


def summed(made: Config) -> bytes:
    """The bytes of one round's sum over all silos."""
    prepared = prepare(made)
    assert prepared.model is not None
    data = load_federation(made.data, made.seed)
    host = ClientHost(make_terms(made, make_groups(made, data.names)[0], None, prepared.model.facts), Site(device="cpu"), data)
    host.ready()
    reports = host.train(RoundTask(0, 1e4), prepared.model.weights.value, [ClientTask(k, name) for k, name in enumerate(data.names)])
    assert [report.status for report in reports] == ["done"] * 3, reports
    return host.collect(RoundTask(0, 1e4)).total.values.tobytes()


def test_every_split_that_is_allowed_gives_the_same_bytes(table: str) -> None:
    sums = {summed(config(table, {"physical_batch": size, "engine": engine})) for size in (16, 17, 500) for engine in ("auto", "plain")}
    assert len(sums) == 1
    assert find_loss("cox").couples


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"physical_batch": 15}, "training.physical_batch: 15 is less than a batch of 16 records"),
        ({"batch_size": 60, "physical_batch": 59}, "less than a batch of 60 records"),
        ({"engine": "lockstep"}, "lockstep cannot train this"),
        ({"engine": "python:fedray.training.plain:plain"}, "cannot train this, because training.loss=cox is taken over the whole batch"),
        ({"sampling_rate": 0.5, "expected_batch": 8, "steps": 2, "batch_size": None, "epochs": None}, "use training.batch_size"),
    ],
)
def test_every_other_split_is_refused_before_any_work(table: str, training: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(config(table, training))


def test_record_level_privacy_is_refused_with_a_code(table: str) -> None:
    training = {"sampling_rate": 0.5, "expected_batch": 8, "steps": 2, "batch_size": None, "epochs": None}
    privacy = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3, "unprotected": ["evaluation"]}
    with pytest.raises(PrivacyRefusal, match="one number for a whole batch") as caught:
        prepare(config(table, training, privacy=privacy))
    assert caught.value.code == "privacy.incompatible.record.coupled_loss"


def test_data_and_metrics_that_do_not_fit_are_refused(table: str) -> None:
    data = {"source": table, "label": "time", "regression": True, "drop": ["event"]}
    with pytest.raises(ConfigError, match=r"cox takes targets \[n, 2\], but those of the data are \[n\]"):
        prepare(config(table, data=data))
    with pytest.raises(ConfigError, match=r"accuracy is for one target a record, but training.loss=cox takes several; use c_index or loss"):
        prepare(config(table, evaluation={"federated": True, "metrics": ["accuracy"]}))


def test_federated_evaluation_takes_the_concordance_of_each_silo(table: str) -> None:
    made = config(table)
    prepared = prepare(made)
    assert prepared.model is not None
    assert prepared.model.facts.outputs == 1
    data = load_federation(made.data, made.seed)
    host = ClientHost(make_terms(made, make_groups(made, data.names)[0], None, prepared.model.facts), Site(device="cpu"), data)
    host.ready()
    rows = host.evaluate(prepared.model.weights.value, [ClientTask(k, name) for k, name in enumerate(data.names)])
    assert all(0 <= row.metrics["c_index"] <= 1 and np.isfinite(row.metrics["loss"]) for row in rows)
