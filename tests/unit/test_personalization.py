"""Algorithms that end with more than one model: layers that stay with each client."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, label_skewed, with_client_tests
from rounding import gamma

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost, HostSpec
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.states import StateFiles, StatePlace
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ConfigError, FedrayError
from fedray.experiment.finished import trained_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.planning.preparation import prepare
from fedray.privacy.recordplan import plan_record
from fedray.runfiles import RunFiles
from fedray.storage import write_json

FEDERATION, _ = label_skewed()
MLP = {"kind": "mlp", "hidden": [8]}
PLAIN = {"lr": 0.1, "batch_size": 10, "epochs": 2, "engine": "plain"}
FEDPER = {"kind": "fedper", "personal": ["out"]}


def run(algorithm: dict[str, Any], federation: Federation = FEDERATION, **sections: Any) -> Rehearsed:
    return Rehearsed(config_of(algorithm, **{"model": MLP, "training": PLAIN, **sections}), federation)


def personal(rehearsed: Rehearsed) -> dict[int, np.ndarray]:
    """What each client keeps of its own layers."""
    return {k: np.frombuffer(kept["personal"], dtype=np.float32) for k, kept in rehearsed.kept().items()}


@pytest.mark.parametrize("algorithm", [FEDPER], ids=lambda part: part["kind"])
def test_actors_and_restarts_change_no_bytes(algorithm: dict[str, Any]) -> None:
    alone, split = run(algorithm), run(algorithm)
    for first, second in (([0, 3], [8]), ([3], [0, 5])):
        alone.train([sorted(first + second)])
        split.train([second, first], [1, 0])
        split.restart()
    assert alone.globals.tobytes() == split.globals.tobytes()
    assert alone.kept() == split.kept()


def test_a_client_alone_trains_the_whole_model_wherever_its_layers_lie() -> None:
    own, whole = run(FEDPER), run({"kind": "fedavg"})
    shared = own.layout.size
    assert own.exchange.up_size == own.exchange.down_size == shared == 64 * 8 + 8 < whole.layout.size
    for _ in range(3):
        own.train([[4]])
        whole.train([[4]])
    np.testing.assert_allclose(own.globals, whole.globals[:shared], rtol=0, atol=gamma(40))
    np.testing.assert_allclose(personal(own)[4], whole.globals[shared:], rtol=0, atol=gamma(40))


def test_the_shared_layers_move_by_the_mean_and_the_others_by_each_clients_own_training() -> None:
    own, whole = run(FEDPER), run({"kind": "fedavg"})
    own.train([[1, 2, 7]])
    whole.train([[1, 2, 7]])
    assert own.globals.tobytes() == whole.globals[: own.layout.size].tobytes()  # in a first round all begin with the same layers
    found = personal(own)
    assert sorted(found) == [1, 2, 7] and len({v.tobytes() for v in found.values()}) == 3
    for k in found:
        alone = run({"kind": "fedavg"})
        alone.train([[k]])
        np.testing.assert_allclose(found[k], alone.globals[own.layout.size :], rtol=0, atol=gamma(20))


def test_a_client_measures_its_own_layers_and_a_new_one_those_of_the_beginning() -> None:
    own = run(FEDPER, with_client_tests(FEDERATION))
    first = get_vector(own.model, Layout.personal(own.model, ["out"]))
    own.train([[0, 3]])
    tasks = own.states.attached([ClientTask(k, f"client-{k}") for k in (0, 3, 5)])
    expected = {**personal(own), 5: first}
    for k, task in zip((0, 3, 5), tasks, strict=True):
        model = own.host(0)._trainer.measured(own.globals, task)
        assert get_vector(model, Layout.personal(model, ["out"])).tobytes() == expected[k].tobytes()
        assert get_vector(model, own.layout).tobytes() == own.globals.tobytes()
    assert len({expected[k].tobytes() for k in expected}) == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "names no layers"),
        (["ou"], r"named 'ou' or begins with 'ou\.'; it has fc1\.weight, .*Did you mean 'out'\?"),
        (["out", "fc"], "named 'fc'"),
        (["fc1", "out"], "is the whole model"),
    ],
)
def test_layers_that_the_model_does_not_have_or_all_of_them_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run({"kind": "fedper", "personal": names})


def test_a_name_holds_what_lies_below_it_and_not_what_begins_alike() -> None:
    model, _ = first_model(config_of({"kind": "fedavg"}, model={"kind": "mlp", "hidden": [3] * 10}).model, (64,), 10, 0)
    assert [e.name for e in Layout.personal(model, ["fc1", "out.bias"]).entries] == ["fc1.weight", "fc1.bias", "out.bias"]
    assert Layout.personal(model, ["fc1."]) == Layout.personal(model, ["fc1"])
    assert Layout.of(model, ["fc1", "out"]).size + Layout.personal(model, ["fc1", "out"]).size == Layout.of(model).size


def test_one_clip_norm_holds_over_shared_and_personal_layers(tmp_path: Path) -> None:
    clip, lr = 0.01, 4.0
    config = build_config(
        {
            "name": "t",
            "rounds": 1,
            "data": {"source": "sklearn:digits"},
            "model": MLP,
            "algorithm": FEDPER,
            "training": {"lr": lr, "sampling_rate": 1.0, "expected_batch": 1, "steps": 1},
            "privacy": {"regime": "record", "noise_multiplier": 2.0, "clip": clip, "budget": 100, "delta": 1e-3},
        }
    )
    x, y = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32), np.array([3])
    federation = Federation(["a"], Records(x, y), np.array([0, 1]), None, None, None, 10)
    group = make_groups(config, ["a"])[0]
    plan = plan_record(config, group.training)
    model, facts = first_model(config.model, (64,), 10, config.seed, personal=("out",))
    start, first = get_vector(model, facts.layout), get_vector(model, facts.personal)
    moved = {}
    for z in (0.0, 2.0):
        spec = HostSpec(
            config, group, replace(plan, noise_multiplier=z, sampling_rate=Fraction(1)), facts, 1, states=StatePlace(str(tmp_path))
        )
        host, task = ClientHost(spec, federation, device="cpu"), RoundTask(0, 1.0, clients=1)
        host.ready()
        (report,) = host.train(task, start, [ClientTask(0, "a")])
        assert report.status == "done" and report.state is not None, report.traceback
        own = StateFiles(str(tmp_path)).read(report.state)["personal"] - first
        moved[z] = host.collect(task).total.mean().astype(np.float64), own.astype(np.float64)
    shared, own = moved[0.0]
    assert np.hypot(np.linalg.norm(shared), np.linalg.norm(own)) == pytest.approx(lr * clip, rel=1e-4)
    assert min(np.linalg.norm(shared), np.linalg.norm(own)) > 0.1 * lr * clip
    for noised, plain in zip(moved[2.0], moved[0.0], strict=True):  # both parts carry the noise, in every value
        assert np.std(noised - plain) == pytest.approx(2.0 * clip * lr, rel=0.25)


DIGITS = {
    "name": "t",
    "rounds": 1,
    "data": {
        "source": "sklearn:digits",
        "partition": {"kind": "iid", "clients": 4},
        "holdout": {"fraction": 0.2, "at": "clients"},
    },
    "model": MLP,
    "training": PLAIN,
    "algorithm": FEDPER,
    "evaluation": {"federated": True},
}
AT_DRIVER = {"data": {**DIGITS["data"], "holdout": {"fraction": 0.2}}, "evaluation": {}}  # type: ignore[dict-item]
RECORD = {
    "training": {"lr": 0.1, "sampling_rate": 0.1, "expected_batch": 30, "steps": 1},
    "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5},
}


def test_only_the_clients_evaluate_a_model_whose_layers_they_hold() -> None:
    prepared = prepare(build_config(DIGITS))
    assert prepared.config.evaluation.metrics and not any("evaluat" in text for text in prepared.warnings)
    assert prepared.model is not None and "out.weight" in prepared.model.document()["apart"]
    with pytest.raises(ConfigError, match=r"out\.weight, out\.bias stay with the clients, and the clients are not asked.*federated=true"):
        prepare(build_config({**DIGITS, **AT_DRIVER}))
    private = prepare(build_config({**DIGITS, **AT_DRIVER, **RECORD}))
    assert not private.config.evaluation.metrics and private.test is None
    assert any("The model is not evaluated: the model does not predict by itself" in text for text in private.warnings)


def test_a_finished_run_says_that_its_file_does_not_predict(tmp_path: Path) -> None:
    files, prepared = RunFiles(tmp_path), prepare(build_config(DIGITS))
    model = prepared.model
    assert model is not None
    files.save_model(model.facts.layout, model.weights.value)
    assert set(files.load_model()) == {"fc1.weight", "fc1.bias"}
    write_json(files.partition, {"model": model.document()})
    with pytest.raises(FedrayError, match="does not predict by itself, because its layers out.weight, out.bias stay with the clients"):
        trained_model(files, prepared.config)
