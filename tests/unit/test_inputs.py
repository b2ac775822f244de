"""Records with several inputs: packing, sources, models, engines, commitments and prediction."""

from __future__ import annotations

from typing import Any

import multimodal
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fedray import components
from fedray.choices import ModelChoice
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Config, Data
from fedray.configfile import build_config
from fedray.data.commitment import MerkleTree, check, commit_records, content_of
from fedray.data.dataset import load_client, load_federation
from fedray.data.packing import pack
from fedray.errors import ConfigError, DataError
from fedray.inputs import Input
from fedray.models.build import build_model
from fedray.models.keywords import Keywords
from fedray.planning.preparation import prepare
from fedray.training.synthetic import synthetic_records, with_tokens

IMAGE, TABLE, WORDS = Input("image", (1, 4, 4)), Input("table", (3,)), Input("words", (2,), tokens=True)


def test_inputs_stand_side_by_side_in_the_order_of_their_names() -> None:
    x, _ = multimodal.records(5, 0, words=True)
    packed, inputs = pack(x, "here")
    assert inputs == (IMAGE, TABLE, WORDS)
    assert [Input.of(i.document()) for i in inputs] == list(inputs)
    np.testing.assert_array_equal(packed[:, :16], (x["image"].reshape(5, 16) / np.float32(255)).astype(np.float32))
    np.testing.assert_array_equal(packed[:, 16:19], x["table"].astype(np.float32))
    np.testing.assert_array_equal(packed[:, 19:], x["words"])
    frame = pd.DataFrame(x["table"], columns=["a", "b", "c"])
    np.testing.assert_array_equal(pack(x | {"table": frame}, "here", inputs)[0], packed)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "holds no inputs"),
        ({"a b": np.ones(2)}, "cannot be an argument"),
        ({"a": np.ones(2), "b": np.ones(3)}, "2 records of input a, but 3 of b"),
        ({"a": np.array([np.nan])}, r"here \(input a\): record 1 has a feature that is not finite"),
        ({"a": np.array([-1])}, "token number outside 0"),
        ({"a": np.array([2**24])}, "token number outside 0"),
        ({"image": np.ones((2, 3))}, r"has the inputs image \(3\), but others have image \(1x4x4\), table \(3\)"),
    ],
)
def test_inputs_that_will_not_do_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        pack(values, "here", (IMAGE, TABLE) if "image" in values else ())


def test_a_model_gets_each_input_by_its_name() -> None:
    seen: dict[str, torch.Tensor] = {}

    class Looks(multimodal.Net):
        def forward(self, image: Any, table: Any, words: Any = None) -> Any:
            seen.update(image=image, table=table, words=words)
            return super().forward(image, table, words)

    components.provide({"python:provided:looks": Looks})
    x, _ = multimodal.records(4, 0, words=True)
    packed, inputs = pack(x, "here")
    model = build_model(ModelChoice(kind="python:provided:looks"), packed.shape[1:], 2, 0, inputs=inputs)
    assert model(torch.from_numpy(packed)).shape == (4, 2)
    assert (seen["image"].shape, seen["words"].dtype) == ((4, 1, 4, 4), torch.int64)
    np.testing.assert_array_equal(seen["words"].numpy(), x["words"])


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("mlp", (IMAGE, TABLE), "mlp is for records of one array, but these have the inputs image, table; use late_fusion"),
        ("fedavg_cnn", (IMAGE, TABLE), "fedavg_cnn is for records of one array"),
        ("lstm", (IMAGE, TABLE), "lstm is for records of one array"),
        ("late_fusion", (), "late_fusion is for records with several inputs"),
        ("python:multimodal:Net", (Input("picture", (1, 4, 4)), TABLE), "making 'python:multimodal:Net' failed"),
        ("python:provided:apart", (IMAGE, TABLE), r"inputs image \(1x4x4\), table \(3\) .* a tensor for each as a keyword argument"),
    ],
)
def test_models_that_do_not_fit_are_refused(kind: str, inputs: tuple[Input, ...], words: str) -> None:
    components.provide({"python:provided:apart": lambda outputs: nn.Linear(19, outputs)})
    with pytest.raises(ConfigError, match=words):
        build_model(ModelChoice(kind=kind), (19,), 2, 0, inputs=inputs)


def section(source: str, **more: Any) -> dict[str, Any]:
    return {"source": f"python:multimodal:{source}", **({} if source == "Silos" else {"classes": 2})} | more


def test_silos_alone_and_together_hold_the_same_records() -> None:
    together, silos = (load_federation(Data.model_validate(section(source)), 0) for source in ("clients", "Silos"))
    assert together.inputs == silos.inputs == (IMAGE, TABLE)
    assert together.digest == silos.digest
    alone = load_client(Data.model_validate(section("Silos")), 0, "c1")
    np.testing.assert_array_equal(alone.train.x, together.client(1).train.x)
    assert alone.inputs == together.client(1).inputs == together.inputs
    dealt = load_federation(Data.model_validate(section("clients", partition={"kind": "dirichlet", "clients": 4, "alpha": 1.0})), 0)
    assert dealt.train.x.shape == (225, 19)


def test_normalisers_of_one_array_are_refused() -> None:
    with pytest.raises(DataError, match=r"have the inputs image \(1x4x4\), table \(3\); use none, and normalise in the source"):
        load_federation(Data.model_validate(section("clients", normalize={"kind": "unit_norm"})), 0)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (np.ones((4, 19)), r"one array in .*client b\), but have the inputs image \(1x4x4\), table \(3\) in others"),
        ({"image": np.ones((4, 1, 4, 4))}, "but others have"),
    ],
)
def test_clients_of_different_inputs_are_refused(second: Any, words: str) -> None:
    components.provide({"python:provided:mixed": lambda: {"a": multimodal.records(4, 0), "b": (second, [0, 1, 0, 1])}})
    with pytest.raises(DataError, match=words):
        load_federation(Data.model_validate({"source": "python:provided:mixed", "classes": 2}), 0)


def test_a_record_can_be_proven_as_any_other() -> None:
    train = load_federation(Data.model_validate(section("clients")), 0).client(0).train
    root, tree = commit_records(train.x, train.y, bytes(32)), MerkleTree(train.x, train.y, bytes(32))
    i, proof = tree.record(3), tree.prove(3)
    assert check(root, len(train), content_of(train.x[i], train.y[i]), proof)
    assert not check(root, len(train), content_of(train.x[i - 1], train.y[i]), proof)


def config(words: bool = False, **sections: Any) -> Config:
    return build_config(
        {
            "name": "inputs",
            "rounds": 1,
            "data": section("clients", words=words) if words else section("clients"),
            "model": {"kind": "python:multimodal:Net"},
            "training": {"lr": 0.5, "batch_size": 16, "epochs": 8},
            "tracking": {"enabled": False},
        }
        | sections
    )


def turn(made: Config) -> tuple[ClientHost, bytes]:
    """One round of all clients in one process."""
    prepared = prepare(made)
    assert prepared.model is not None
    federation = load_federation(made.data, made.seed)
    host = ClientHost(
        make_terms(made, make_groups(made, federation.names)[0], prepared.plans[0], prepared.model.facts), Site(device="cpu"), federation
    )
    host.ready()
    if made.privacy.regimes:
        host.preflight()
    reports = host.train(RoundTask(0, 1e4), prepared.model.weights.value, [ClientTask(k, name) for k, name in enumerate(federation.names)])
    assert [report.status for report in reports] == ["done"] * 3, reports
    return host, host.collect(RoundTask(0, 1e4)).total.values.tobytes()


@pytest.mark.parametrize("words", [False, True])
def test_every_private_engine_trains_several_inputs(words: bool) -> None:
    privacy = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-4, "ledger": "run", "insecure_seed": 0}
    sums = {}
    for engine in ("auto", "book", "hooks", "ghost"):
        training = {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 40, "steps": 2, "engine": engine}
        host, total = turn(config(words, training=training, privacy=privacy))
        sums[host._trainer.engine_name] = total
    assert set(sums) == {"book", "hooks", "ghost"}


def test_the_plain_engine_and_whole_client_privacy_train_several_inputs() -> None:
    host, _ = turn(config(words=True))
    assert host._trainer.engine_name == "plain"
    with pytest.raises(ConfigError, match="lockstep cannot train this"):
        prepare(config(training={"lr": 0.5, "batch_size": 16, "epochs": 1, "engine": "lockstep"}))
    private = {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-3, "ledger": "run"}
    turn(config(words=True, privacy=private, algorithm={"kind": "fedavg", "weights": "uniform"}))


def test_synthetic_records_hold_known_tokens_and_keep_their_odd_ones() -> None:
    inputs = (Input("a", (2,), tokens=True), Input("b", (3,)))
    model = Keywords(nn.Embedding(5, 2), inputs)
    x = with_tokens(model, synthetic_records(20, (5,), 2, 2, None)[0])
    assert set(x[:, :2].flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert x.isnan().nonzero().tolist() == [[19, 2]]
    assert x[:, 2:].nan_to_num().abs().max() > 1e3
