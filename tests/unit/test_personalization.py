"""Algorithms that end with more than one model: layers that stay with each client, and a model for each cluster of clients."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, half_rotated, label_skewed, with_client_tests
from rounding import gamma
from torch import Tensor, nn

from fedray.algorithms.algorithm import Algorithm, Mean, Update, make_algorithm
from fedray.algorithms.turn import Turn
from fedray.choices import Choice
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.states import StateFiles, StatePlace
from fedray.clients.terms import Site, make_terms
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ConfigError, FedrayError
from fedray.experiment.finished import trained_model
from fedray.frozen import model_digest
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.planning.preparation import prepare
from fedray.privacy.recordplan import plan_record
from fedray.runfiles import RunFiles
from fedray.storage import write_json
from fedray.tensorfile import DIGEST, read_tensors

FEDERATION, _ = label_skewed()
MLP = {"kind": "mlp", "hidden": [8]}
PLAIN = {"lr": 0.1, "batch_size": 10, "epochs": 2, "engine": "plain"}
FEDPER = {"kind": "fedper", "personal": ["out"]}
FEDREP = {"kind": "fedrep", "personal": ["out"], "head_trainings": 2}
IFCA = {"kind": "ifca", "clusters": 3}


def run(algorithm: dict[str, Any], federation: Federation = FEDERATION, **sections: Any) -> Rehearsed:
    return Rehearsed(config_of(algorithm, **{"model": MLP, "training": PLAIN, **sections}), federation)


def personal(rehearsed: Rehearsed) -> dict[int, np.ndarray]:
    """What each client keeps of its own layers."""
    return {k: np.frombuffer(kept["personal"], dtype=np.float32) for k, kept in rehearsed.kept().items()}


@pytest.mark.parametrize("algorithm", [FEDPER, FEDREP, IFCA], ids=lambda part: part["kind"])
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


def tied(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two layers with one weight."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, outputs))
    model[1].weight = model[0].weight
    return model


def test_a_tensor_with_two_names_is_not_both_personal_and_exchanged() -> None:
    model = {"kind": f"python:{__name__}:tied"}
    with pytest.raises(ConfigError, match=r"'1\.weight' is the same tensor as '0\.weight', which clients exchange"):
        run({"kind": "fedper", "personal": ["1"]}, model=model)
    own = run({"kind": "fedper", "personal": ["0", "1"]}, model=model)
    own.train([[0]])
    assert len(personal(own)[0]) == 2 * 64 * 65


class Forgetful(Algorithm):
    """Has personal layers and does not say that they are kept."""

    personal = ("out",)


class Undeclared(Algorithm):
    """Keeps a state that it does not declare."""

    def local(self, turn: Turn) -> Update:
        turn.train()
        return Update({"model": turn.moved()}, {"seen": np.ones(1, dtype=np.float32)})


def test_personal_layers_without_a_state_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep personal layers between their turns, which its traits do not declare; add state=True"):
        make_algorithm(Choice(kind=f"python:{__name__}:Forgetful"))


@pytest.mark.parametrize("engine", ["lockstep", "plain"])
def test_a_state_that_is_not_declared_is_said_with_every_engine(engine: str) -> None:
    rehearsed = run({"kind": f"python:{__name__}:Undeclared"}, training={**PLAIN, "engine": engine})
    reports = rehearsed.host(0).train(RoundTask(0, 10.0, clients=10), rehearsed.globals, [ClientTask(k, f"client-{k}") for k in (0, 1)])
    assert [r.status for r in reports] == ["failed", "failed"]
    assert "its clients keep a state, which its traits do not declare" in reports[0].error


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
        terms = make_terms(config, group, replace(plan, noise_multiplier=z, sampling_rate=Fraction(1)), facts)
        site = Site(device="cpu", states=StatePlace(str(tmp_path)))
        host, task = ClientHost(terms, site, federation), RoundTask(0, 1.0, clients=1)
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


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [(FEDPER, "its layers out.weight, out.bias stay with the clients"), (IFCA, "there are 3, of which each client takes its own")],
)
def test_only_the_clients_evaluate_what_does_not_predict_at_the_driver(algorithm: dict[str, Any], why: str) -> None:
    config = {**DIGITS, "algorithm": algorithm}
    prepared = prepare(build_config(config))
    assert prepared.config.evaluation.metrics and not any("evaluat" in text for text in prepared.warnings)
    assert prepared.model is not None and prepared.model.document()["apart"] == why
    with pytest.raises(ConfigError, match=f"because {why}, and the clients are not asked.*federated=true"):
        prepare(build_config({**config, **AT_DRIVER}))


def test_without_metrics_that_privacy_would_void_the_run_trains_and_says_so() -> None:
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


def best(rehearsed: Rehearsed, k: int) -> int:
    """The model whose logits fit a client's training records best, computed by hand."""
    x, y = (v[slice(*FEDERATION.offsets[k : k + 2])] for v in (FEDERATION.train.x, FEDERATION.train.y))
    losses = []
    for weights in np.split(rehearsed.globals, 3):
        v = {name: view.astype(np.float64) for name, view in rehearsed.layout.views(weights).items()}
        logits = np.maximum(x @ v["fc1.weight"].T + v["fc1.bias"], 0) @ v["out.weight"].T + v["out.bias"]
        losses.append(float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean()))
    return int(np.argmin(losses))


def test_each_cluster_moves_by_the_mean_of_its_own_clients() -> None:
    clusters = run(IFCA)
    assert len({part.tobytes() for part in np.split(clusters.globals, 3)}) == 3
    assert clusters.globals.tobytes() == run(IFCA).globals.tobytes() != run(IFCA, seed=1).globals.tobytes()
    choice = {k: best(clusters, k) for k in range(10)}
    assert len(set(choice.values())) > 1
    alike = [k for k in choice if choice[k] == choice[0]][:2]
    cohort = [*alike, next(k for k in choice if choice[k] != choice[0])]
    before = np.split(clusters.globals.copy(), 3)
    clusters.train([cohort])
    for number, (old, new) in enumerate(zip(before, np.split(clusters.globals, 3), strict=True)):
        members = [k for k in cohort if choice[k] == number]
        alone = run({"kind": "fedavg"})
        alone.globals = old.copy()
        if members:
            alone.train([members])
            np.testing.assert_allclose(new, alone.globals, rtol=0, atol=gamma(20))
        else:
            assert new.tobytes() == old.tobytes()


def test_a_round_shows_how_many_clients_each_cluster_has() -> None:
    algorithm = make_algorithm(Choice(kind="ifca", clusters=3))
    mean = Mean({"members": np.array([0.7, 0.0, 0.3], dtype=np.float32)}, clients=10.0, share=1.0)
    assert algorithm.figures(mean) == {"round/cluster_0_clients": 7.0, "round/cluster_1_clients": 0.0, "round/cluster_2_clients": 3.0}


def test_clients_measure_the_model_that_fits_their_training_records() -> None:
    clusters = run(IFCA)
    clusters.train([range(10)])
    models = np.split(clusters.globals, 3)
    for k, found in enumerate(clusters.measured()):
        assert found.tobytes() == models[best(clusters, k)].tobytes()


def zeros(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A linear model that begins alike with every seed."""
    model = nn.Linear(input_shape[0], outputs)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


@pytest.mark.parametrize(
    ("algorithm", "model", "words"),
    [
        ({"kind": "ifca", "clusters": 1}, MLP, "1 is not 2 or more"),
        (IFCA, {"kind": f"python:{__name__}:zeros"}, "models that begin differently"),
    ],
)
def test_one_model_or_models_that_begin_alike_are_no_clusters(algorithm: dict[str, Any], model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(algorithm, model=model)


class Narrow(nn.Linear):
    """Evaluates a few records at a time."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) > 8:
            raise MemoryError
        return super().forward(x)


def narrow(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Narrow(input_shape[0], outputs)


@pytest.mark.slow
def test_a_loss_for_which_memory_does_not_suffice_at_once_is_taken_in_parts() -> None:
    model = {"kind": f"python:{__name__}:narrow"}
    tight, enough = run(IFCA, model=model), run(IFCA, model=model, evaluation={"batch_size": 8})
    for rehearsed in (tight, enough):
        rehearsed.train([[0, 5]])
    assert tight.host(0)._trainer._fits is None  # training itself has had memory enough
    np.testing.assert_allclose(tight.globals, enough.globals, rtol=0, atol=gamma(20))


def test_two_groups_that_see_turned_images_are_found() -> None:
    rehearsed = run({"kind": "ifca"}, half_rotated(), model={"kind": "softmax"})
    for _ in range(6):
        rehearsed.train([range(10)])
    found = [model.tobytes() for model in rehearsed.measured()]
    assert len(set(found[:5])) == len(set(found[5:])) == 1 and found[0] != found[5]


def test_several_models_are_saved_by_number(tmp_path: Path) -> None:
    files, clusters = RunFiles(tmp_path), run(IFCA)
    files.save_model(clusters.layout, clusters.globals)
    saved = files.load_model()
    assert list(saved)[:5] == ["0.fc1.weight", "0.fc1.bias", "0.out.weight", "0.out.bias", "1.fc1.weight"]
    assert np.concatenate([value.ravel() for value in saved.values()]).tobytes() == clusters.globals.tobytes()
    assert (files.summary.exists(), model_digest(clusters.globals, {})) == (False, read_tensors(files.model)[1][DIGEST])
