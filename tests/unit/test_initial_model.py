"""Runs that begin with the model of another run, of the registry, or of a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedray.checkpoint import Saved
from fedray.choices import ModelChoice
from fedray.config import Config
from fedray.configfile import build_config, dump_config
from fedray.errors import ConfigError
from fedray.experiment.identity import identity
from fedray.experiment.resume import check_model
from fedray.frozen import model_digest
from fedray.models.build import build_model
from fedray.models.facts import ModelFacts
from fedray.models.weights import load_weights
from fedray.parameters import get_vector
from fedray.planning.initial import Initial, find_initial, pinned, warned
from fedray.planning.preparation import Prepared, prepare
from fedray.runfiles import RunFiles
from fedray.storage import write_json
from fedray.tracking.mlflow_tracker import Tracker
from fedray.tracking.modelfolder import Built

PRIVATE = {"unit": "record", "regime": "record", "epsilon": 1.23456, "delta": 1e-5, "claim": "valid", "ledger_sha256": "ab" * 32}


def settings(weights: str | None, regime: str = "record", ledger: str = "run", **model: Any) -> Config:
    private = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-5, "ledger": ledger}
    drawn = {"steps": 2, "sampling_rate": 0.1, "expected_batch": 32.0}
    return build_config(
        {
            "name": "second",
            "rounds": 1,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}},
            "model": {"kind": "mlp", "hidden": [5], "weights": weights} | model,
            "training": drawn if regime == "record" else {"batch_size": 32, "epochs": 1},
            "privacy": private if regime == "record" else {},
        }
    )


def finished(folder: Path, privacy: dict[str, Any], initial: str | None = None) -> Prepared:
    """The files of a finished run, whose weights are random."""
    prepared, files = prepare(settings(None, ledger="/books")), RunFiles(folder)
    assert prepared.model is not None
    files.root.mkdir(parents=True)
    weights = np.random.default_rng(7).normal(size=prepared.model.facts.layout.size).astype(np.float32)
    files.save_model(prepared.model.facts.layout, weights)
    files.config.write_text(dump_config(prepared.config))
    files.begin()
    summary = {"name": "first", "model_sha256": model_digest(weights, {}), "privacy": privacy, "status": "completed"}
    write_json(files.summary, summary | ({} if initial is None else {"initial": initial}))
    prepared.model.weights.take()[:] = weights
    return prepared


def weights_of(folder: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([value.reshape(-1) for value in RunFiles(folder).load_model().values()])


def test_a_run_begins_with_the_model_of_a_run_or_a_file(tmp_path: Path) -> None:
    finished(tmp_path / "first", PRIVATE)
    for place in (tmp_path / "first", tmp_path / "first" / "model.safetensors"):
        model = prepare(settings(str(place))).model
        assert model is not None
        assert model.weights.value.tobytes() == weights_of(tmp_path / "first").tobytes()
        assert model.document()["initial_sha256"] == model_digest(model.weights.value, {})
    assert "initial" not in (prepare(settings(None)).model or model).document()


def test_clients_need_no_weights_of_a_model_that_is_all_exchanged(tmp_path: Path) -> None:
    finished(tmp_path / "first", PRIVATE)
    whole = prepare(settings(str(tmp_path / "first"))).model
    frozen = prepare(settings(str(tmp_path / "first"), "none", adapters={"kind": "lora", "rank": 2})).model
    assert whole is not None and frozen is not None
    (tmp_path / "first" / "model.safetensors").unlink()
    ModelFacts.of(json.loads(json.dumps(whole.facts.document()))).build()
    with pytest.raises(ConfigError, match="holds neither"):
        frozen.facts.build()


@pytest.mark.parametrize(
    ("privacy", "lacking", "words", "warns"),
    [
        (PRIVATE, 0, "epsilon 1.2346 at delta 1e-05 for one record (claim valid, ledger /books, abab", False),
        (PRIVATE, 0, "hold the charges of that run, so the figures here contain them", False),
        (PRIVATE, 3, "which the ledgers of 3 subjects do not hold, are not in the figures here", False),
        ({"unit": None, "regime": "none", "epsilon": None}, None, "without a valid claim of privacy (none)", True),
        (PRIVATE | {"claim": "void"}, 0, "without a valid claim of privacy (void)", True),
        (PRIVATE | {"claim": "void"}, 0, "what it tells of them is not limited by epsilon here", True),
    ],
)
def test_what_is_said_of_the_initial_model(tmp_path: Path, privacy: Any, lacking: int | None, words: str, warns: bool) -> None:
    finished(tmp_path / "first", privacy, "training began with zeros")
    config = settings(str(tmp_path / "first"))
    initial = find_initial(config)
    assert initial is not None and initial.run.startswith("first-")
    said = initial.said(lacking)
    assert words in said and "the claim covers this run's training only" in said and "of that run: training began with zeros" in said
    assert bool(warned(config, initial)) == warns and not warned(settings(None, "none"), initial)
    assert warns == any("the claim covers" in text for text in prepare(config).warnings)


def test_a_file_of_unknown_origin_is_named_without_its_secrets() -> None:
    initial = find_initial(settings("https://user:hush@host/model.safetensors"))
    assert initial is not None and "hush" not in initial.said(None) + initial.where and "is not known here" in initial.said(None)


def test_a_run_whose_model_is_another_than_its_summary_names_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "first", PRIVATE)
    path = tmp_path / "first" / "summary.json"
    path.write_text(path.read_text().replace('"model_sha256": "', '"model_sha256": "0'))
    with pytest.raises(ConfigError, match="no whole run"):
        find_initial(settings(str(tmp_path / "first")))


def test_weights_that_do_not_fit_are_refused_with_all_that_differs(tmp_path: Path) -> None:
    finished(tmp_path / "first", PRIVATE)
    with pytest.raises(ConfigError, match=r"'fc1.weight' has shape \(5, 64\), but the model's has \(6, 64\); 'fc1.bias'.*'out.weight'"):
        prepare(settings(str(tmp_path / "first"), hidden=[6]))
    with pytest.raises(ConfigError, match=r"lacks 'fc2.weight', 'fc2.bias'"):
        prepare(settings(str(tmp_path / "first"), hidden=[5, 5]))
    state = nn.Linear(2, 2).state_dict()
    save_file({"weight": state["weight"].to(torch.int32), "bias": state["bias"]}, tmp_path / "whole.safetensors")
    with pytest.raises(ConfigError, match="'weight' is int32, but the model's is float32"):
        load_weights(nn.Linear(2, 2), str(tmp_path / "whole.safetensors"))


def test_a_resume_keeps_the_initial_model(tmp_path: Path) -> None:
    finished(tmp_path / "first", PRIVATE)
    config = settings(str(tmp_path / "first" / "model.safetensors"))
    model = prepare(config).model
    assert model is not None
    saved = Saved(1, model.weights.value, {}, {"frozen_sha256": "", "initial_sha256": model.initial_sha256})
    check_model(saved, model, tmp_path)
    files, layout = RunFiles(tmp_path / "first"), model.facts.layout
    files.save_model(layout, model.weights.value + 1)
    changed = prepare(config).model
    with pytest.raises(ConfigError, match="is another model .* than the run began with"):
        check_model(saved, changed, tmp_path)
    assert identity(config, "") != identity(settings(None), "")


def test_a_version_of_the_registry_is_pinned_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # the store is then the one beside the runs
    source = build_model(ModelChoice(kind="mlp", hidden=[5]), (64,), 10, 11)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = tmp_path / "first"
    with pytest.raises(ConfigError, match="there is no models:/digits@newest in the registry"):
        pinned(settings("models:/digits@newest"), tmp_path)
    tracker = Tracker.open(folder, {}, {}, uri=uri, experiment="e", run_name="first", register_as="digits", headline="eval/accuracy")
    files = RunFiles(folder)
    job = files.begin().id
    write_json(folder / "summary.json", {"status": "completed", "name": "first", "model_sha256": "cd" * 32, "privacy": PRIVATE})
    write_json(folder / "privacy_statement.json", {"summary": PRIVATE})
    assert tracker.close(
        "FINISHED", 60.0, model=lambda: Built(nn.Sequential(), np.zeros((1, 64), np.float32))._replace(model=_Around(source))
    )
    config = pinned(settings("models:/digits@newest"), tmp_path)
    assert config.model.weights == "models:/digits/1" and config.tracking.uri == uri
    assert pinned(config, tmp_path / "elsewhere") == config
    model = prepare(config).model
    assert model is not None and model.initial is not None
    np.testing.assert_array_equal(model.weights.value, get_vector(source, model.facts.layout))
    assert model.initial.run == job and model.initial.private and model.initial.where == "models:/digits/1"
    assert replace(model.initial, path="") == Initial("models:/digits/1", "", job, model.initial.known)
    for place, message in (("models:/digits", "should be models:/NAME@ALIAS or"), ("models:/digits/2", "there is no models:/digits/2")):
        with pytest.raises(ConfigError, match=message):
            find_initial(config.model_copy(update={"model": config.model.model_copy(update={"weights": place})}))


class _Around(nn.Module):
    """As :class:`fedray.experiment.served.Served` is around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.model(x)
        return outputs
